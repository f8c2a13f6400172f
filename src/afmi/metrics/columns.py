"""What a metric declares about its numbers, so that tables, charts and CSV files show them.

Nothing here needs PyTorch: a report reads the declarations from an evaluation's manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, Literal

__all__ = ["Aggregate", "Column", "MetricFacts", "percent", "point"]

Aggregate = Literal["mean", "median", "median size", "ratio of means"]
"""How the numbers of the images become one; the median size is that of the magnitudes."""


@dataclass(frozen=True)
class Column:
    """One number of a method, or a curve of them, from what a metric measured of each image.

    Attributes:
        name: of the column in CSV files and JSON.
        title: its heading.
        measures: what it measures, as a clause.
        higher_is_better: None where neither higher nor lower is better.
        kind: "scalar" for one number of an image; "curve" for one at each of the metric's
            fractions; "area" for the area under such a curve, by trapezoids over the fractions.
        value: the name that `Metric.measure` gives it, that of a curve without its ``@5%``; "":
            the column's name.
        aggregate: how it is aggregated over the images.
        per: another value of `measure`, by which it is divided: image by image, or as the mean
            below where the aggregate is a ratio of means.
        among: another value of `measure`; only images where it is 1 count.
        note: the line below the heading; "": aggregate and unit.
        unit: such as "s"; "" for shares, ratios and correlations.
        multiples: whether it is also shown as a multiple of the lowest method's.
        area: of a curve, the name of the column that is the area under it.
        over: of a curve, what its fractions are.
    """

    name: str
    title: str
    measures: str
    _: KW_ONLY
    higher_is_better: bool | None = None
    kind: Literal["scalar", "curve", "area"] = "scalar"
    value: str = ""
    aggregate: Aggregate = "mean"
    per: str = ""
    among: str = ""
    note: str = ""
    unit: str = ""
    multiples: bool = False
    area: str = ""
    over: str = "fraction"

    @property
    def source(self) -> str:
        """The value of `Metric.measure` that it shows."""
        return self.value or self.name

    @property
    def subtitle(self) -> str:
        """The line below the heading."""
        return self.note or ", ".join(filter(None, (self.aggregate, self.unit)))


@dataclass(frozen=True)
class MetricFacts:
    """What an evaluation's manifest records of a metric: all that a report has to know.

    Attributes:
        name: what tables call it.
        about: what a reader has to know besides the columns.
        standard: whether an evaluation measures it by default.
        ranks: whether methods are ranked by its headline in preference to other metrics'.
        fractions: the shares at which its curves have points, rising within [0, 1].
        columns: the first is the headline.
    """

    name: str
    about: str
    standard: bool
    ranks: bool
    fractions: tuple[float, ...]
    columns: tuple[Column, ...]

    @property
    def headline(self) -> Column:
        """The column by which methods are ranked."""
        return self.columns[0]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> MetricFacts:
        """Return what `as_dict` recorded.

        Raises:
            TypeError: when the record does not hold these facts.
        """
        columns = tuple(Column(**column) for column in record["columns"])
        return cls(**{**record, "columns": columns, "fractions": tuple(record["fractions"])})


def percent(fraction: float) -> float:
    """Return a share in percent to four digits, as in the names of values."""
    return float(f"{100 * fraction:.4g}")


def point(name: str, fraction: float) -> str:
    """Return the name of a curve's value at one fraction.

    Example:
        >>> point("correct", 0.05)
        'correct@5%'
    """
    return f"{name}@{percent(fraction):g}%"
