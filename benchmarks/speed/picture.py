"""Draw the rows: ratios with their middle halves and targets, and how cost grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .record import Row

__all__ = ["draw"]

MET, MISSED, PLAIN = "#1b7837", "#c51b7d", "#4575b4"
TICKS = (0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
GROWTH = "growth: "
UNITS = {
    "images": "images, A-FMI, cost of each",
    "classes": "classes of one image, A-FMI, cost of all",
    "stages": "stages behind the layer, A-FMI / forward",
    "masks": "masks, RISE, cost of each",
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write a picture for each scenario and device, and one of growth; return what was written."""
    drawn = []
    known = [row for row in rows if not math.isnan(row.ratio)]
    grown = [row for row in known if row.scenario.startswith(GROWTH)]
    plain = [row for row in known if not row.scenario.startswith(GROWTH)]
    for scenario, device in dict.fromkeys((row.scenario, row.device) for row in plain):
        some = [row for row in plain if (row.scenario, row.device) == (scenario, device)]
        name = f"benchmarks-{scenario.replace(' ', '-')}-{device}.png"
        drawn.append(_save(_ratios(some), folder / name))
    if grown:
        drawn.append(_save(_growth(grown), folder / "benchmarks-growth.png"))
    return drawn


def _ratios(rows: list[Row]) -> Figure:
    """One line for each ratio, the same ratio of all networks together."""
    kinds = list(dict.fromkeys((row.what, row.against) for row in rows))
    rows = sorted(rows, key=lambda row: kinds.index((row.what, row.against)))
    figure = Figure(figsize=(10, 0.2 * len(rows) + 1.3), layout="constrained")
    _panel(figure.subplots(), rows)
    first = rows[0]
    threads = f", {first.threads} threads" * (first.device == "cpu")
    figure.suptitle(
        f"{first.scenario[0].upper()}{first.scenario[1:]}: cost ratios, medians of alternating "
        f"rounds with their middle halves\n{first.machine}{threads}, {first.date}\n"
        "black mark: target; green: met, pink: not, blue: there is none",
        fontsize=10,
    )
    return figure


def _panel(axis: Axes, rows: list[Row]) -> None:
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        color = PLAIN
        if not math.isnan(row.target):
            color = MET if row.ratio <= row.target else MISSED
            axis.plot([row.target] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.4)
        axis.plot([row.low, row.high], [place, place], color=color, linewidth=3, alpha=0.45)
        axis.plot([row.ratio], [place], "o", color=color, markersize=4.5)
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set_xscale("log")
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    ticks = [t for t in TICKS if low * 0.8 <= t <= high * 1.25]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlim(min(low * 0.95, 0.95), max(high * 1.05, 1.05))
    axis.set_yticks(list(places), [_label(row) for row in rows], fontsize=7.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", color="lightgrey", linewidth=0.6)
    axis.set_axisbelow(True)


def _label(row: Row) -> str:
    where = f"{row.network}, {row.batch} × {row.size}²"
    return f"{row.what} / {row.against}:  {', '.join(filter(None, (where, row.setting)))}"


def _growth(rows: list[Row]) -> Figure:
    """One panel for each thing that grows."""
    units = [unit for unit in UNITS if any(row.scenario == GROWTH + unit for row in rows)]
    figure = Figure(figsize=(11, 3.1 * math.ceil(len(units) / 2)), layout="constrained")
    axes = figure.subplots(math.ceil(len(units) / 2), 2, squeeze=False).ravel()
    for axis in axes[len(units) :]:
        axis.set_axis_off()
    for axis, unit in zip(axes, units, strict=False):
        growing = [row for row in rows if row.scenario == GROWTH + unit]
        for name in dict.fromkeys((row.network, row.device, row.setting) for row in growing):
            line = [row for row in growing if (row.network, row.device, row.setting) == name]
            x = [row.x for row in line]
            axis.fill_between(x, [r.low for r in line], [r.high for r in line], alpha=0.2)
            axis.plot(x, [r.ratio for r in line], "o-", label=", ".join(filter(None, name)))
            for row in line:
                if not math.isnan(row.target):
                    axis.plot([row.x], [row.target], "_", color="black", markersize=16)
        if unit != "stages":
            axis.set_xscale("log")
        ticks = sorted({row.x for row in growing})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        tops = [max(row.high, 0.0 if math.isnan(row.target) else row.target) for row in growing]
        axis.set_ylim(0, 1.1 * max(tops))
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_title(UNITS[unit], loc="left", fontsize=10)
        axis.legend(fontsize=8, loc="lower right")
        axis.grid(color="lightgrey", linewidth=0.6)
    figure.suptitle(
        "Ratio to the first point of the line (of stages: to a forward pass); black mark: target",
        fontsize=10,
    )
    return figure


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(path)
    return path
