"""The numbers of a report as rows, for CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from afmi.report.statistics import Estimate
from afmi.report.summary import Summary

__all__ = ["csv_text", "curve_rows", "pair_rows", "table_rows"]

_ENDS = ("", "_low", "_high", "_images")


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV: numbers in full, an empty field for NaN and None.

    An empty field is what every reader takes for a missing number.
    """
    buffer = io.StringIO(newline="")
    # NaN alone is not equal to itself.
    csv.writer(buffer, lineterminator="\n").writerows(
        ["" if value != value else value for value in row] for row in rows
    )
    return buffer.getvalue()


def _four(estimate: Estimate | None) -> list[Any]:
    if estimate is None:
        return [""] * 4
    return [estimate.value, estimate.low, estimate.high, estimate.count]


def table_rows(summary: Summary, beside: Mapping[str, float]) -> list[list[Any]]:
    """Return a row for each method: each declared average with its interval and count."""
    columns = {**summary.main, **summary.others}
    multiples = [key for key, column in columns.items() if column.multiples]
    rows: list[list[Any]] = [
        [
            *("method", "family", "images", "done", "failed", "published"),
            *(f"{key}{end}" for key in columns for end in _ENDS),
            *(f"{key}_times_lowest" for key in multiples),
        ]
    ]
    for m in summary.methods:
        rows.append(
            [
                *(m.label, m.family, m.images, m.done, m.failed, beside.get(m.label, "")),
                *(cell for key in columns for cell in _four(m.averages.get(key))),
                *(summary.multiple(m, key) for key in multiples),
            ]
        )
    return rows


def curve_rows(summary: Summary) -> list[list[Any]]:
    """Return every point of every curve, a row each."""
    rows: list[list[Any]] = [["method", "curve", "percent", "value", "low", "high", "images"]]
    for method in summary.methods:
        for key, curve in method.curves.items():
            rows += [
                [method.label, key, percent, *_four(estimate)]
                for percent, estimate in zip(curve.percents.tolist(), curve.estimates, strict=True)
            ]
    return rows


def pair_rows(summary: Summary) -> list[list[Any]]:
    """Return by how much each method is better than each that comes after it."""
    rows: list[list[Any]] = [
        ["first", "second", "difference", "low", "high", "images", "wins", "ties", "losses"]
    ]
    for (first, second), pair in summary.pairs.items():
        shares = [pair.wins, pair.ties, pair.losses]
        rows.append([first, second, *_four(pair.difference), *shares])
    return rows
