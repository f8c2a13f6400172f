"""The largest or smallest number along dimensions or of two maps: one of them carries the change.

They are max pooling with one window, and follow its rule (`afmi.gradients.rules.pooling`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Tensors
from afmi.gradients.rules.pooling import Maximum, multipliers
from afmi.gradients.tape import Entry

__all__ = ["RULES"]


class _RowMaximum(Maximum):
    """max(x) along the last dimension, which is kept: a pooling window as long as that."""

    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        return tuple(operation.operand.max(-1, keepdim=True))

    def traceable_factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return [multipliers(operands[0], outputs[0], entry.inputs[0], entry.output, -1)]

    def traceable_pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [gradient * factors[0]]


def _maximum(interception: Interception, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the maximum over dimensions, which are kept."""
    dims = tuple(sorted(d % x.dim() for d in dims)) or tuple(range(x.dim()))
    last = tuple(range(-len(dims), 0))
    moved = x.movedim(dims, last)
    kept = [1 if d in dims else size for d, size in enumerate(x.shape)]
    rows = moved.flatten(-len(dims))
    call = Operation("amax", torch.amax, (rows, -1, True), {})
    return _RowMaximum()(interception, call).reshape(kept)


class Extreme:
    """``amax`` and ``amin`` over dimensions; ``max`` and ``min`` also of two maps.

    A minimum is −max(−x); the maximum of two maps is that over a dimension made of the two.

    Args:
        sign: 1 for the maximum, −1 for the minimum.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        x = operation.operand
        second = operation.argument(1, "dim", operation.kwargs.get("other"))
        if isinstance(second, Tensor):
            pair = torch.stack(torch.broadcast_tensors(x, second), -1)
            return self._over(interception, pair, (-1,)).squeeze(-1)
        with_indices = operation.name in ("max", "min") and second is not None
        dims = () if second is None else (second,) if isinstance(second, int) else tuple(second)
        keep = operation.argument(2, "keepdim", False)
        if x.dim() == 0:
            return x
        y = self._over(interception, x, dims)
        y = y if keep else y.squeeze(dims or tuple(range(x.dim())))
        if not with_indices:
            return y
        positions = (x.detach() * self.sign).argmax(second, keepdim=keep)
        kind: Callable[..., Any] = getattr(torch.return_types, operation.name)
        return kind((y, positions))

    def _over(self, interception: Interception, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (
            _maximum(interception, x, dims) if self.sign > 0 else -_maximum(interception, -x, dims)
        )


RULES: dict[str, Handler] = {
    **dict.fromkeys(("amax", "max", "maximum", "fmax"), Extreme(1)),
    **dict.fromkeys(("amin", "min", "minimum", "fmin"), Extreme(-1)),
}
