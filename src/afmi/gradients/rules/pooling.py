"""Max pooling: the change of each window's maximum is carried by one position of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.gradients.interception import Interception, Operation, Rule
from afmi.gradients.tape import Entry
from afmi.network.channels_last import pooled

__all__ = ["RULES", "MaxPool"]


class MaxPool:
    """Where a window's maximum rose, the input's maximum carries Δout; where it fell, the
    reference's maximum does.

    At the carrying position |Δin| ≥ |Δout|, so the multiplier Δout/Δin lies in (0, 1]. Windows
    may overlap, hang over the edge or be dilated: multipliers accumulate. Where the position of
    the input's maximum did not change at all, the multiplier there is the true derivative, 1, as
    everywhere in Eq. 2.

    Source: the rule of SHAP's DeepLIFT (Lundberg & Lee 2017).

    Args:
        function: the pooling function, which must take ``return_indices``.
        dimensions: how many dimensions of the input it pools.
        flag: where ``return_indices`` stands among the function's parameters.
    """

    def __init__(self, function: Callable[..., Any], dimensions: int, flag: int) -> None:
        self.function = function
        self.dimensions = dimensions
        self.flag = flag

    def __call__(self, state: Interception, operation: Operation) -> Any:
        x = operation.operand
        rest = operation.args[1 : self.flag]
        kwargs = {k: v for k, v in operation.kwargs.items() if k not in ("input", "return_indices")}

        def pool(tensor: Tensor) -> tuple[Tensor, ...]:
            return pooled(lambda x: self.function(x, *rest, **kwargs, return_indices=True), tensor)

        if state.recording is not None:
            output, indices = pool(x)
            state.recording.entries.append(
                Entry(operation.name, (x.detach(),), output.detach(), indices)
            )
        else:
            entries = [reader.next(operation.name, (x,)) for reader in state.readers]
            output, indices = _MaxPoolFunction.apply(x, pool, state, entries, self.dimensions)
        return (output, indices) if self._gives_indices(operation) else output

    def _gives_indices(self, operation: Operation) -> bool:
        if operation.function.__name__.endswith("_with_indices"):
            return True
        if "return_indices" in operation.kwargs:
            return bool(operation.kwargs["return_indices"])
        return len(operation.args) > self.flag and bool(operation.args[self.flag])


class _MaxPoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pool: Any,
        state: Interception,
        entries: list[Entry],
        dimensions: int,
    ) -> tuple[Tensor, Tensor]:
        output, indices = pool(x)
        ctx.state = state
        ctx.shape = x.shape
        ctx.dimensions = dimensions
        ctx.mark_non_differentiable(indices)
        at = indices.flatten(-dimensions)
        saved: list[Tensor] = [at]
        for entry in entries:
            saved += _shares(x, output, at, entry, dimensions)
        ctx.save_for_backward(*saved)
        return output, indices

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _indices: Any) -> Any:
        at, *shares = ctx.saved_tensors
        first = 3 * ctx.state.reference
        share, reference_at, reference_share = shares[first : first + 3]
        gradient = gradient.reshape(*ctx.shape[: -ctx.dimensions], -1)
        spatial = ctx.shape[-ctx.dimensions :]
        result = gradient.new_zeros(*ctx.shape[: -ctx.dimensions], spatial.numel())
        result.scatter_add_(-1, at, gradient * share)
        result.scatter_add_(-1, reference_at, gradient * reference_share)
        return result.reshape(ctx.shape), None, None, None, None


def _shares(x: Tensor, output: Tensor, at: Tensor, entry: Entry, dimensions: int) -> list[Tensor]:
    """Return the multipliers of each window at the input's maximum and at the reference's.

    With Δ at the input's maximum and Δ' at the reference's they are max(Δout, 0)/Δ, or 1 where Δ
    is 0, and min(Δout, 0)/Δ', or 0 where Δ' is: |Δ| ≥ |Δout| where it rose, and |Δ'| ≥ |Δout| where
    it fell, so there nothing has to be carried. A number τ that any Δ² outweighs settles these
    cases: a choice between numbers takes PyTorch on a CPU ten times as long as arithmetic.

    Returns:
        The multipliers at the input's maximum, the positions of the reference's, and the
        multipliers there.
    """
    assert entry.indices is not None
    reference_at = entry.indices.flatten(-dimensions).expand_as(at)
    flat = x.flatten(-dimensions)
    flat_reference = entry.inputs[0].flatten(-dimensions).expand_as(flat)
    y, reference_y = output.flatten(-dimensions), entry.output.flatten(-dimensions)
    change = (y - reference_y).to(_wide(x.dtype))
    at_maximum = (y - flat_reference.gather(-1, at)).to(change.dtype)
    at_reference = (flat.gather(-1, reference_at) - reference_y).to(change.dtype)
    limits = torch.finfo(change.dtype)
    least = limits.tiny / limits.eps
    share = change.clamp_min(0).mul_(at_maximum).add_(least)
    share.div_(at_maximum.square_().add_(least))
    reference_share = change.clamp_max_(0).mul_(at_reference)
    reference_share.div_(at_reference.square_().add_(least))
    return [share.to(x.dtype), reference_at, reference_share.to(x.dtype)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that has room for squares."""
    return torch.promote_types(dtype, torch.float32)


RULES: dict[str, Rule] = {
    "max_pool1d": MaxPool(F.max_pool1d, 1, flag=6),
    "max_pool2d": MaxPool(F.max_pool2d, 2, flag=6),
    "max_pool3d": MaxPool(F.max_pool3d, 3, flag=6),
    "adaptive_max_pool1d": MaxPool(F.adaptive_max_pool1d, 1, flag=2),
    "adaptive_max_pool2d": MaxPool(F.adaptive_max_pool2d, 2, flag=2),
    "adaptive_max_pool3d": MaxPool(F.adaptive_max_pool3d, 3, flag=2),
}
