"""Lay out pictures in grids, with titles that never overlap, and write figures as PNG.

Nothing here touches pyplot or any other state of the process, so threads may draw at once.
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
from PIL import Image

from afmi.errors import UsageError
from afmi.files import write_files
from afmi.pictures.maps import Scale
from afmi.pictures.plots import Style, colorbar

# matplotlib takes a second to import, so it is imported when something is drawn.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

__all__ = ["Panel", "enlarge", "figure_png", "grid", "on_axes", "save_png"]


@dataclass(frozen=True)
class Panel:
    """One picture of a grid.

    Attributes:
        picture: what to show; None leaves the place empty.
        title: above it; wrapped to two lines, then cut with an ellipsis.
        subtitle: below the title, smaller and grey; likewise.
        scale: of a map; draws its colour bar below the picture.
        ends: what the scale's highest and lowest values stand for, below its ends.
        style: of the map, for the bar's colours.
    """

    picture: Image.Image | None
    title: str = ""
    subtitle: str = ""
    scale: Scale | None = None
    ends: tuple[str, str] | None = None
    style: Style | None = None


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


def _height(role: str) -> float:
    """Return the distance from one line of text to the next."""
    return _SIZES[role] * _LINE


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
        """Break a text into lines no wider than ``width``; an ellipsis replaces the rest."""
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

    def lines(self, lines: Sequence[str], x: float, y: float, role: str, **style: Any) -> float:
        """Put lines below one another from ``y`` down; return where the next one would begin."""
        for line in lines:
            self.text(x, y, line, role, **style)
            y += _height(role)
        return y

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


def enlarge(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Fit a picture into a box of pixels, keeping its shape.

    Bicubic, both ways: nearest would show the blocks of a 128-pixel photograph, not its subject.
    """
    scale = min(width / picture.width, height / picture.height)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


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
        A matplotlib figure outside pyplot's global state: save it with `save_png`, or as PDF or SVG
        with ``savefig``.

    Raises:
        UsageError: when there is no panel, panels are too small for words, or the number of titles
            is not that of the rows or columns.
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
    left = _MARGIN + (_height("column") + _GAP / 2 if row_titles else 0)
    width = columns * side + (columns - 1) * _GAP
    y: float = _MARGIN
    if title:
        lines = sheet.wrap(title, "heading", left - _MARGIN + width, 3)
        y = sheet.lines(lines, _MARGIN, y, "heading") + _GAP / 2
    if column_titles:
        wrapped = [sheet.wrap(text, "column", side) for text in column_titles]
        for column, lines in enumerate(wrapped):
            sheet.lines(lines, left + column * (side + _GAP) + side / 2, y, "column", ha="center")
        y += max(map(len, wrapped)) * _height("column") + _GAP / 4
    for row, row_title in zip(rows, row_titles or [""] * len(rows), strict=True):
        y = _draw_row(sheet, row, row_title, left, y, side)
    if note:
        lines = sheet.wrap(note, "note", left - _MARGIN + width, 3)
        y = sheet.lines(lines, _MARGIN, y, "note", color=_FAINT) + _GAP / 2
    return sheet.finish(left + width + _MARGIN, y - _GAP + _MARGIN)


def _draw_row(
    sheet: _Sheet, row: Sequence[Panel], title: str, left: float, y: float, side: int
) -> float:
    """Draw a row of panels with its top at ``y``; return the top of what comes below it."""
    titles = [sheet.wrap(panel.title, "title", side) for panel in row]
    subtitles = [sheet.wrap(panel.subtitle, "subtitle", side) for panel in row]
    text_heights = [
        len(first) * _height("title") + len(second) * _height("subtitle")
        for first, second in zip(titles, subtitles, strict=True)
    ]
    tallest_text = max(text_heights)
    pictures = [panel.picture and enlarge(panel.picture, side, 2 * side) for panel in row]
    top = y + (tallest_text + _GAP / 4 if tallest_text else 0)
    tallest = max((picture.height for picture in pictures if picture), default=side)
    for column, (panel, picture) in enumerate(zip(row, pictures, strict=True)):
        x = left + column * (side + _GAP)
        # Short titles stay close to their pictures.
        below = sheet.lines(titles[column], x, y + tallest_text - text_heights[column], "title")
        sheet.lines(subtitles[column], x, below, "subtitle", color=_FAINT)
        if picture:
            sheet.picture(x + (side - picture.width) / 2, top, picture)
        if panel.scale:
            _draw_scale(sheet, panel, x, top + tallest + _GAP / 4, side)
    for line in sheet.wrap(title, "row", tallest, 1):
        style = {"rotation": 90, "va": "center", "rotation_mode": "default"}
        sheet.text(_MARGIN, top + tallest / 2, line, "row", **style)
    scales = _GAP / 4 + _BAR + _height("scale") if any(panel.scale for panel in row) else 0
    scales += max((_ends_height(sheet, panel, side) for panel in row), default=0)
    return top + tallest + scales + _GAP


def _ends(sheet: _Sheet, panel: Panel, width: float) -> tuple[list[str], list[str]]:
    """Return the lines below the lowest and the highest value of a panel's scale."""
    highest, lowest = panel.ends or ("", "")
    half = (width - _GAP / 2) / 2
    return sheet.wrap(lowest, "scale", half, 3), sheet.wrap(highest, "scale", half, 3)


def _ends_height(sheet: _Sheet, panel: Panel, width: float) -> float:
    return max(map(len, _ends(sheet, panel, width))) * _height("scale")


def _draw_scale(sheet: _Sheet, panel: Panel, x: float, y: float, width: float) -> None:
    scale = panel.scale
    assert scale is not None
    sheet.picture(x, y, colorbar(scale, round(width), _BAR, panel.style))
    y += _BAR + 3
    lowest, highest = _number(scale.low), _number(scale.high)
    sheet.text(x, y, lowest, "scale", color=_FAINT)
    sheet.text(x + width, y, highest, "scale", ha="right", color=_FAINT)
    widest = max(sheet.width(lowest, "scale"), sheet.width(highest, "scale"))
    if scale.signed and 2 * widest + 3 * sheet.width("0", "scale") < width:
        sheet.text(x + width / 2, y, "0", "scale", ha="center", color=_FAINT)
    y += _height("scale")
    left, right = _ends(sheet, panel, width)
    sheet.lines(left, x, y, "scale")
    sheet.lines(right, x + width, y, "scale", ha="right")


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def on_axes(axes: Axes, picture: Image.Image, title: str, scale: Scale, style: Style) -> Figure:
    """Draw a picture of a map in axes of the user's figure, with its title and colour bar.

    Args:
        axes: of matplotlib.
        picture: what to show.
        title: above it.
        scale: of the map.
        style: of the map.

    Returns:
        The figure of the axes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    axes.set_title(title, wrap=True, parse_math=False)
    figure: Any = axes.figure
    colors = np.asarray(colorbar(scale, 511, 1, style))[0] / 255
    bar = ScalarMappable(Normalize(scale.low, scale.high), ListedColormap(colors))
    figure.colorbar(bar, ax=axes, fraction=0.046, pad=0.04)
    return figure


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
    """Write a figure or picture as PNG, whole or not at all.

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
