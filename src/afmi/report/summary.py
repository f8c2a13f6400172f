"""Sum up an evaluation: every declared column with its interval, and which method leads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afmi.evaluation.results import Measured, Measurements, Results
from afmi.metrics.columns import Column, point
from afmi.report import statistics
from afmi.report.averages import Curve, aggregated, curve_of
from afmi.report.statistics import Estimate, Paired

__all__ = ["Failure", "MethodSummary", "Summary", "metric_of", "summarise"]

# An example shows the top tenth of the pixels; insertion measures what the network makes of it.
_SHOWN = {
    "insertion": ("original_probability", point("probability", 0.1)),
    "value_insertion": ("whole_score", point("score", 0.1)),
}
"""What is told of an example, the whole and its top tenth; of a class, and of another target."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be read or explained, or that a metric failed on.

    Attributes:
        key: the image.
        reason: in one line.
        methods: those that failed on it.
    """

    key: str
    reason: str
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """What was measured of one method; columns go by their keys, as in `Summary.columns`.

    Attributes:
        label: the method, with the parameters that set it apart.
        family: pixel, region, feature map or control; "" where it is not known.
        images: how many images the evaluation has.
        done: how many of them have been tried.
        failed: how many of those failed.
        averages: of each column that is no curve; those not measured are missing.
        curves: of each column that is one; likewise.
        ranking: the leading column's number of each image, (n,), NaN where missing; None where it
            was not measured.
        shown: probability of the class, or the score, for the top 10 %, by the number of an
            example's image.
    """

    label: str
    family: str
    images: int
    done: int
    failed: int
    averages: Mapping[str, Estimate]
    curves: Mapping[str, Curve]
    ranking: np.ndarray | None
    shown: Mapping[int, float]

    @property
    def finished(self) -> bool:
        """Whether every image has been tried."""
        return self.done == self.images

    def known(self, key: str) -> Estimate | None:
        """Return a column's average; None where it rests on no image."""
        estimate = self.averages.get(key)
        return estimate if estimate is not None and estimate.known else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of an evaluation.

    Attributes:
        results: of the evaluation.
        methods: those chosen, the best first, then in the manifest's order.
        columns: all that the metrics declare, by keys such as ``insertion/accuracy_auc``.
        leading: key of the column by which methods are ranked; None where no metric ranks them.
        pairs: by how much each method is better than each that comes after it in that column.
        failures: images that failed, in order.
        originals: the network's probability of the class, or the score, by the number of an
            example's image.
        waiting: methods that have not been started.
    """

    results: Results
    methods: tuple[MethodSummary, ...]
    columns: Mapping[str, Column]
    leading: str | None
    pairs: Mapping[tuple[str, str], Paired]
    failures: tuple[Failure, ...]
    originals: Mapping[int, float]
    waiting: tuple[str, ...] = ()

    @property
    def target(self) -> Mapping[str, Any]:
        """What was explained; see `afmi.evaluation.asked.Asked.identity`."""
        return self.results.manifest["run"].get("target", {})

    @property
    def of_classes(self) -> bool:
        """Whether classes were explained, so that examples come with probabilities."""
        return bool(self.target.get("classes", True))

    @property
    def finished(self) -> bool:
        """Whether every method has tried every image, and no more images are to come."""
        tried = not self.waiting and all(method.finished for method in self.methods)
        return tried and self.results.ended

    @property
    def main(self) -> dict[str, Column]:
        """Table 1: all columns of the leading metric, and the headlines of standard ones."""
        leading = metric_of(self.leading)
        facts = self.results.metrics
        headlines = {f"{m}/{f.headline.name}" for m, f in facts.items() if f.standard}
        return {
            key: column
            for key, column in self.columns.items()
            if column.kind != "curve" and (metric_of(key) == leading or key in headlines)
        }

    @property
    def others(self) -> dict[str, Column]:
        """The other columns that were measured and are no curves."""
        measured = {key for m in self.methods for key in m.averages if m.known(key)}
        main = self.main
        return {k: column for k, column in self.columns.items() if k in measured and k not in main}

    @property
    def leader(self) -> MethodSummary | None:
        """The best method of the leading column; of finished methods, if there are any."""
        ranked = [m for m in self.methods if self.leading is not None and m.known(self.leading)]
        return next((m for m in ranked if m.finished), ranked[0] if ranked else None)

    @property
    def rivals(self) -> tuple[MethodSummary, ...]:
        """Methods whose paired difference from the leader may be zero: they may be as good."""
        leader = self.leader
        if leader is None:
            return ()
        pairs = [(method, self.pair(leader.label, method.label)) for method in self.methods]
        return tuple(m for m, pair in pairs if pair and pair.difference.known and not pair.clear)

    def multiple(self, method: MethodSummary, key: str) -> float:
        """Return a column as a multiple of the lowest method's, controls left out; else NaN."""
        compared = {
            m.label: estimate.value
            for m in self.methods
            if m.family != "control" and (estimate := m.known(key)) is not None
        }
        lowest = min(compared.values(), default=0.0)
        return compared.get(method.label, np.nan) / lowest if lowest > 0 else np.nan

    def pair(self, first: str, second: str) -> Paired | None:
        """Return how one method compares with another, whichever comes first; None: unknown."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        pair = self.pairs.get((second, first))
        if pair is None:
            return None
        was = pair.difference
        turned = Estimate(-was.value, -was.high, -was.low, was.count, was.missing)
        return Paired(turned, pair.losses, pair.ties, pair.wins)


def metric_of(key: str | None) -> str:
    """Return a column's metric."""
    return "" if key is None else key.rpartition("/")[0]


def summarise(results: Results, methods: Sequence[str] | None = None, *, seed: int = 0) -> Summary:
    """Summarise an evaluation; only one method's measurements are in memory at a time.

    Args:
        results: finished or not.
        methods: labels or keys of those to summarise; None: all.
        seed: of the bootstrap.

    Raises:
        UsageError: when a method is unknown.
        AfmiError: when a file of the results is damaged.
    """
    columns = {
        f"{metric}/{column.name}": column
        for metric, facts in results.metrics.items()
        for column in facts.columns
    }
    leading = _leading(results)
    summaries: list[MethodSummary] = []
    waiting: list[str] = []
    failures: dict[tuple[int, str], list[str]] = {}
    originals: dict[int, float] = {}
    for label in results.chosen(methods):
        measured = results.read(label)
        if not measured.done.any():
            waiting.append(label)
            continue
        summaries.append(_summarise(results, columns, leading, label, measured, seed))
        reasons = list(measured.errors.items())
        for metric, errors in measured.metric_errors.items():
            name = results.metric_label(metric)
            reasons += [(place, f"{name}: {reason}") for place, reason in errors.items()]
        for place, reason in reasons:
            failures.setdefault((place, " ".join(reason.split())), []).append(label)
        originals |= _of_examples(results, measured.values, 0)
    lower = leading is not None and columns[leading].higher_is_better is False

    def rank(method: MethodSummary) -> float:
        estimate = None if leading is None else method.known(leading)
        return np.inf if estimate is None else estimate.value if lower else -estimate.value

    summaries.sort(key=rank)
    return Summary(
        results=results,
        methods=tuple(summaries),
        columns=columns,
        leading=leading,
        pairs=_pairs(summaries, lower, seed),
        failures=tuple(
            Failure(results.images.keys[place], reason, tuple(labels))
            for (place, reason), labels in sorted(failures.items())
        ),
        originals=originals,
        waiting=tuple(waiting),
    )


def _leading(results: Results) -> str | None:
    """Return the headline that ranks the methods: the first of a metric made for that, or any."""
    directed = [
        (not facts.ranks, f"{metric}/{facts.headline.name}")
        for metric, facts in results.metrics.items()
        if facts.headline.higher_is_better is not None
    ]
    return min(directed, key=lambda pair: pair[0])[1] if directed else None


def _pairs(
    methods: Sequence[MethodSummary], lower: bool, seed: int
) -> dict[tuple[str, str], Paired]:
    pairs = {
        (a.label, b.label): (b.ranking, a.ranking) if lower else (a.ranking, b.ranking)
        for a, b in itertools.combinations(methods, 2)
        if a.ranking is not None and b.ranking is not None
    }
    compared = statistics.paired(list(pairs.values()), seed=seed)  # type: ignore[arg-type]
    return dict(zip(pairs, compared, strict=True))


def _summarise(
    results: Results,
    columns: Mapping[str, Column],
    leading: str | None,
    label: str,
    measured: Measurements,
    seed: int,
) -> MethodSummary:
    values = measured.values
    by_metric = {
        metric: Measured(f"{metric}/", facts.fractions, values)
        for metric, facts in results.metrics.items()
    }
    of = {key: by_metric[metric_of(key)] for key in columns}
    plain = {key: column for key, column in columns.items() if column.kind != "curve"}
    curves = {key: curve_of(columns[key], of[key], seed) for key in columns if key not in plain}
    return MethodSummary(
        label=label,
        family=str(results.facts(label).get("family") or ""),
        images=len(results.images),
        done=int(measured.done.sum()),
        failed=len(measured.errors),
        averages=aggregated(plain, of, seed),
        curves={key: curve for key, curve in curves.items() if curve is not None},
        ranking=None if leading is None else of[leading].per_image(columns[leading]),
        shown=_of_examples(results, values, 1),
    )


def _of_examples(
    results: Results, measured: Mapping[str, np.ndarray], which: int
) -> dict[int, float]:
    classes = results.manifest["run"].get("target", {}).get("classes", True)
    metric = "insertion" if classes else "value_insertion"
    values = measured.get(f"{metric}/{_SHOWN[metric][which]}")
    if values is None:
        return {}
    known = {
        number: float(values[results.positions[number]])
        for number in results.examples
        if number in results.positions
    }
    return {number: value for number, value in known.items() if np.isfinite(value)}
