"""Max pooling: the change of each window's maximum is carried by one position of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.modified_gradient.interception import Interception, Operation, Rule
from afmi.modified_gradient.tape import Entry

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

        def pool(tensor: Tensor) -> tuple[Tensor, Tensor]:
            return self.function(tensor, *rest, **kwargs, return_indices=True)

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
            saved += _carriers(x, output, at, entry, dimensions)
        ctx.save_for_backward(*saved)
        return output, indices

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _indices: Any) -> Any:
        at, *carriers = ctx.saved_tensors
        first = 3 * ctx.state.reference
        carrier, multiplier, unchanged = carriers[first : first + 3]
        gradient = gradient.reshape(*ctx.shape[: -ctx.dimensions], -1)
        spatial = ctx.shape[-ctx.dimensions :]
        zeros = gradient.new_zeros(*ctx.shape[: -ctx.dimensions], spatial.numel())
        result = zeros.scatter_add_(-1, carrier, gradient * multiplier)
        if gradient.device.type != "cpu" or bool(unchanged.any()):
            result = result.scatter_add_(-1, at, gradient * unchanged)
        return result.reshape(ctx.shape), None, None, None, None


def _carriers(x: Tensor, output: Tensor, at: Tensor, entry: Entry, dimensions: int) -> list[Tensor]:
    """Return each window's carrying position, its multiplier, and where Δin is 0 at the maximum."""
    assert entry.indices is not None
    delta_out = (output - entry.output).flatten(-dimensions)
    reference_at = entry.indices.flatten(-dimensions).expand_as(at)
    carrier = torch.where(delta_out >= 0, at, reference_at)
    flat = x.flatten(-dimensions)
    flat_reference = entry.inputs[0].flatten(-dimensions).expand_as(flat)
    delta_in = flat.gather(-1, carrier) - flat_reference.gather(-1, carrier)
    # |Δin| ≥ |Δout|, so Δin is 0 only where Δout is, and there nothing has to be carried.
    multiplier = torch.where(delta_in == 0, torch.zeros_like(delta_out), delta_out / delta_in)
    unchanged = flat.gather(-1, at) == flat_reference.gather(-1, at)
    return [carrier, multiplier, unchanged.to(x.dtype)]


RULES: dict[str, Rule] = {
    "max_pool1d": MaxPool(F.max_pool1d, 1, flag=6),
    "max_pool2d": MaxPool(F.max_pool2d, 2, flag=6),
    "max_pool3d": MaxPool(F.max_pool3d, 3, flag=6),
    "adaptive_max_pool1d": MaxPool(F.adaptive_max_pool1d, 1, flag=2),
    "adaptive_max_pool2d": MaxPool(F.adaptive_max_pool2d, 2, flag=2),
    "adaptive_max_pool3d": MaxPool(F.adaptive_max_pool3d, 3, flag=2),
}
