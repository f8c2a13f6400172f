"""What Table 1 and Figures 6 and 9 share: insertion measured over many pictures, resumable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from afmi.evaluation import Piece, Results, evaluate
from afmi.experiments.shared.base import Experiment, Request, Result, networks, write_csv
from afmi.experiments.shared.published import ACCURACY_AUC, IMAGES, METHODS, SECONDS
from afmi.network.classifier import Classifier
from afmi.pictures import figures
from afmi.progress import report as report_progress
from afmi.report import write_report
from afmi.report.summary import Curves, Summary, summarise
from afmi.specs import key_of

__all__ = [
    "INSERTED",
    "Measured",
    "Panel",
    "accuracy_panel",
    "curves_figure",
    "measured",
    "softmax_panel",
]

INSERTED = ("Random", *METHODS)
"""The methods of Table 1."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one network.

    Attributes:
        model: the network.
        summary: of its evaluation.
        page: the HTML report.
    """

    model: Classifier
    summary: Summary
    page: Path

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each method, with the paper's figures beside ours."""
        published = ACCURACY_AUC.get(self.model.name, {})
        return [
            {
                "network": self.model.name,
                "method": m.label,
                "images": m.done - m.failed,
                "Accuracy-AUC": m.accuracy.value if m.accuracy else math.nan,
                "low": m.accuracy.low if m.accuracy else math.nan,
                "high": m.accuracy.high if m.accuracy else math.nan,
                "paper": published.get(m.label),
                "Softmax-AUC": m.softmax_mean.value if m.softmax_mean else math.nan,
                "s/image": m.seconds.value if m.seconds else math.nan,
                "paper, s/image": SECONDS.get(m.label) if published else None,
            }
            for m in self.summary.methods
        ]


def measured(experiment: Experiment, request: Request) -> list[Measured]:
    """Evaluate insertion on each network; results in the same folder are gone on with.

    Args:
        experiment: names the networks and methods of the paper.
        request: ``imagenet`` is any data that `afmi.evaluation.open_images` takes.

    Raises:
        ModelError: when a network cannot be had.
    """
    assert request.imagenet is not None
    found = []
    for model in networks(experiment, request):
        folder = request.out / "insertion" / key_of(model.name)
        teller = _Teller(request, model)
        evaluate(
            model,
            request.imagenet,
            folder,
            methods=request.methods or list(experiment.methods),
            limit=request.limit or IMAGES,
            on_begin=teller.begin,
            on_method=lambda label, _, name=model.name: request.report(f"{name}: {label} done"),
            on_refusal=teller.refusal,
        )
        published = ACCURACY_AUC.get(model.name)
        files = write_report(folder, beside=published)
        found.append(Measured(model, summarise(Results.open(folder)), files["page"]))
    return found


class _Teller:
    def __init__(self, request: Request, model: Classifier) -> None:
        self._request, self._name = request, model.name

    def begin(self, piece: Piece, done: float, total: float) -> None:
        report_progress(f"{self._name}: {piece.label}", int(done), int(total))

    def refusal(self, label: str, reason: str) -> None:
        self._request.report(f"{self._name}: {label} left out: {reason}")


@dataclass(frozen=True)
class Panel:
    """One plot: a heading, what is up, and a line of heights (in percent, height) per method."""

    title: str
    ylabel: str
    lines: Sequence[tuple[str, np.ndarray, np.ndarray]]


def accuracy_panel(one: Measured) -> Panel:
    """Return the accuracy curves of one network."""
    lines = [
        (m.label, c.percents, np.array([estimate.value for estimate in c.accuracy]))
        for m, c in _curves(one)
    ]
    return Panel(one.model.name, "Accuracy", lines)


def softmax_panel(one: Measured) -> Panel:
    """Return the curves of one network's mean softmax ratio."""
    lines = [
        (m.label, c.percents, np.array([estimate.value for estimate in c.ratio_mean]))
        for m, c in _curves(one)
        if c.ratio_mean
    ]
    return Panel(one.model.name, "Softmax ratio", lines)


def _curves(one: Measured) -> list[tuple[Any, Curves]]:
    return [(m, m.curves) for m in one.summary.methods if m.curves is not None]


def curves_figure(
    experiment: Experiment, request: Request, found: Sequence[Measured], panels: Sequence[Panel]
) -> Result:
    """Draw panels side by side, and write them, their points and the areas beside the paper's.

    Raises:
        AfmiError: when a file cannot be written.
    """
    figure = Figure(figsize=(5.4 * len(panels), 4.2), dpi=160, layout="constrained")
    labels = list(dict.fromkeys(label for panel in panels for label, _, _ in panel.lines))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, x, y in panel.lines:
            place = labels.index(label)
            axes.plot(
                x,
                y,
                label=label,
                color=f"C{place % 10}",
                linestyle=("-", "--", ":")[place // 10 % 3],
                linewidth=1.6,
            )
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("PI: share of the pixels kept (%)")
        axes.set_ylabel(panel.ylabel)
        axes.set_xlim(0, 100)
        # A few pictures of tiny p can make a mean ratio huge.
        tops = [float(np.nanmax(y)) for _, _, y in panel.lines]
        axes.set_ylim(0, min(max([1.05, *tops]) * 1.02, 3))
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    points = [
        {"network": p.title, "curve": p.ylabel, "method": label, "PI": percent, "value": value}
        for p in panels
        for label, x, y in p.lines
        for percent, value in zip(x.tolist(), y.tolist(), strict=True)
    ]
    rows = [row for one in found for row in one.rows()]
    files = (
        figures.save_png(figure, request.out / f"{experiment.name}.png"),
        write_csv(request.out / f"{experiment.name}.csv", rows),
        write_csv(request.out / f"{experiment.name}-points.csv", points),
    )
    return Result(files, tuple(rows))
