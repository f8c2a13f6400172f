"""Draw maps as pictures: heat maps, overlays and insertion views.

One language of colour throughout: red is evidence for the class, blue is evidence against it, and
the stronger the colour the stronger the evidence. The map by itself, the map over its photograph
and the bar beside them have the same colours. Nothing here touches pyplot or any other state of the
process, so threads may draw at once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from afmi.errors import ShapeError, UsageError, near_matches
from afmi.pictures.maps import Scale, display_range, top_mask
from afmi.pictures.transforms import to_image

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

__all__ = [
    "OPACITY",
    "Sign",
    "Style",
    "colorbar",
    "full_overlay",
    "heatmap",
    "insertion",
    "on_paper",
    "outlined",
    "overlay",
    "reduced",
]

Sign: TypeAlias = Literal["both", "positive", "negative"]
"""Which values of a map are drawn."""

OPACITY = 0.75
"""How opaque an overlay's strongest evidence is: enough to see it, and what it lies on."""

# An odd number, so that one entry is exactly in the middle and belongs to zero alone.
_LEVELS = 511

# From the lowest value to the highest, in equal steps of lightness. The ends are brighter than
# matplotlib's RdBu, which drowns in a dark photograph; no colour of an unsigned map is cool.
_SIGNED = (
    (0.00, (0.00, 0.28, 0.85)),
    (0.25, (0.35, 0.68, 1.00)),
    (0.50, (0.97, 0.97, 0.97)),
    (0.75, (1.00, 0.55, 0.25)),
    (1.00, (0.90, 0.05, 0.05)),
)
_UNSIGNED = (
    (0.00, (0.00, 0.00, 0.00)),
    (0.26, (0.45, 0.04, 0.04)),
    (0.50, (0.85, 0.15, 0.05)),
    (0.75, (1.00, 0.52, 0.10)),
    (1.00, (1.00, 0.92, 0.50)),
)
_GREY = (0.299, 0.587, 0.114)
_LINES_ACROSS = 250
"""Widths of an outline's line that fit along a picture's longest side."""
_STRIP = 2**19
"""Pixels of a large photograph that are drawn at once."""


@dataclass(frozen=True)
class Style:
    """How maps are drawn.

    Args:
        cmap: the colours from the lowest value to the highest, as matplotlib's colour map or its
            name. None: blue over near-white to red for signed maps, and black over red to yellow
            for others.
        alpha: how opaque an overlay's strongest evidence is, from 0 to 1.
        sign: which values are drawn: ``"both"``, or those above or below zero alone, by the
            colours that they have beside the others.

    Raises:
        UsageError: there is no such colour map or sign, or the opacity is none.
    """

    cmap: str | Colormap | None = None
    alpha: float = OPACITY
    sign: Sign = "both"

    def __post_init__(self) -> None:
        if self.sign not in get_args(Sign):
            raise UsageError(
                f"expected sign as {' or '.join(map(repr, get_args(Sign)))}, got {self.sign!r}"
            )
        if isinstance(self.alpha, bool) or not (
            isinstance(self.alpha, (int, float)) and 0 <= self.alpha <= 1
        ):
            raise UsageError(f"expected alpha from 0 to 1, got {self.alpha!r}")
        if self.cmap is not None:
            _named_colors(self.cmap)

    def colors(self, signed: bool) -> np.ndarray:
        """Return the colours as an array (levels, 3) in [0, 1]."""
        if self.cmap is not None:
            return _named_colors(self.cmap)
        return _own_colors(signed)

    def drawn(self, map: Tensor, *, signed: bool) -> Tensor:
        """Return a map with zero in place of the values that are not drawn.

        Raises:
            UsageError: a map that is not signed has no values against.
        """
        if self.sign == "both" or (self.sign == "positive" and not signed):
            return map
        if not signed:
            raise UsageError(
                "expected a signed map for sign='negative', got one whose low values are no "
                "evidence against; leave sign out, or choose a method that is signed"
            )
        return map.clamp(min=0) if self.sign == "positive" else map.clamp(max=0)


@functools.cache
def _own_colors(signed: bool) -> np.ndarray:
    table = np.array([(place, *color) for place, color in (_SIGNED if signed else _UNSIGNED)])
    steps = np.linspace(0, 1, _LEVELS)
    return np.stack([np.interp(steps, table[:, 0], channel) for channel in table[:, 1:].T], 1)


def _named_colors(cmap: str | Colormap) -> np.ndarray:
    import matplotlib
    from matplotlib.colors import Colormap

    if not isinstance(cmap, Colormap):
        if not isinstance(cmap, str) or cmap not in matplotlib.colormaps:
            near = near_matches(str(cmap), matplotlib.colormaps)
            raise UsageError(f"expected a colour map of matplotlib's, got {cmap!r}{near}")
        cmap = matplotlib.colormaps[cmap]
    return cmap.resampled(_LEVELS)(np.linspace(0, 1, _LEVELS))[:, :3]


def _pick(values: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return the colours (…, 3) of values in [0, 1]."""
    return colors[np.rint(values.clip(0, 1) * (_LEVELS - 1)).astype(int)]


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


def heatmap(map: Tensor, *, signed: bool = True, style: Style | None = None) -> Image.Image:
    """Draw a map by itself.

    A signed map goes from blue (against the class) over near-white, which is exactly zero, to red
    (for it). Another goes from black (its lowest) over red and orange to yellow, equal steps
    looking equal. `afmi.maps.display_range` gives the ends.

    Args:
        map: (H, W).
        signed: whether negative values are evidence against the class; a method says so of its
            maps (`Method.signed`), and no stray value decides.
        style: other colours, or one sign alone.

    Returns:
        RGB, W × H pixels.

    Example:
        >>> heatmap(torch.tensor([[0.0, 1.0]]), signed=False).getpixel((0, 0))
        (0, 0, 0)
    """
    style = style or Style()
    _values(map)
    low, high, _ = display_range(map, signed=signed)
    values = _values(style.drawn(map, signed=signed))
    return _to_picture(_pick((values - low) / (high - low), style.colors(signed)))


def overlay(
    image: Tensor, map: Tensor, *, signed: bool = True, style: Style | None = None
) -> Image.Image:
    """Draw a map over its photograph.

    The photograph loses its colour and some light; the map lies on it in the colours of `heatmap`,
    more opaque the stronger it is. Where the map is zero, or lowest if it is not signed, the
    photograph alone is seen.

    Args:
        image: (3, H, W), or grey (1, H, W), in [0, 1].
        map: (H, W).
        signed: as of `heatmap`.
        style: other colours, another opacity, or one sign alone.

    Returns:
        RGB, W × H pixels.
    """
    style = style or Style()
    _values(map, image)
    scale = display_range(map, signed=signed)
    values = _values(style.drawn(map, signed=signed))
    photograph = image.detach().to("cpu", torch.float64).expand(3, -1, -1).numpy()
    return _to_picture(_laid_over(_greyed(photograph.transpose(1, 2, 0)), values, scale, style))


def _greyed(photograph: np.ndarray) -> np.ndarray:
    """Return what an overlay shows of a photograph (H, W, 3) in [0, 1], as (H, W, 1)."""
    return 0.03 + 0.6 * (photograph @ np.array(_GREY))[..., None]


def _laid_over(grey: np.ndarray, values: np.ndarray, scale: Scale, style: Style) -> np.ndarray:
    low, high, signed = scale
    strength = (np.abs(values) / high if signed else (values - low) / (high - low)).clip(0, 1)
    colors = _pick((values - low) / (high - low), style.colors(signed))
    opacity = style.alpha * strength[..., None]
    return grey * (1 - opacity) + colors * opacity


def on_paper(values: np.ndarray, scale: Scale, style: Style) -> np.ndarray:
    """Return the colours (…, 3), in [0, 1], of values that lie on white, as behind a line."""
    return _laid_over(np.ones((*values.shape, 1)), values, scale, style)


def full_overlay(
    photograph: np.ndarray,
    map: Tensor,
    box: tuple[float, float, float, float],
    *,
    signed: bool = True,
    style: Style | None = None,
    area: Tensor | None = None,
) -> Image.Image:
    """Draw a map over the whole photograph that it is of a part of, at the photograph's own size.

    The map is interpolated linearly, as `afmi.maps.upsample` does. A line, white inside and black
    outside, shows what the network saw, where that is not all.

    Args:
        photograph: uint8 (H, W, 3).
        map: (h, w).
        box: the map's left, upper, right and lower edge in pixels of the photograph; see
            `afmi.transforms.crop_box`.
        signed: as of `heatmap`.
        style: as of `overlay`.
        area: bool (h, w), of which the outline is drawn; None: of nothing.

    Returns:
        RGB, W × H pixels.
    """
    style = style or Style()
    _values(map)
    scale = display_range(map, signed=signed)
    values = _values(style.drawn(map, signed=signed))
    height, width = photograph.shape[:2]
    left, top, right, bottom = box
    rows = _between(height, top, bottom, values.shape[0])
    columns = _between(width, left, right, values.shape[1])
    nothing = 0.0 if signed else scale.low
    picture = np.empty((height, width, 3), np.uint8)
    step = max(_STRIP // width, 1)
    for start in range(0, height, step):  # in strips, since colours of doubles take much memory
        strip = slice(start, start + step)
        seen = rows.inside[strip, None] & columns.inside
        there = np.where(seen, _interpolated(values, rows.part(strip), columns), nothing)
        drawn = _laid_over(_greyed(photograph[strip] / 255), there, scale, style)
        picture[strip] = np.rint(drawn.clip(0, 1) * 255)
    drawn = Image.fromarray(picture)
    if not (rows.inside.all() and columns.inside.all()):
        _draw_frame(drawn, box)
    return drawn if area is None else outlined(drawn, _of_photograph(area, rows, columns))


@dataclass(frozen=True)
class _Between:
    """Which of a map's numbers the pixels along one side of a photograph lie between.

    Attributes:
        inside: whether the map reaches the pixel, bool (pixels,).
        first: the number before it, int (pixels,).
        second: the one after it.
        share: of the second.
    """

    inside: np.ndarray
    first: np.ndarray
    second: np.ndarray
    share: np.ndarray

    @property
    def nearest(self) -> np.ndarray:
        """The number that is nearest, int (pixels,)."""
        return np.where(self.share < 0.5, self.first, self.second)

    def part(self, some: slice) -> _Between:
        return _Between(*(getattr(self, name)[some] for name in self.__dataclass_fields__))


def _between(pixels: int, start: float, end: float, numbers: int) -> _Between:
    middles = np.arange(pixels) + 0.5
    inside = (middles >= start) & (middles <= end)
    place = ((middles - start) / (end - start) * numbers - 0.5).clip(0, numbers - 1)
    first = np.floor(place).astype(int)
    return _Between(inside, first, np.minimum(first + 1, numbers - 1), place - first)


def _interpolated(values: np.ndarray, rows: _Between, columns: _Between) -> np.ndarray:
    share = rows.share[:, None]
    lines = values[rows.first] * (1 - share) + values[rows.second] * share
    return lines[:, columns.first] * (1 - columns.share) + lines[:, columns.second] * columns.share


def _of_photograph(area: Tensor, rows: _Between, columns: _Between) -> Tensor:
    """Return in which pixels of the photograph an area lies, bool (H, W)."""
    lines = area.cpu().numpy()[rows.nearest] & rows.inside[:, None]
    return torch.from_numpy(lines[:, columns.nearest] & columns.inside)


def _draw_frame(picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    width = max(round(max(picture.size) / _LINES_ACROSS / 2), 1)
    left, top, right, bottom = (round(edge) for edge in box)
    draw = ImageDraw.Draw(picture)
    outside = (left - width, top - width, right + width - 1, bottom + width - 1)
    draw.rectangle(outside, outline="black", width=width)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="white", width=width)


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
    window = 2 * by + 1
    spread = F.pad(area, (by,) * 4, value=beyond)
    for side in (0, 1):
        reached = 1
        while reached < window:  # in steps that double: a photograph's lines are wide
            step = min(reached, window - reached)
            left = spread.shape[side] - step
            spread = spread.narrow(side, 0, left) | spread.narrow(side, step, left)
            reached += step
    return spread


def colorbar(scale: Scale, width: int, height: int, style: Style | None = None) -> Image.Image:
    """Draw the colours that `heatmap` uses, from the lowest value at the left to the highest.

    Args:
        scale: of the map, as `display_range` gives it.
        width: in pixels.
        height: in pixels.
        style: of the map; what is not drawn of it has the colour of zero here too.
    """
    if not scale.low < scale.high:
        raise UsageError(f"expected low below high, got {scale.low} and {scale.high}")
    style = style or Style()
    values = torch.linspace(scale.low, scale.high, width, dtype=torch.float64, device="cpu")
    shown = style.drawn(values, signed=scale.signed).numpy()
    row = _pick((shown - scale.low) / (scale.high - scale.low), style.colors(scale.signed))
    return _to_picture(np.broadcast_to(row, (height, width, 3)))
