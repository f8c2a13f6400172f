"""Draw an evaluation's figures as SVG: sharp at any size, legible on light pages and dark ones.

Lines differ by colours that colour-blind readers can distinguish, and beyond seven by dashes. Text
stays text, in the page's own font, so that it can be searched, copied and read out. Nothing here
touches pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from afmi.report.statistics import Estimate

__all__ = ["MOST_LINES", "Interval", "Line", "draw_intervals", "draw_lines", "svg_text"]

MOST_LINES = 7
"""How many lines share a panel; where there are more, each family has its own."""

# Stand-ins, which become the page's own colours: so one drawing fits light and dark.
_INK, _SOFT, _RULE, _FAINT = "#010203", "#010204", "#010205", "#010206"
_SERIES = tuple(f"#0102{10 + i}" for i in range(MOST_LINES))
_PAGE = {_INK: "--ink", _SOFT: "--soft", _RULE: "--line", _FAINT: "--faint"}
_PAGE |= {color: f"--series-{i}" for i, color in enumerate(_SERIES)}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_FAMILIES = ("feature map", "region", "pixel", "control")
_FONT = "DejaVu Sans"  # the one that matplotlib ships


@dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        label: the method.
        family: its family; methods of one share a panel where there are many.
        x: (P,), in percent.
        y: (P,).
        area: under it, for the legend; None: no area is told.
        style: number of its colour and dashes, the same in every drawing of the method.
    """

    label: str
    family: str
    x: np.ndarray
    y: np.ndarray
    area: float | None = None
    style: int = 0


@dataclass(frozen=True)
class Interval:
    """One method's average."""

    label: str
    family: str
    estimate: Estimate
    finished: bool = True


def draw_lines(
    lines: Sequence[Line], xlabel: str, ylabel: str, *, ylim: tuple[float, float]
) -> Figure:
    """Draw curves over a share, in one panel, or one for each family where there are many lines.

    Args:
        lines: one or more, in the order of the legend.
        xlabel: what the share is.
        ylabel: what the height is.
        ylim: what is shown of the heights; what lies above is cut off.
    """
    together = len(lines) <= MOST_LINES
    families = [f for f in _FAMILIES if any(line.family == f for line in lines)]
    families += sorted({line.family for line in lines} - set(families))
    panels = (
        [("", list(lines))]
        if together
        else [(family, [line for line in lines if line.family == family]) for family in families]
    )
    columns = 1 if together else 2
    rows = -(-len(panels) // columns)
    deep = max(-(-len(own) // 2) for _, own in panels)
    width, plot, legend = (8.2, 3.9, 0.0) if together else (10.4, 2.9, 0.19 * deep)
    high = plot + legend + (0.6 if together else 0.95)
    figure = Figure(figsize=(width, rows * high), facecolor="none")
    FigureCanvasSVG(figure)
    for index, (family, own) in enumerate(panels):
        row, column = divmod(index, columns)
        left = 0.62 + column * width / columns
        across = width / columns - 0.62 - (2.75 if together else 0.15)
        bottom = (rows - row - 1) * high + legend + 0.52
        axes = figure.add_axes(
            (
                left / width,
                bottom / (rows * high),
                across / width,
                plot / (rows * high),
            )
        )
        _style(axes)
        for line in lines if not together else ():
            if line.family != family:
                axes.plot(line.x, line.y, color=_FAINT, linewidth=0.8, zorder=1)
        handles = [
            axes.plot(
                line.x,
                line.y,
                color=_SERIES[line.style % MOST_LINES],
                linestyle=_DASHES[line.style // MOST_LINES % len(_DASHES)],
                linewidth=1.8,
                zorder=3,
                solid_capstyle="round",
            )[0]
            for line in own
        ]
        axes.set_xlim(0, 100.5)
        axes.set_ylim(*ylim)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel(f"{xlabel} (%)", labelpad=3)
        if column == 0:
            axes.set_ylabel(ylabel)
        if family:
            axes.set_title(_capital(family), loc="left", fontweight="bold", pad=6)
        names = [
            line.label if line.area is None else f"{line.area:.3f}  {_short(line.label)}"
            for line in own
        ]
        place: dict[str, Any] = (
            {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02)}
            if together
            else {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.46 / plot), "ncols": 2}
        )
        drawn = axes.legend(
            handles,
            names,
            frameon=False,
            handlelength=2.4,
            borderaxespad=0,
            labelspacing=0.5 if together else 0.35,
            columnspacing=1.2,
            prop={"family": _FONT, "size": 9 if together else 8.5},
            **place,
        )
        for text in drawn.get_texts():
            text.set_color(_INK)
        _letters(axes, drawn.get_texts())
    return figure


def draw_intervals(intervals: Sequence[Interval], xlabel: str) -> Figure:
    """Draw averages with their 95 % intervals, one below the other; hollow: not finished.

    Args:
        intervals: one or more, the best first.
        xlabel: what is averaged.
    """
    count = len(intervals)
    width, top, bottom, each = 8.2, 0.1, 0.85, 0.27
    height = top + bottom + each * count
    figure = Figure(figsize=(width, height), facecolor="none")
    FigureCanvasSVG(figure)
    left, right = 0.35 + 0.085 * max(len(_short(i.label)) for i in intervals), 0.8
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, each * count / height)
    )
    _style(axes)
    known = [f for f in _FAMILIES if any(i.family == f for i in intervals)]
    known += sorted({i.family for i in intervals} - set(known))
    for place, interval in enumerate(intervals):
        color = _SERIES[known.index(interval.family) % MOST_LINES]
        estimate = interval.estimate
        if np.isfinite(estimate.low):
            axes.plot(
                [estimate.low, estimate.high], [place] * 2, color=color, linewidth=2.2, zorder=3
            )
        axes.plot(
            [estimate.value],
            [place],
            "o",
            color=color,
            markersize=6,
            markerfacecolor=color if interval.finished else "none",
            zorder=4,
        )
        axes.annotate(
            f"{estimate.value:.3f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [_short(i.label) for i in intervals])
    for text in axes.get_yticklabels():
        text.set_color(_INK)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(xlabel, labelpad=3)
    named = [family for family in known if family]
    if named:
        points = [
            axes.plot([], [], "o", color=_SERIES[known.index(f) % MOST_LINES])[0] for f in named
        ]
        drawn = axes.legend(
            points,
            [_capital(family) for family in named],
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.5 / (each * count)),
            borderaxespad=0,
            ncols=4,
            handletextpad=0.1,
            prop={"family": _FONT, "size": 8.5},
        )
        for text in drawn.get_texts():
            text.set_color(_SOFT)
    _letters(axes, axes.texts)
    return figure


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as SVG that can stand within a page of HTML.

    Args:
        figure: one that this module drew.
        name: a word that no other drawing of the page has; it keeps their parts apart.
    """
    buffer = io.BytesIO()
    # Not savefig, which obeys the user's rcParams (a tight bounding box would cut margins).
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(buffer)
    text = buffer.getvalue().decode()
    text = _bare_head(text[text.index("<svg") :])
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    # New ids are drawn at random each time.
    ids = list(dict.fromkeys(re.findall(r'\bid="([^"]+)"', text)))
    numbers = {old: f"{name}-{number}" for number, old in enumerate(ids)}

    def renamed(wrap: str) -> Callable[[re.Match[str]], str]:
        return lambda match: wrap.format(numbers.get(match[1], match[1]))

    text = re.sub(r'\bid="([^"]+)"', renamed('id="{}"'), text)
    text = re.sub(r'href="#([^"]+)"', renamed('href="#{}"'), text)
    text = re.sub(r"url\(#([^)]+)\)", renamed("url(#{})"), text)
    for color, variable in _PAGE.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\n\s*\n+", "\n", text)


def _bare_head(text: str) -> str:
    """Leave the size to the page."""
    head, end, rest = text.partition(">")
    attributes = dict(re.findall(r'([\w:]+)="([^"]*)"', head))
    kept = ("xmlns:xlink", "viewBox", "xmlns", "version")
    return (
        "<svg " + " ".join(f'{k}="{attributes[k]}"' for k in kept if k in attributes) + end + rest
    )


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_SOFT)
        spine.set_linewidth(0.8)
    axes.grid(True, color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=9, length=3, width=0.8)
    axes.title.set_color(_INK)


def _letters(axes: Axes, more: Sequence[Any]) -> None:
    """Give every text the font that matplotlib ships; nothing in it is a formula."""
    labels = (axes.xaxis.label, axes.yaxis.label)
    for text in labels:
        text.set_color(_SOFT)
        text.set_fontsize(9)
    title = axes.get_title(loc="left")
    if title:
        axes.set_title(title, loc="left", color=_INK, fontsize=10, fontweight="bold", pad=6)
    every = [*labels, *axes.get_xticklabels(), *axes.get_yticklabels(), *more]
    for text in every:
        text.set_fontfamily(_FONT)
        text.set_parse_math(False)
        if text in more:
            text.set_fontsize(min(text.get_fontsize(), 9))


def _short(label: str, limit: int = 34) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
