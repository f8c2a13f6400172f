"""The numbers of a report as rows, for CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from afmi.report.statistics import Estimate
from afmi.report.summary import Summary

__all__ = ["csv_text", "curve_rows", "pair_rows", "table_rows"]

_TABLE = (
    "accuracy_auc",
    "accuracy_auc_of_correct",
    "softmax_auc_mean",
    "softmax_auc_median",
    "softmax_auc_ratio_of_means",
    "completeness_median_residual",
    "seconds",
)


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV: numbers in full, an empty field for what is unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        # An empty field is what every reader takes for a missing number.
        writer.writerow(
            "" if isinstance(v, float) and math.isnan(v) else repr(v) if isinstance(v, float) else v
            for v in row
        )
    return buffer.getvalue()


def _four(estimate: Estimate | None) -> list[Any]:
    if estimate is None:
        return ["", "", "", ""]
    return [estimate.value, estimate.low, estimate.high, estimate.count]


def table_rows(summary: Summary, beside: Mapping[str, float]) -> list[list[Any]]:
    """Return Table 1: a row for each method, each average with its interval and count."""
    others = summary.other_metrics
    names = [*_TABLE, *(f"{key}/{facts.headline}" for key, facts in others.items())]
    heads = [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_images")]
    rows: list[list[Any]] = [
        ["method", "family", "images", "done", "failed", "published", *heads, "times_fastest"]
    ]
    for m in summary.methods:
        estimates = [
            m.accuracy,
            m.accuracy_correct,
            m.softmax_mean,
            m.softmax_median,
            m.softmax_ratio,
            m.completeness,
            m.seconds,
            *(m.others.get(key) for key in others),
        ]
        rows.append(
            [
                m.label,
                m.family,
                m.images,
                m.done,
                m.failed,
                beside.get(m.label, ""),
                *(cell for estimate in estimates for cell in _four(estimate)),
                summary.times(m),
            ]
        )
    return rows


def curve_rows(summary: Summary) -> list[list[Any]]:
    """Return every point of the curves of insertion."""
    rows: list[list[Any]] = [
        [
            "method",
            "percent",
            *("accuracy", "accuracy_low", "accuracy_high", "images"),
            *("softmax_ratio_mean", "softmax_ratio_mean_low", "softmax_ratio_mean_high"),
            *("softmax_ratio_median", "softmax_ratio_of_means"),
        ]
    ]
    for method in summary.methods:
        curves = method.curves
        if curves is None:
            continue
        for i, percent in enumerate(curves.percents.tolist()):
            ratios = ["", "", "", "", ""]
            if curves.ratio_mean:
                ratios = [
                    *_four(curves.ratio_mean[i])[:3],
                    float(curves.ratio_median[i]),
                    float(curves.ratio_of_means[i]),
                ]
            rows.append([method.label, percent, *_four(curves.accuracy[i]), *ratios])
    return rows


def pair_rows(summary: Summary) -> list[list[Any]]:
    """Return how each method compares with each that comes after it."""
    rows: list[list[Any]] = [
        ["first", "second", "difference", "low", "high", "images", "wins", "ties", "losses"]
    ]
    for (first, second), pair in summary.pairs.items():
        shares = [pair.wins, pair.ties, pair.losses]
        rows.append([first, second, *_four(pair.difference), *shares])
    return rows
