"""Draw maps as pictures: heat maps, overlays and insertion views.

One language of colour throughout: warm is evidence for the class, cool is evidence against it,
and the stronger the colour the stronger the evidence. Nothing here touches pyplot or any other
state of the process, so threads may draw at once.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from afmi.errors import ShapeError, UsageError
from afmi.pictures.maps import Scale, display_range, top_mask
from afmi.pictures.transforms import to_image

__all__ = ["colorbar", "heatmap", "insertion", "outlined", "overlay", "reduced"]

# An odd number, so that one entry is exactly in the middle and belongs to zero alone.
_LEVELS = 511

# Overlays leave out the ends of inferno: the dark one is purple, which looks cool, and the pale one
# drowns in a bright photograph.
_WARM = (0.45, 0.93)
_MOST_OPAQUE = 0.75
_COOL = ((0.10, 0.25, 0.65), (0.10, 0.55, 0.90), (0.62, 0.95, 1.00))
_GREY = (0.299, 0.587, 0.114)
_LINES_ACROSS = 250
"""Widths of an outline's line that fit along a picture's longest side."""


@functools.cache
def _colors(name: str) -> np.ndarray:
    """Return a colour map as an array (levels, 3) in [0, 1]."""
    import matplotlib

    steps = np.linspace(0, 1, _LEVELS)
    if name == "cool":
        places = np.linspace(0, 1, len(_COOL))
        return np.stack(
            [np.interp(steps, places, channel) for channel in zip(*_COOL, strict=True)], 1
        )
    if name == "warm":
        name, steps = "inferno", np.linspace(*_WARM, _LEVELS)
    return matplotlib.colormaps[name].resampled(_LEVELS)(steps)[:, :3]


def _pick(values: np.ndarray, name: str) -> np.ndarray:
    """Return the colours (…, 3) of values in [0, 1]."""
    return _colors(name)[np.rint(values.clip(0, 1) * (_LEVELS - 1)).astype(int)]


def _name(signed: bool) -> str:
    return "RdBu_r" if signed else "inferno"


def _to_picture(colors: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(colors.clip(0, 1) * 255).astype(np.uint8))


def _values(map: Tensor, image: Tensor | None = None) -> np.ndarray:
    """Return a map as float64 (H, W), checked."""
    if map.dim() != 2 or 0 in map.shape:
        raise ShapeError(
            f"expected one map (H, W), got {tuple(map.shape)}; of maps (N, 1, H, W) take maps[0, 0]"
        )
    if image is not None and tuple(image.shape) not in [(c, *map.shape) for c in (1, 3)]:
        raise ShapeError(
            f"expected an image (3, {map.shape[0]}, {map.shape[1]}) of the map's size, or a grey "
            f"one (1, …), got {tuple(image.shape)}"
        )
    values = map.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise UsageError("expected a finite map, got NaN or infinity")
    return values.numpy()


def reduced(picture: Tensor, side: int) -> Tensor:
    """Return an image (C, H, W) or a map (H, W) whose longest side is ``side`` pixels at most.

    A larger one is averaged over the pixels that fall together.
    """
    height, width = picture.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    batch = picture.detach().reshape(1, -1, height, width)
    smaller = F.interpolate(batch, size=size, mode="area")
    return smaller.reshape(*picture.shape[:-2], *size)


def heatmap(map: Tensor, *, signed: bool = True) -> Image.Image:
    """Draw a map by itself.

    A signed map goes from blue (against the class) over near-white, which is exactly zero, to red
    (for it). Another goes from black (its lowest) over purple and orange to yellow, equal steps
    looking equal. `afmi.maps.display_range` gives the ends.

    Args:
        map: (H, W).
        signed: whether negative values are evidence against the class; a method says so of its
            maps (`Method.signed`), and no stray value decides.

    Returns:
        RGB, W × H pixels.

    Example:
        >>> heatmap(torch.tensor([[0.0, 1.0]]), signed=False).getpixel((0, 0))
        (0, 0, 4)
    """
    values = _values(map)
    low, high, _ = display_range(map, signed=signed)
    return _to_picture(_pick((values - low) / (high - low), _name(signed)))


def overlay(image: Tensor, map: Tensor, *, signed: bool = True) -> Image.Image:
    """Draw a map over its photograph.

    The photograph loses its colour and some light; the map glows on it: warm for the class, cool
    against it, brighter and more opaque the stronger. Where the map is zero, or lowest if it is not
    signed, the photograph alone is seen.

    Args:
        image: (3, H, W), or grey (1, H, W), in [0, 1].
        map: (H, W).
        signed: as of `heatmap`.

    Returns:
        RGB, W × H pixels.
    """
    values = _values(map, image)
    low, high, _ = display_range(map, signed=signed)
    strength = (np.abs(values) / high if signed else (values - low) / (high - low)).clip(0, 1)
    photograph = image.detach().to("cpu", torch.float64).expand(3, -1, -1).numpy()
    grey = 0.03 + 0.6 * np.tensordot(_GREY, photograph, 1)[..., None]
    against = signed & (values < 0)[..., None]
    glow = np.where(against, _pick(strength, "cool"), _pick(strength, "warm"))
    opacity = _MOST_OPAQUE * strength[..., None]
    return _to_picture(grey * (1 - opacity) + glow * opacity)


def insertion(image: Tensor, map: Tensor, fraction: float) -> Image.Image:
    """Show only the top ``fraction`` of the pixels, on black, as in the paper's Figure 1.

    Args:
        image: (3, H, W), or grey (1, H, W), in [0, 1].
        map: (H, W).
        fraction: share of the pixels to keep, from 0 to 1.

    Returns:
        RGB, W × H pixels; the kept ones are the photograph's own.
    """
    _values(map, image)
    kept = top_mask(map.detach().cpu()[None, None], fraction)[0]
    return to_image(image.detach().cpu().expand(3, -1, -1) * kept)


def outlined(picture: Image.Image, area: Tensor) -> Image.Image:
    """Draw the outline of an area: a white line inside of it and a black one outside.

    Together they stand out from any colour, and to every eye.

    Args:
        picture: RGB, W × H pixels.
        area: bool (H, W).

    Returns:
        RGB, W × H pixels.
    """
    if tuple(area.shape) != (picture.height, picture.width) or area.dtype != torch.bool:
        raise ShapeError(
            f"expected an area as bool ({picture.height}, {picture.width}) of the picture's size, "
            f"got {tuple(area.shape)} {area.dtype}"
        )
    width = max(round(max(area.shape) / _LINES_ACROSS), 1)
    area = area.cpu()
    if int(area.sum()) < (3 * width) ** 2:  # such as a single pixel, which a line would cover
        area = _spread(area, 2 * width)
    # Beyond the picture's edge lies nothing of the area, so that the line is closed there.
    inside = area & _spread(~area, width, beyond=True)
    outside = _spread(area, width) & ~area
    colors = np.asarray(picture.convert("RGB")).copy()
    colors[inside.numpy()] = 255
    colors[outside.numpy()] = 0
    return Image.fromarray(colors)


def _spread(area: Tensor, by: int, *, beyond: bool = False) -> Tensor:
    """Return an area with all that lies within ``by`` pixels of it; what is beyond the edges?"""
    padded = F.pad(area[None, None].float(), (by,) * 4, value=float(beyond))
    return F.max_pool2d(padded, 2 * by + 1, stride=1)[0, 0] > 0


def colorbar(scale: Scale, width: int, height: int) -> Image.Image:
    """Draw the colours that `heatmap` uses, from the lowest value at the left to the highest.

    Args:
        scale: of the map, as `display_range` gives it.
        width: in pixels.
        height: in pixels.
    """
    if not scale.low < scale.high:
        raise UsageError(f"expected low below high, got {scale.low} and {scale.high}")
    row = _pick(np.linspace(0, 1, width), _name(scale.signed))
    return _to_picture(np.broadcast_to(row, (height, width, 3)))
