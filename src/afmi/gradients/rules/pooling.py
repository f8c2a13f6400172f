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
from afmi.network.channels_last import pooled

__all__ = ["RULES", "MaxPool", "Maximum"]


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
        output, indices = super().__call__(interception, operation)
        return (output, indices) if self._gives_indices(operation) else output

    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        rest = operation.args[1 : self.flag]
        kwargs = {k: v for k, v in operation.kwargs.items() if k not in ("input", "return_indices")}
        return pooled(
            lambda x: self.function(x, *rest, **kwargs, return_indices=True), operation.operand
        )

    def _gives_indices(self, operation: Operation) -> bool:
        if operation.function.__name__.endswith("_with_indices"):
            return True
        if "return_indices" in operation.kwargs:
            return bool(operation.kwargs["return_indices"])
        return len(operation.args) > self.flag and bool(operation.args[self.flag])


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
