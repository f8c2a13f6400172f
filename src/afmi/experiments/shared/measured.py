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
from afmi.report.evaluation_report import write_summary
from afmi.report.statistics import Estimate
from afmi.report.summary import Summary, summarise
from afmi.specs import key_of

__all__ = ["INSERTED", "Measured", "Panel", "curves_figure", "curves_panel", "measured"]

INSERTED = ("Random", *METHODS)
"""The methods of Table 1."""
_UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


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
                "Accuracy-AUC": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "paper": published.get(m.label),
                "Softmax-AUC": m.averages.get("insertion/softmax_auc_mean", _UNKNOWN).value,
                "s/image": m.averages.get("cost/seconds", _UNKNOWN).value,
                "paper, s/image": SECONDS.get(m.label) if published else None,
            }
            for m in self.summary.methods
            for accuracy in [m.averages.get("insertion/accuracy_auc", _UNKNOWN)]
        ]


def measured(experiment: Experiment, request: Request) -> list[Measured]:
    """Evaluate insertion on each network; an evaluation that was interrupted resumes.

    Raises:
        ModelError: when a network cannot be built or its weights are missing.
    """
    assert request.imagenet is not None
    measurements = []
    for model in networks(experiment, request):
        folder = request.out / "insertion" / key_of(model.name)

        def progress(piece: Piece, done: float, total: float, name: str = model.name) -> None:
            report_progress(f"{name}: {piece.label}", int(done), int(total))

        def refusal(label: str, reason: str, name: str = model.name) -> None:
            request.report(f"{name}: {label} left out: {reason}")

        evaluate(
            model,
            request.imagenet,
            folder,
            methods=request.methods or list(experiment.methods),
            limit=request.limit or IMAGES,
            on_begin=progress,
            on_method=lambda label, _, name=model.name: request.report(f"{name}: {label} done"),
            on_refusal=refusal,
        )
        summary = summarise(Results.open(folder))
        files = write_summary(summary, beside=ACCURACY_AUC.get(model.name))
        measurements.append(Measured(model, summary, folder / files["page"].name))
    return measurements


@dataclass(frozen=True)
class Panel:
    """One plot: its title, its vertical axis, and each method's label, percents and heights."""

    title: str
    ylabel: str
    lines: Sequence[tuple[str, np.ndarray, np.ndarray]]


def curves_panel(one: Measured, curve: str) -> Panel:
    """Return a panel of one network: the curves of all methods in a column of insertion."""
    key = f"insertion/{curve}"
    curves = [(m.label, m.curves[key]) for m in one.summary.methods if key in m.curves]
    lines = [(label, curve.percents, curve.heights) for label, curve in curves]
    return Panel(one.model.name, one.summary.columns[key].title, lines)


def curves_figure(
    experiment: Experiment, request: Request, networks: Sequence[Measured], panels: Sequence[Panel]
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
            style: Any = {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 10 % 3]}
            axes.plot(x, y, label=label, linewidth=1.6, **style)
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
    rows = [row for one in networks for row in one.rows()]
    files = (
        figures.save_png(figure, request.out / f"{experiment.name}.png"),
        write_csv(request.out / f"{experiment.name}.csv", rows),
        write_csv(request.out / f"{experiment.name}-points.csv", points),
    )
    return Result(files, tuple(rows))
