"""Maxima of windows: the change of each is carried by one position of its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.tape import Entry
from afmi.gradients.windows import Windows, adaptive_windows, each_side
from afmi.network.channels_last import pooled

__all__ = ["RULES", "MaxPool", "Maximum", "multipliers"]


class Maximum(Rule):
    """The maximum of each window: where it rose, the input's maximum carries Δout; where it fell,
    the reference's maximum does.

    At the carrying position |Δin| ≥ |Δout|, so the multiplier Δout/Δin lies in [0, 1], a window's
    contribution is Δout exactly, and its multipliers sum to at most 1. Windows may overlap, hang
    over the edge or be dilated: multipliers accumulate. Where nothing moved, neither the window's
    maximum nor the input at its position, the multiplier there is the true derivative, 1, as
    everywhere in Eq. 2. Of equal numbers the first is the maximum.

    Source: the rule of SHAP's DeepLIFT (Lundberg & Lee 2017).

    Attributes:
        dimensions: how many dimensions of the input, the last ones, the windows extend over.
    """

    dimensions: int = 1

    @abstractmethod
    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        """Return the windows' maxima and their flat positions in the last dimensions."""

    def entry(self, operation: Operation, operands: Tensors, outputs: Tensors) -> Entry:
        return Entry(operation.name, tuple(operands), outputs[0], more=(outputs[1],))

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        at = outputs[1].flatten(-self.dimensions)
        return [at, *_shares(operands[0], outputs[0], at, entry, self.dimensions)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        at, share, reference_at, reference_share = factors
        kept, pooled_over = shapes[0][: -self.dimensions], shapes[0][-self.dimensions :]
        gradient = gradient.reshape(*kept, -1)
        result = gradient.new_zeros(*kept, pooled_over.numel())
        result.scatter_add_(-1, at, gradient * share)
        result.scatter_add_(-1, reference_at, gradient * reference_share)
        return [result.reshape(shapes[0])]


class _Windows(Rule):
    """One call of max pooling in the traceable form: the numbers of each window lie side by side.

    A window's maximum is marked among them by ones and zeros, and a transposed convolution takes
    the gradient back. So there is no index to scatter by, which few runtimes do in 16 bits or in a
    browser.

    Args:
        cut: the windows.
        pool: the pooling function, with all but its input.
    """

    def __init__(self, cut: Windows, pool: Callable[[Tensor], Tensor]) -> None:
        self.cut = cut
        self.pool = pool

    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        return (self.pool(operation.operand),)

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        numbers, reference_numbers = self._numbers(operands[0]), self._numbers(entry.inputs[0])
        y, reference_y = outputs[0].unsqueeze(2), entry.output.unsqueeze(2)
        dim = -1 - self.cut.dimensions
        return [multipliers(numbers, y, reference_numbers, reference_y, dim)]

    def _numbers(self, x: Tensor) -> Tensor:
        """Return the numbers of each window, (N, C, numbers, *windows)."""
        numbers = self.cut.take(x)
        return numbers.reshape(-1, x.shape[1], *numbers.shape[1:])

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        (multipliers,) = factors
        rows = gradient.reshape(-1, 1, *gradient.shape[2:])
        multipliers = multipliers.reshape(-1, *multipliers.shape[-1 - self.cut.dimensions :])
        return [self.cut.give(rows * multipliers, shapes[0][2:]).reshape(shapes[0])]


class MaxPool(Maximum):
    """Max pooling by one of PyTorch's functions.

    Args:
        function: the pooling function, which must take ``return_indices``.
        dimensions: how many dimensions of the input it pools.
        flag: where ``return_indices`` stands among the function's parameters.
    """

    returned = 2

    def __init__(self, function: Callable[..., Any], dimensions: int, flag: int) -> None:
        self.function = function
        self.dimensions = dimensions
        self.flag = flag

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        if interception.backward.traced:
            return self._traced(interception, operation)
        output, indices = super().__call__(interception, operation)
        return (output, indices) if self._gives_indices(operation) else output

    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        return pooled(lambda x: self._pool(operation, x, return_indices=True), operation.operand)

    def _pool(self, operation: Operation, x: Tensor, **more: bool) -> Any:
        rest = operation.args[1 : self.flag]
        kwargs = {k: v for k, v in operation.kwargs.items() if k not in ("input", "return_indices")}
        return self.function(x, *rest, **kwargs, **more)

    def _traced(self, interception: Interception, operation: Operation) -> Tensor:
        """Make the call in the traceable form."""
        if self._gives_indices(operation) or operation.operand.dim() != 2 + self.dimensions:
            raise interception.no_rule(
                f"a traced {operation.name!r} that gives positions, or of anything but (N, C, …),"
            )
        sides = operation.operand.shape[2:]
        if operation.name.startswith("adaptive"):
            size = operation.argument(1, "output_size", None)
            cut = adaptive_windows(sides, each_side(size, self.dimensions, sides))
        else:
            kernel = operation.argument(1, "kernel_size", None)
            cut = Windows(
                each_side(kernel, self.dimensions),
                each_side(operation.argument(2, "stride", None) or kernel, self.dimensions),
                each_side(operation.argument(3, "padding", 0), self.dimensions),
                each_side(operation.argument(4, "dilation", 1), self.dimensions),
                bool(operation.argument(5, "ceil_mode", False)),
            )
        if cut is None:
            raise interception.no_rule(
                f"a traced {operation.name!r} of sides {tuple(sides)} to {size}, whose windows "
                "differ in size,",
                "choose sides that the output's divide",
            )
        rule = _Windows(cut, lambda x: self._pool(operation, x))
        return rule(interception, operation)

    def _gives_indices(self, operation: Operation) -> bool:
        if operation.function.__name__.endswith("_with_indices"):
            return True
        if "return_indices" in operation.kwargs:
            return bool(operation.kwargs["return_indices"])
        return len(operation.args) > self.flag and bool(operation.args[self.flag])


def multipliers(
    numbers: Tensor, y: Tensor, reference_numbers: Tensor, reference_y: Tensor, dim: int
) -> Tensor:
    """Return the multipliers of all numbers of each window, like ``numbers``.

    They are those of `_shares`, at the marks of the maxima.

    Args:
        numbers: of each window, along ``dim``.
        y: their maxima.
        reference_numbers, reference_y: the reference's.
        dim: of the numbers of a window.
    """
    marks, reference_marks = _first_largest(numbers, dim), _first_largest(reference_numbers, dim)
    change = y - reference_y
    # What lies over the edge is the least number there is: its mark is 0, and so is the product.
    at_maximum = y - (marks * reference_numbers).sum(dim, keepdim=True)
    at_reference = (reference_marks * numbers).sum(dim, keepdim=True) - reference_y
    change, at_maximum, at_reference = (
        each.to(_wide(y.dtype)) for each in (change, at_maximum, at_reference)
    )
    limits = torch.finfo(change.dtype)
    # A tensor, since a trace keeps Python's numbers in single precision.
    least = change.new_full((), limits.tiny / limits.eps)
    share = (change >= 0) * least + change.relu() * at_maximum
    share = share / (at_maximum * at_maximum + least)
    reference_share = -(-change).relu() * at_reference / (at_reference * at_reference + least)
    return marks * share.to(y.dtype) + reference_marks * reference_share.to(y.dtype)


def _first_largest(numbers: Tensor, dim: int) -> Tensor:
    """Return ones at the first of the largest numbers along a dimension, and zeros elsewhere."""
    count = numbers.shape[dim]
    places = torch.arange(count, device=numbers.device).view(-1, *[1] * (-1 - dim))
    return (numbers.argmax(dim, keepdim=True) == places).to(numbers.dtype)


def _shares(x: Tensor, output: Tensor, at: Tensor, entry: Entry, dimensions: int) -> list[Tensor]:
    """Return the multipliers of each window at the input's maximum and at the reference's.

    With Δ at the input's maximum and Δ' at the reference's they are max(Δout, 0)/Δ, or 1 where Δ
    and Δout are 0, and min(Δout, 0)/Δ', or 0 where Δ' is: |Δ| ≥ |Δout| where it rose, and
    |Δ'| ≥ |Δout| where it fell, so there nothing has to be carried. A number τ that any Δ²
    outweighs settles these cases: a choice between numbers takes PyTorch on a CPU ten times as
    long as arithmetic.

    Returns:
        The multipliers at the input's maximum, the positions of the reference's, and the
        multipliers there.
    """
    reference_at = entry.more[0].flatten(-dimensions).expand_as(at)
    flat = x.flatten(-dimensions)
    flat_reference = entry.inputs[0].flatten(-dimensions).expand_as(flat)
    y, reference_y = output.flatten(-dimensions), entry.output.flatten(-dimensions)
    change = (y - reference_y).to(_wide(x.dtype))
    at_maximum = (y - flat_reference.gather(-1, at)).to(change.dtype)
    at_reference = (flat.gather(-1, reference_at) - reference_y).to(change.dtype)
    limits = torch.finfo(change.dtype)
    least = limits.tiny / limits.eps
    # τ where the window did not fall, 0 where it did: there the reference's maximum has it all.
    share = change.add(least).clamp_(0, least)
    share.addcmul_(change.clamp_min(0), at_maximum)
    share.div_(at_maximum.square_().add_(least))
    reference_share = change.clamp_max_(0).mul_(at_reference)
    reference_share.div_(at_reference.square_().add_(least))
    return [share.to(x.dtype), reference_at, reference_share.to(x.dtype)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that has room for squares."""
    return torch.promote_types(dtype, torch.float32)


RULES: dict[str, Handler] = {
    "max_pool1d": MaxPool(F.max_pool1d, 1, flag=6),
    "max_pool2d": MaxPool(F.max_pool2d, 2, flag=6),
    "max_pool3d": MaxPool(F.max_pool3d, 3, flag=6),
    "adaptive_max_pool1d": MaxPool(F.adaptive_max_pool1d, 1, flag=2),
    "adaptive_max_pool2d": MaxPool(F.adaptive_max_pool2d, 2, flag=2),
    "adaptive_max_pool3d": MaxPool(F.adaptive_max_pool3d, 3, flag=2),
}
