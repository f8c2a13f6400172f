"""Aggregate a method's values over the images, as the columns of the metrics declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afmi.evaluation.results import Measured
from afmi.metrics.columns import Column
from afmi.report import statistics
from afmi.report.statistics import Estimate

__all__ = ["Curve", "aggregated", "curve_of"]

_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Curve:
    """A column at each of the metric's fractions.

    Attributes:
        percents: the fractions, in percent, rising, (P,).
        estimates: P of them; medians and ratios of means have no intervals.
    """

    percents: np.ndarray
    estimates: tuple[Estimate, ...]

    @property
    def heights(self) -> np.ndarray:
        """The averages, (P,)."""
        return np.array([estimate.value for estimate in self.estimates])


def aggregated(
    columns: Mapping[str, Column], measured: Mapping[str, Measured], seed: int
) -> dict[str, Estimate]:
    """Return the average of every column that was measured, curves left out.

    Args:
        columns: by their keys.
        measured: for each key, what its metric measured.
        seed: of the bootstrap.
    """
    estimates: dict[str, Estimate] = {}
    means: dict[str, np.ndarray] = {}
    for key, column in columns.items():
        if column.aggregate == "ratio of means":
            above, below = measured[key].images(column), measured[key].scalar(column.per)
            if above is not None and below is not None:
                estimates[key] = statistics.ratio_of_means(above, below, seed=seed)
            continue
        numbers = measured[key].per_image(column)
        if numbers is None:
            continue
        if column.aggregate == "mean":
            means[key] = numbers
        else:
            estimates[key] = statistics.median(numbers, seed=seed)
    if means:  # all at once, which takes little longer than one
        stacked = np.stack(list(means.values()), axis=1)
        estimates |= zip(means, statistics.means(stacked, seed=seed), strict=True)
    return {key: estimates[key] for key in columns if key in estimates}


def curve_of(column: Column, measured: Measured, seed: int) -> Curve | None:
    """Return a column's curve; None where it was not measured."""
    if column.aggregate == "ratio of means":
        above, below = measured.images(column), measured.scalar(column.per)
        if above is None or below is None:
            return None
        return Curve(measured.percents, _ratios(above, below))
    numbers = measured.per_image(column)
    if numbers is None:
        return None
    if column.aggregate == "mean":
        return Curve(measured.percents, tuple(statistics.means(numbers, seed=seed)))
    finite = numbers[np.isfinite(numbers).all(axis=1)]
    heights = np.median(finite, axis=0) if len(finite) else np.full(numbers.shape[1], _UNKNOWN)
    return Curve(measured.percents, _plain(heights, len(finite), len(numbers)))


def _ratios(above: np.ndarray, below: np.ndarray) -> tuple[Estimate, ...]:
    both = np.isfinite(above).all(axis=1) & np.isfinite(below)
    mean = below[both].mean() if both.any() else 0.0
    heights = above[both].mean(axis=0) / mean if mean else np.full(above.shape[1], _UNKNOWN)
    return _plain(heights, int(both.sum()), len(above))


def _plain(heights: np.ndarray, count: int, total: int) -> tuple[Estimate, ...]:
    """Return estimates without intervals, whose bootstrap at every point would take minutes."""
    return tuple(
        Estimate(float(height), _UNKNOWN, _UNKNOWN, count, total - count) for height in heights
    )
