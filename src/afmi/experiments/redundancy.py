"""Strong Relevance, the paper's premise: which features can be derived from the others?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments.shared.base import Experiment, Request, Result, networks, write_csv
from afmi.experiments.shared.dependence import (
    effective_rank,
    mean_correlation,
    participation_ratio,
    predictability,
    removal,
)
from afmi.experiments.shared.granularities import EARLIER, Features, Granularities, collected
from afmi.network.classifier import Classifier
from afmi.pictures import figures
from afmi.progress import report as report_progress
from afmi.report.words import counted

__all__ = ["Redundancy"]

PICTURES = 1000
"""Pictures where ``--limit`` says no other number."""

FEATURES = 200
"""Features of each granularity that are compared, drawn at random; fewer of few pictures."""

NEAREST = 20
"""Features of the whole granularity from which each is predicted, too."""

FEWEST = 25
"""Pictures that are needed at least."""

SCORES = 10
"""Scores, those of the classes predicted most often, to which features are relevant or not."""

CONTROL = "control"


class Redundancy(Experiment):
    """Measure how redundant pixels, superpixels and feature maps are over photographs.

    Paper: Section 1 says that attribution features should be strongly relevant, each pertinent to
    the class and hardly to be derived from the others; that pixels are not, since they "are
    strongly related to their surrounding pixels"; and that feature maps of the last stage are,
    "wherein only subtle correlations exist". It cites work on this and measures nothing.

    Here, of equally many features of each granularity, drawn at random: the mean |correlation|,
    the effective rank, and how well each is predicted, linearly, from the others on photographs
    held out; from the 20 most correlated ones of all, too, since the pixels around a pixel are
    rarely drawn with it. In the sense of Kohavi & John (1997), beyond the paper: the share of the
    features without which the network's scores are predicted worse. The control is pixels, each
    shuffled over the photographs by itself.
    """

    name = "redundancy"
    shows = "how redundant pixels, superpixels and feature maps are over photographs"
    section = "Section 1 (Strong Relevance), not measured there"
    finding = (
        "it says that pixels are strongly related to those around them, and that among feature "
        "maps of the last stage only subtle correlations exist"
    )
    methods = ()
    data = "ImageNet"

    def _run(self, request: Request) -> Result:
        if request.methods:
            raise UsageError(f"{self.name} compares features, not methods; leave --methods out")
        rows = []
        for model in networks(self, request):
            images = open_images(request.imagenet, model, limit=request.limit or PICTURES)
            found = collected(model, images, batch=16)
            if found.unreadable:
                request.report(f"{counted(found.unreadable, 'picture')} could not be read")
            rows += _measured(model, found)
        files = (
            figures.save_png(_figure(self, rows), request.out / f"{self.name}.png"),
            write_csv(request.out / f"{self.name}.csv", rows),
        )
        return Result(files, tuple(rows))


def _measured(model: Classifier, found: Granularities) -> list[dict[str, Any]]:
    """Return a line for each granularity, and one of the control."""
    pictures = len(found.scores)
    if pictures < FEWEST:
        raise UsageError(
            f"expected {FEWEST} pictures or more, so that features can be predicted, got {pictures}"
        )
    # Twice as many pictures as features are fitted to: four fifths of all.
    fewest = min(f.table.shape[1] for f in found.features if f.attributed)
    count = min(FEATURES, 2 * pictures // 5, fewest)
    if count < 2:
        raise UsageError(
            f"expected pictures on which 2 features or more of {model.name} differ, got {count}; "
            "choose other pictures, or another network"
        )
    shuffled = np.random.default_rng(0).permuted(found.features[0].table, axis=0)
    control = Features(CONTROL, "pixels shuffled over pictures", "input", shuffled)
    rows = []
    for features in (*found.features, control):
        report_progress(f"{model.name}: {features.granularity}", len(rows), len(found.features) + 1)
        if features.table.shape[1] > 1:
            rows.append({"network": model.name, **_row(features, found.scores, count)})
    return rows


def _row(features: Features, scores: np.ndarray, count: int) -> dict[str, Any]:
    """Measure one granularity by so many of its features, or all that it has."""
    pool = features.table
    count = min(count, pool.shape[1])
    chosen = np.sort(np.random.default_rng(0).choice(pool.shape[1], count, replace=False))
    table = pool[:, chosen].astype(np.float64)
    quartiles = np.quantile(predictability(pool, chosen), (0.25, 0.5, 0.75))
    nearest = predictability(pool, chosen, nearest=NEAREST)
    removed = removal(table, _frequent(scores))
    return {
        "granularity": features.granularity,
        "values": features.values,
        "layer": features.where,
        "features": pool.shape[1],
        "compared": count,
        "pictures": len(pool),
        "mean |r|": mean_correlation(table),
        "effective rank": effective_rank(table),
        "participation ratio": participation_ratio(table),
        "R² from others": float(quartiles[1]),
        "lower quartile": float(quartiles[0]),
        "upper quartile": float(quartiles[2]),
        f"R² from {NEAREST} nearest": float(np.median(nearest)),
        "R² of scores": removed.explained,
        "strongly relevant": removed.relevant,
    }


def _frequent(scores: np.ndarray) -> np.ndarray:
    """Return the scores of the classes that the network predicts most often."""
    times = np.bincount(scores.argmax(1), minlength=scores.shape[1])
    frequent = scores[:, np.argsort(-times, kind="stable")[:SCORES]]
    return frequent[:, frequent.std(0) > 0]


_PANELS = (
    ("mean |r|", "mean |correlation| of two features"),
    ("effective rank", "effective rank / features"),
    ("R² from others", "R² of a feature from the others,\nheld out: median (thin: middle half)"),
    (
        f"R² from {NEAREST} nearest",
        f"R² of a feature from the {NEAREST}\nmost correlated, held out: median",
    ),
    ("strongly relevant", "share of features without which\nscores are predicted worse"),
)
_OF_MAPS = {
    "mean over places": "means of maps",
    "at one place of each picture": "maps at a place",
    "entry": "entries of maps",
}
_COLOURS = {
    "pixels": "C0",
    "superpixels": "C1",
    EARLIER: "C8",
    "feature maps": "C2",
    CONTROL: "0.6",
}


def _figure(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw each measure in a column, granularities from the finest down, and networks in rows."""
    by_network = {
        row["network"]: [r for r in rows if r["network"] == row["network"]] for row in rows
    }
    heights = [0.9 + 0.34 * len(own) for own in by_network.values()]
    figure = Figure(figsize=(3 * len(_PANELS) + 2.5, sum(heights) + 0.9), dpi=160)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(
        len(by_network), len(_PANELS), sharey="row", squeeze=False, height_ratios=heights
    )
    for line, (network, own) in zip(panels, by_network.items(), strict=True):
        for axes, (column, label) in zip(line, _PANELS, strict=True):
            _draw(axes, own, column)
            axes.set_xlabel(label, fontsize=9)
        line[0].set_yticks(range(len(own)), [_label(row) for row in own], fontsize=9)
        line[0].set_ylim(len(own) - 0.5, -0.5)
        line[0].set_title(f"{network}, {own[0]['pictures']} pictures", fontsize=11, loc="left")
    return figure


def _draw(axes: Any, rows: Sequence[dict[str, Any]], column: str) -> None:
    values = np.array([row[column] for row in rows])
    colours = [_COLOURS[row["granularity"]] for row in rows]
    axes.hlines(range(len(rows)), 0, values, colors=colours, linewidth=2)
    axes.scatter(values, range(len(rows)), c=colours, s=28, zorder=3)
    for y, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (value, y), (5, 5), textcoords="offset points", fontsize=7)
    if column == "R² from others":
        ends = [(row["lower quartile"], row["upper quartile"]) for row in rows]
        axes.hlines(
            range(len(rows)), *zip(*ends, strict=True), color="0.2", linewidth=0.8, zorder=4
        )
    axes.set_xlim(min(-0.05, 1.2 * values.min()), 1.12)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.grid(axis="x", color="0.92")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _label(row: dict[str, Any]) -> str:
    if row["granularity"] == CONTROL:
        return "control: pixels, shuffled"
    if row["layer"] == "input":
        return row["granularity"]
    return f"{row['layer']}: {_OF_MAPS[row['values']]}"
