"""Draw maps as pictures: heat maps, overlays, insertion views and grids of them.

One language of colour throughout: warm is evidence for the class, cool is evidence against it,
and the stronger the colour the stronger the evidence. Nothing here touches pyplot or any other
state of the process, so threads may draw at once.
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afmi.errors import ShapeError, UsageError
from afmi.files import write_files
from afmi.pictures.images import to_image
from afmi.pictures.maps import display_range, top_mask

# matplotlib takes a second to import, so it is imported when something is drawn.
if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

__all__ = [
    "Panel",
    "colorbar",
    "enlarge",
    "figure_png",
    "grid",
    "heatmap",
    "insertion",
    "overlay",
    "save_png",
]

# An odd number, so that one entry is exactly in the middle and belongs to zero alone.
_LEVELS = 511

# Overlays leave out the ends of inferno: the dark one is purple, which looks cool, and the pale one
# drowns in a bright photograph.
_WARM = (0.45, 0.93)
_MOST_OPAQUE = 0.75
_COOL = ((0.10, 0.25, 0.65), (0.10, 0.55, 0.90), (0.62, 0.95, 1.00))
_GREY = (0.299, 0.587, 0.114)


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


def heatmap(map: Tensor) -> Image.Image:
    """Draw a map by itself.

    A map without negative values goes from black (its lowest) over purple and orange to yellow,
    equal steps looking equal. A signed map goes from blue (against the class) over near-white,
    which is exactly zero, to red (for it). `afmi.maps.display_range` gives the ends.

    Args:
        map: (H, W).

    Returns:
        RGB, W × H pixels.

    Example:
        >>> heatmap(torch.tensor([[0.0, 1.0]])).getpixel((0, 0))
        (0, 0, 4)
    """
    values = _values(map)
    low, high = display_range(map)
    return _to_picture(_pick((values - low) / (high - low), "RdBu_r" if low < 0 else "inferno"))


def overlay(image: Tensor, map: Tensor) -> Image.Image:
    """Draw a map over its photograph.

    The photograph loses its colour and some light; the map glows on it: warm for the class, cool
    against it, brighter and more opaque the stronger. Where the map is zero, or lowest if it has no
    negative values, the photograph alone is seen.

    Args:
        image: (3, H, W), or grey (1, H, W), in [0, 1].
        map: (H, W).

    Returns:
        RGB, W × H pixels.
    """
    values = _values(map, image)
    low, high = display_range(map)
    strength = (np.abs(values) / high if low < 0 else (values - low) / (high - low)).clip(0, 1)
    photograph = image.detach().to("cpu", torch.float64).expand(3, -1, -1).numpy()
    grey = 0.03 + 0.6 * np.tensordot(_GREY, photograph, 1)[..., None]
    glow = np.where((values < 0)[..., None], _pick(strength, "cool"), _pick(strength, "warm"))
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


def colorbar(low: float, high: float, width: int, height: int) -> Image.Image:
    """Draw the colours that `heatmap` uses, from the lowest value at the left to the highest.

    Args:
        low: below zero for the signed colours; else it stands for black.
        high: not used but to say what the right end means.
        width: in pixels.
        height: in pixels.
    """
    if not low < high:
        raise UsageError(f"expected low below high, got {low} and {high}")
    row = _pick(np.linspace(0, 1, width), "RdBu_r" if low < 0 else "inferno")
    return _to_picture(np.broadcast_to(row, (height, width, 3)))


def enlarge(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Fit a picture into a box of pixels, keeping its shape.

    Bicubic, both ways: nearest would show the blocks of a 128-pixel photograph, not its subject.
    """
    scale = min(width / picture.width, height / picture.height)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Panel:
    """One picture of a grid.

    Attributes:
        picture: what to show; None leaves the place empty.
        title: above it; wrapped to two lines, then cut with an ellipsis.
        subtitle: below the title, smaller and grey; likewise.
        scale: (lowest, highest) value of a map; draws its colour bar below the picture.
    """

    picture: Image.Image | None
    title: str = ""
    subtitle: str = ""
    scale: tuple[float, float] | None = None


# All lengths in pixels. At 300 dots per inch four panels are as wide as a page of text, and the
# smallest letters are 5 points high; on a screen at 100 % they are 22 pixels.
_DPI = 300
_GAP = 28
_MARGIN = 40
_LINE = 1.3
_BAR = 14
_SIZES = {"heading": 38, "column": 32, "title": 28, "subtitle": 24, "scale": 22, "note": 22}
_BOLD = ("heading", "column", "row")
_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # for letters that the font lacks


@functools.cache
def _font(role: str) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    size = _SIZES["column" if role == "row" else role] * 72 / _DPI
    # The font that matplotlib ships, so that pictures look the same on every machine.
    return FontProperties(
        family="DejaVu Sans", size=size, weight="bold" if role in _BOLD else "normal"
    )


@functools.cache
def _known_characters(role: str) -> frozenset[int]:
    from matplotlib.font_manager import fontManager, get_font

    return frozenset(get_font(fontManager.findfont(_font(role))).get_charmap())


class _Sheet:
    """A figure that is laid out in pixels from the top left."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(1, 1), dpi=_DPI, facecolor="white")
        self.renderer: Any = FigureCanvasAgg(self.figure).get_renderer()
        self._waiting: list[tuple[str, float, float, str, dict[str, Any]]] = []
        self._pictures: list[tuple[Image.Image, float, float]] = []

    def width(self, text: str, role: str) -> float:
        return self.renderer.get_text_width_height_descent(text, _font(role), ismath=False)[0]

    def wrap(self, text: str, role: str, width: float, lines: int = 2) -> list[str]:
        """Break a text into lines no wider than ``width``; what is too much becomes an ellipsis."""
        known = _known_characters(role)
        plain = "".join(c if c.isspace() or ord(c) in known else _UNKNOWN for c in text)
        words, broken = plain.split(), []
        while words and len(broken) < lines:
            line = words.pop(0)
            while words and self.width(f"{line} {words[0]}", role) <= width:
                line += " " + words.pop(0)
            if len(broken) == lines - 1 and words:
                line += " …"
            if self.width(line, role) > width:
                line = line.removesuffix(" …")
                fits = range(len(line))
                end = bisect_left(
                    fits, True, key=lambda n: self.width(line[: n + 1] + "…", role) > width
                )
                line = line[:end].rstrip() + "…"
            broken.append(line)
        return broken

    def text(self, x: float, y: float, text: str, role: str, **style: Any) -> None:
        """Put one line with the top of its tallest letters at ``y``."""
        if "va" not in style:
            # By the baseline: aligned at the top, lines without tall letters would float up.
            y += 0.93 * _SIZES["column" if role == "row" else role]
        self._waiting.append((text, x, y, role, style))

    def picture(self, x: float, y: float, picture: Image.Image) -> None:
        self._pictures.append((picture, x, y))

    def finish(self, width: float, height: float) -> Figure:
        width, height = round(width), round(height)
        self.figure.set_size_inches(width / _DPI, height / _DPI)
        for picture, x, y in self._pictures:
            # On whole pixels and of the final size, so that nothing is resampled.
            x, y = round(x), round(y)
            box = (x / width, 1 - (y + picture.height) / height)
            axes = self.figure.add_axes((*box, picture.width / width, picture.height / height))
            axes.imshow(np.asarray(picture.convert("RGB")), interpolation="none", aspect="auto")
            axes.set_axis_off()
        for text, x, y, role, style in self._waiting:
            options: dict[str, Any] = {"ha": "left", "va": "baseline", "color": _INK, **style}
            self.figure.text(
                x / width,
                1 - y / height,
                text,
                fontproperties=_font(role),
                parse_math=False,
                usetex=False,
                **options,
            )
        return self.figure


def grid(
    rows: Sequence[Sequence[Panel]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    note: str = "",
    side: int = 480,
) -> Figure:
    """Draw panels side by side, with titles that neither overlap nor run out of the picture.

    Args:
        rows: panels from the top left; rows may differ in length.
        row_titles: one for each row, along its left edge; none: no titles.
        column_titles: one for each column, above the first row.
        title: above everything.
        note: small, below everything.
        side: the width of a panel, 240 pixels at least; pictures are fitted into it.

    Returns:
        A figure of matplotlib, which takes part in no global state: save it with `save_png`, or
        with its own ``savefig`` as PDF or SVG.

    Raises:
        UsageError: when there is no panel, panels are too small for words, or titles are not one
            for each row or column.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise UsageError("expected at least one panel, got none")
    if side < 240:
        raise UsageError(f"expected panels of at least 240 pixels, got side={side}")
    for what, titles, count in (("row", row_titles, len(rows)), ("column", column_titles, columns)):
        if titles and len(titles) != count:
            raise UsageError(f"expected {count} {what} titles, got {len(titles)}")
    sheet = _Sheet()
    heights = {role: size * _LINE for role, size in _SIZES.items()}
    left = _MARGIN + (heights["column"] + _GAP / 2 if row_titles else 0)
    inner = columns * side + (columns - 1) * _GAP
    y: float = _MARGIN

    def write(lines: Sequence[str], x: float, top: float, role: str, **style: Any) -> float:
        for line in lines:
            sheet.text(x, top, line, role, **style)
            top += heights[role]
        return top

    if title:
        y = write(sheet.wrap(title, "heading", left - _MARGIN + inner, 3), _MARGIN, y, "heading")
        y += _GAP / 2
    if column_titles:
        wrapped = [sheet.wrap(text, "column", side) for text in column_titles]
        for column, lines in enumerate(wrapped):
            write(lines, left + column * (side + _GAP) + side / 2, y, "column", ha="center")
        y += max(map(len, wrapped)) * heights["column"] + _GAP / 4
    for index, row in enumerate(rows):
        texts = [
            (sheet.wrap(p.title, "title", side), sheet.wrap(p.subtitle, "subtitle", side))
            for p in row
        ]
        tops = [
            len(first) * heights["title"] + len(second) * heights["subtitle"]
            for first, second in texts
        ]
        above = max(tops) + _GAP / 4 if any(tops) else 0
        fitted = [p.picture and enlarge(p.picture, side, 2 * side) for p in row]
        tall = max((picture.height for picture in fitted if picture), default=side)
        for column, panel in enumerate(row):
            x = left + column * (side + _GAP)
            top = y + max(tops) - tops[column]  # short titles stay close to their pictures
            top = write(texts[column][0], x, top, "title")
            write(texts[column][1], x, top, "subtitle", color=_FAINT)
            picture = fitted[column]
            if picture:
                sheet.picture(x + (side - picture.width) / 2, y + above, picture)
            if panel.scale:
                _draw_scale(sheet, panel.scale, x, y + above + tall + _GAP / 4, side)
        if row_titles:
            for line in sheet.wrap(row_titles[index], "row", tall, 1):
                middle = y + above + tall / 2
                sheet.text(
                    _MARGIN, middle, line, "row", rotation=90, va="center", rotation_mode="default"
                )
        y += above + tall
        if any(panel.scale for panel in row):
            y += _GAP / 4 + _BAR + heights["scale"]
        y += _GAP
    if note:
        lines = sheet.wrap(note, "note", left - _MARGIN + inner, 3)
        y = write(lines, _MARGIN, y, "note", color=_FAINT) + _GAP / 2
    return sheet.finish(left + inner + _MARGIN, y - _GAP + _MARGIN)


def _draw_scale(
    sheet: _Sheet, scale: tuple[float, float], x: float, y: float, width: float
) -> None:
    low, high = scale
    sheet.picture(x, y, colorbar(low, high, round(width), _BAR))
    y += _BAR + 3
    style = {"color": _FAINT}
    lowest, highest = _number(low), _number(high)
    sheet.text(x, y, lowest, "scale", **style)
    sheet.text(x + width, y, highest, "scale", ha="right", **style)
    widest = max(sheet.width(lowest, "scale"), sheet.width(highest, "scale"))
    if low < 0 and 2 * widest + 3 * sheet.width("0", "scale") < width:
        sheet.text(x + width / 2, y, "0", "scale", ha="center", **style)


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def figure_png(figure: Figure, file: Any) -> None:
    """Write a figure as PNG to an open binary file, pixel for pixel as it was laid out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Not savefig, which obeys the user's rcParams (a tight bounding box would cut margins).
    canvas = (
        figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    )
    # Photographs barely shrink by more effort, which would cost more time than explaining them.
    canvas.print_png(file, metadata={"Software": "afmi"}, pil_kwargs={"compress_level": 3})


def save_png(picture: Figure | Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a figure or picture as PNG; no one ever sees the file half written.

    Returns:
        The path.

    Raises:
        AfmiError: when the file cannot be written.
    """
    path = Path(path)
    if isinstance(picture, Image.Image):
        write_files({path: lambda file: picture.save(file, "PNG")})
    else:
        write_files({path: lambda file: figure_png(picture, file)})
    return path
