"""Say in words where on an image a map's evidence lies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["place_in_words"]

_SPREAD = 0.26
"""Standard deviation of places, of a side, from which they are all over it: evenly it is 0.289."""

_NAMES = {
    1: (("near its beginning", "near its middle", "near its end"),),
    2: (("upper", "", "lower"), ("left", "", "right")),
}


def place_in_words(map: Tensor, *, signed: bool) -> str:
    """Return where most of the evidence lies, and on how much of the image.

    That is the smallest set of pixels that holds more than half of it: of a signed map the values
    above zero, of another what lies above its lowest value.

    Args:
        map: (H, W), (L,) or (D, H, W).
        signed: whether negative values are evidence against.

    Example:
        >>> map = torch.zeros(10, 10)
        >>> map[1:4, 1:5] = 1
        >>> place_in_words(map, signed=True)
        'most of the evidence lies in the upper left, on 12% of the image'
    """
    values = map.detach().to("cpu", torch.float64)
    strength = values.clamp(min=0) if signed else values - values.min()
    if not bool(strength.sum() > 0):
        return "no evidence lies anywhere" if not signed else "no evidence for it lies anywhere"
    flat = strength.flatten()
    order = flat.argsort(descending=True, stable=True)
    last = int((flat[order].cumsum(0) <= flat.sum() / 2).sum())
    # With all that are equal to the last, so that no order among them decides the place.
    chosen = flat >= flat[order[last]]
    what = {1: "signal", 2: "image", 3: "volume"}[map.dim()]
    where = _words((flat * chosen).reshape(map.shape))
    share = _share(float(chosen.sum()) / flat.numel())
    return f"most of the evidence lies {where}, on {share} of the {what}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def _words(strength: Tensor) -> str:
    sides = [_along(strength, dim) for dim in range(strength.dim())]
    if strength.dim() == 3:
        depth = _middle(strength, 0)
        return f"around slice {depth + 1} of {len(strength)}, {_on_picture(sides[1:])}"
    if strength.dim() == 2:
        return _on_picture(sides)
    return "all over it" if sides[0] is None else _NAMES[1][0][sides[0]]


def _on_picture(sides: Sequence[int | None]) -> str:
    names = [
        "" if side is None else words[side] for side, words in zip(sides, _NAMES[2], strict=True)
    ]
    if any(names):
        text = " ".join(name for name in names if name)
        return f"in the {text if all(names) else text + ' part'}"
    return "all over it" if all(side is None for side in sides) else "in the middle"


def _middle(strength: Tensor, dim: int) -> int:
    others = [d for d in range(strength.dim()) if d != dim]
    share = strength.sum(others) / strength.sum()
    return int((share.cumsum(0) < 0.5).sum())


def _along(strength: Tensor, dim: int) -> int | None:
    """Return in which third along a side the evidence lies; None: it is all over it."""
    others = [d for d in range(strength.dim()) if d != dim]
    share = strength.sum(others) if others else strength
    share = share / share.sum()
    places = (torch.arange(len(share), dtype=torch.float64, device="cpu") + 0.5) / len(share)
    mean = float((share * places).sum())
    spread = math.sqrt(max(float((share * (places - mean) ** 2).sum()), 0.0))
    if spread >= _SPREAD:
        return None
    return 0 if mean < 0.4 else 2 if mean > 0.6 else 1
