"""Draw an evaluation's figures as SVG: sharp at any size, legible on light pages and dark ones.

Lines differ by colours that colour-blind readers can distinguish, and beyond seven by dashes. Text
stays text, in the font of the page, so that it can be searched, copied and read out. Nothing here
touches pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from afmi.report.statistics import Estimate

__all__ = ["MOST_LINES", "Interval", "Line", "draw_intervals", "draw_lines", "svg_text"]

MOST_LINES = 7
"""How many lines share a panel; where there are more, each family has a panel."""

# Placeholders for the colours of the page, so that one drawing fits light and dark.
_INK, _SOFT, _RULE, _FAINT = "#010203", "#010204", "#010205", "#010206"
_SERIES = tuple(f"#0102{10 + i}" for i in range(MOST_LINES))
_PAGE = {_INK: "--ink", _SOFT: "--soft", _RULE: "--line", _FAINT: "--faint"}
_PAGE |= {color: f"--series-{i}" for i, color in enumerate(_SERIES)}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_FAMILIES = ("feature map", "region", "pixel", "control")
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib; texts are laid out with it
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": _SOFT,
    "axes.labelpad": 3,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    **{
        f"{axis}tick.{name}": value
        for axis in "xy"
        for name, value in (
            ("color", _SOFT),
            ("labelsize", 9),
            ("major.size", 3),
            ("major.width", 0.8),
        )
    },
    "legend.borderaxespad": 0,
    "legend.frameon": False,
    "legend.loc": "upper left",
}


@dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        label: the method.
        family: its family; methods of one share a panel where there are many.
        x: (P,), in percent.
        y: (P,).
        area: under it, for the legend; None for none.
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


@matplotlib.rc_context(_STYLE)
def draw_lines(
    lines: Sequence[Line], xlabel: str, ylabel: str, *, ylim: tuple[float, float]
) -> Figure:
    """Draw one or more curves over a share, in one panel, or one a family where there are many.

    Args:
        lines: in the order of the legend.
        xlabel: of the share.
        ylabel: of the height.
        ylim: the heights shown; what lies above is cut off.
    """
    together = len(lines) <= MOST_LINES
    panels = {"": list(lines)}
    if not together:
        panels = {f: [line for line in lines if line.family == f] for f in _families(lines)}
    columns = 1 if together else 2
    rows = -(-len(panels) // columns)
    deep = max(-(-len(shown) // 2) for shown in panels.values())
    width, plot, legend = (8.2, 3.9, 0.0) if together else (10.4, 2.9, 0.19 * deep)
    high = plot + legend + (0.6 if together else 0.95)
    figure = Figure(figsize=(width, rows * high), facecolor="none")
    for index, (family, shown) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        left = 0.62 + column * width / columns
        across = width / columns - 0.62 - (2.75 if together else 0.15)
        bottom = (rows - row - 1) * high + legend + 0.52
        axes = figure.add_axes(
            (left / width, bottom / (rows * high), across / width, plot / (rows * high))
        )
        for line in lines:
            if family and line.family != family:
                axes.plot(line.x, line.y, color=_FAINT, linewidth=0.8, zorder=1)
        for line in shown:
            area = "" if line.area is None else f"{line.area:.3f}  "
            axes.plot(
                line.x,
                line.y,
                label=f"{area}{_short(line.label)}",
                color=_SERIES[line.style % MOST_LINES],
                linestyle=_DASHES[line.style // MOST_LINES % len(_DASHES)],
                linewidth=1.8,
                zorder=3,
                solid_capstyle="round",
            )
        axes.set(xlim=(0, 100.5), ylim=ylim, xticks=range(0, 101, 20), xlabel=f"{xlabel} (%)")
        axes.set_ylabel("" if column else ylabel)
        axes.set_title(_capital(family))
        axes.legend(
            handlelength=2.4,
            labelspacing=0.5 if together else 0.35,
            columnspacing=1.2,
            fontsize=9 if together else 8.5,
            bbox_to_anchor=(1.02, 1.02) if together else (-0.02, -0.46 / plot),
            ncols=columns,
        )
    return figure


@matplotlib.rc_context(_STYLE)
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
    left, right = 0.35 + 0.085 * max(len(_short(i.label)) for i in intervals), 0.8
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, each * count / height)
    )
    families = _families(intervals)
    colors = {family: _SERIES[i % MOST_LINES] for i, family in enumerate(families)}
    for place, interval in enumerate(intervals):
        estimate, color = interval.estimate, colors[interval.family]
        if np.isfinite(estimate.low):
            ends = [estimate.low, estimate.high]
            axes.plot(ends, [place] * 2, color=color, linewidth=2.2, zorder=3)
        face = color if interval.finished else "none"
        marker: Any = {"color": color, "markersize": 6, "markerfacecolor": face}
        axes.plot([estimate.value], [place], "o", zorder=4, **marker)
        axes.annotate(
            f"{estimate.value:.3f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(ylim=(count - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(count), [_short(i.label) for i in intervals])
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    if named := [family for family in families if family]:
        axes.legend(
            [axes.plot([], [], "o", color=colors[family])[0] for family in named],
            [_capital(family) for family in named],
            bbox_to_anchor=(-0.02, -0.5 / (each * count)),
            ncols=4,
            handletextpad=0.1,
            fontsize=8.5,
            labelcolor=_SOFT,
        )
    return figure


@matplotlib.rc_context(_STYLE)
def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as SVG that can stand within a page of HTML.

    Args:
        figure: one that this module drew.
        name: a word that no other drawing of the page has; it keeps their parts apart.
    """
    buffer = io.BytesIO()
    # Not savefig, which obeys the user's rcParams (a tight bounding box would cut margins).
    FigureCanvasSVG(figure).print_svg(buffer)
    text = buffer.getvalue().decode()
    # The size is left to the page.
    text = re.sub(r' width="[^"]*" height="[^"]*"', "", text[text.index("<svg") :], count=1)
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    # New ids are drawn at random each time.
    ids = list(dict.fromkeys(re.findall(r'\bid="([^"]+)"', text)))
    numbers = {old: f"{name}-{number}" for number, old in enumerate(ids)}
    references = r'(\bid="|href="#|url\(#)([^")]+)'
    text = re.sub(references, lambda match: match[1] + numbers.get(match[2], match[2]), text)
    for color, variable in _PAGE.items():
        text = text.replace(color, f"var({variable})")
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    return re.sub(r"\n\s*\n+", "\n", text)


def _families(drawn: Sequence[Line] | Sequence[Interval]) -> list[str]:
    """Return the families drawn, in their order."""
    present = {one.family for one in drawn}
    return [f for f in _FAMILIES if f in present] + sorted(present - set(_FAMILIES))


def _short(label: str, limit: int = 34) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
