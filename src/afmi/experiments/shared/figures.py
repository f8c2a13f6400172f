"""What the figures share: their methods, the heading of a picture, and the files they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from afmi.experiments.shared.base import Experiment, Request, Result, write_csv
from afmi.explanation import Explanation
from afmi.files import as_json, write_files
from afmi.methods import Method, chosen_methods
from afmi.network.classifier import Classifier
from afmi.pictures import figures

__all__ = ["heading", "methods_of", "saved"]


def methods_of(experiment: Experiment, request: Request, model: Classifier) -> dict[str, Method]:
    """Return the methods asked for, or else the paper's, by their labels."""
    return chosen_methods(model, request.methods or list(experiment.methods))


def heading(explanation: Explanation) -> tuple[str, str]:
    """Return the title and subtitle of the picture itself: its predicted class."""
    text = f"predicted, {explanation.predicted_probability:.0%}"
    if explanation.class_index != explanation.predicted:
        text += f"; {explanation.label}: {explanation.probability:.0%}"
    return str(explanation.predicted_label), text


def saved(
    experiment: Experiment,
    request: Request,
    figure: Figure,
    rows: Sequence[dict[str, Any]],
    record: Mapping[str, Any],
) -> Result:
    """Write a figure as PNG, its numbers as CSV and its record as JSON, all under its name.

    Raises:
        AfmiError: when a file cannot be written.
    """
    path = request.out / f"{experiment.name}.png"
    about = {
        "experiment": experiment.name,
        "paper": experiment.section,
        "finding": experiment.finding,
        **record,
    }
    figures.save_png(figure, path)
    table = write_csv(path.with_suffix(".csv"), rows)
    text = f"{as_json(about, indent=2)}\n"
    write_files({path.with_suffix(".json"): text.encode("utf-8", "backslashreplace")})
    return Result((path, table, path.with_suffix(".json")), tuple(rows))
