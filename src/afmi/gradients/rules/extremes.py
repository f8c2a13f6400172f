"""The largest or smallest number along dimensions or of two maps: one of them carries the change.

The rule of max pooling, with one window: where the maximum rose, the position of the image's
maximum carries Δy; where it fell, that of the reference's. There |Δx| ≥ |Δy|, so the multiplier
lies in (0, 1]. Ties go to the first position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.tape import Entry

__all__ = ["RULES"]


class Maximum(Rule):
    """max(x) along the last dimension, which is kept.

    Source: SHAP's DeepLIFT (Lundberg & Lee 2017), whose rule this is for pooling windows.
    """

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        (x,) = operands
        reference = entry.inputs[0].expand_as(x)
        at, reference_at = x.argmax(-1, keepdim=True), reference.argmax(-1, keepdim=True)
        dy = outputs[0] - entry.output
        carrier = torch.where(dy >= 0, at, reference_at)
        dx = x.gather(-1, carrier) - reference.gather(-1, carrier)
        # Where Δx is 0, Δy is: the multiplier is the derivative, 1, as everywhere in Eq. 2.
        multiplier = torch.where(dx == 0, torch.ones_like(dy), dy / dx)
        return [torch.zeros_like(x).scatter_(-1, carrier, multiplier)]

    def pull_back(
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
    return Maximum()(interception, call).reshape(kept)


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
