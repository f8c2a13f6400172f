"""Sum up an evaluation: averages with their intervals, curves, and which method leads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from afmi.evaluation.results import Measurements, MetricFacts, Results
from afmi.report import statistics
from afmi.report.statistics import Estimate, Paired

__all__ = ["Curves", "Failure", "MethodSummary", "Summary", "summarise"]

# These have columns of their own.
_TABLED = ("insertion", "completeness", "cost")
_AT = re.compile(r"insertion/(?:correct|probability)@([0-9.]+)%$")


@dataclass(frozen=True)
class Curves:
    """Insertion curves of one method; every estimate is over the pictures.

    Attributes:
        percents: PI, the share of the pixels that is kept, in percent, rising, (P,).
        accuracy: P estimates: the share of the pictures that the network gets right.
        ratio_mean: P estimates of the mean of p̂_c / p_c; empty where p_c was not measured.
        ratio_median: (P,): the median of p̂_c / p_c; likewise.
        ratio_of_means: (P,): mean p̂_c over mean p_c; likewise.
    """

    percents: np.ndarray
    accuracy: tuple[Estimate, ...]
    ratio_mean: tuple[Estimate, ...]
    ratio_median: np.ndarray
    ratio_of_means: np.ndarray


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read or explained.

    Attributes:
        key: the picture.
        reason: in one line.
        methods: the methods that it stopped.
    """

    key: str
    reason: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class MethodSummary:
    """What was measured of one method, summed up; None where it was not measured.

    Attributes:
        label: the method, with the parameters that set it apart.
        family: pixel, region, feature map or control; "" where it is not known.
        images: how many pictures the evaluation has.
        done: how many of them have been tried.
        failed: how many of those failed.
        accuracy: mean Accuracy-AUC.
        accuracy_correct: the same over the pictures that the network gets right as a whole.
        softmax_mean: mean area under a picture's p̂_c / p_c.
        softmax_median: median of those areas.
        softmax_ratio: area under mean p̂_c over mean p_c.
        completeness: median size of the relative residual, |Σ map − Δy| / |Δy|.
        seconds: median seconds for one picture.
        others: the headline of each other metric, by the metric's key.
        curves: of insertion.
        areas: Accuracy-AUC of each picture, (n,), NaN where missing; None: not measured.
        shown: probability of the class for the top 10 %, by the number of an example's picture.
    """

    label: str
    family: str
    images: int
    done: int
    failed: int
    accuracy: Estimate | None
    accuracy_correct: Estimate | None
    softmax_mean: Estimate | None
    softmax_median: Estimate | None
    softmax_ratio: Estimate | None
    completeness: Estimate | None
    seconds: Estimate | None
    others: Mapping[str, Estimate]
    curves: Curves | None
    areas: np.ndarray | None
    shown: Mapping[int, float]

    @property
    def finished(self) -> bool:
        """Whether every picture has been tried."""
        return self.done == self.images


@dataclass(frozen=True)
class Summary:
    """An evaluation, summed up.

    Attributes:
        results: what it sums up.
        methods: those chosen, the best Accuracy-AUC first, then in the manifest's order.
        pairs: how each method compares with each that comes after it, in Accuracy-AUC.
        failures: pictures that failed, in order.
        originals: the network's probability of the class, by the number of an example's picture.
        waiting: methods that have not been begun.
    """

    results: Results
    methods: tuple[MethodSummary, ...]
    pairs: Mapping[tuple[str, str], Paired]
    failures: tuple[Failure, ...]
    originals: Mapping[int, float]
    waiting: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether every method has tried every picture."""
        return not self.waiting and all(method.finished for method in self.methods)

    @property
    def leader(self) -> MethodSummary | None:
        """The method with the highest Accuracy-AUC; of finished methods, if there are any."""
        ranked = [m for m in self.methods if m.accuracy is not None and m.accuracy.known]
        return next((m for m in ranked if m.finished), ranked[0] if ranked else None)

    @property
    def rivals(self) -> tuple[MethodSummary, ...]:
        """Methods whose paired difference from the leader may be zero: they may be as good."""
        leader = self.leader
        if leader is None:
            return ()
        found = []
        for method in self.methods:
            pair = None if method is leader else self.pair(leader.label, method.label)
            if pair is not None and pair.difference.known and not pair.clear:
                found.append(method)
        return tuple(found)

    @property
    def fastest(self) -> float:
        """Seconds of the fastest method, controls left out; NaN where none was timed."""
        timed = [
            m.seconds.value
            for m in self.methods
            if m.seconds is not None and m.seconds.known and m.family != "control"
        ]
        return min(timed, default=float("nan"))

    def times(self, method: MethodSummary) -> float:
        """Return how many times as long as the fastest a method takes; NaN for controls."""
        if method.seconds is None or method.family == "control" or not self.fastest > 0:
            return float("nan")
        return method.seconds.value / self.fastest

    @property
    def other_metrics(self) -> dict[str, MetricFacts]:
        """The metrics beside insertion, completeness and cost, that told something."""
        told = {key for method in self.methods for key in method.others}
        return {key: facts for key, facts in self.results.metrics.items() if key in told}

    def pair(self, first: str, second: str) -> Paired | None:
        """Return how one method compares with another, whichever comes first; None: unknown."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        found = self.pairs.get((second, first))
        if found is None:
            return None
        was = found.difference
        turned = Estimate(-was.value, -was.high, -was.low, was.count, was.missing)
        return Paired(turned, found.losses, found.ties, found.wins)


def summarise(results: Results, methods: Sequence[str] | None = None, *, seed: int = 0) -> Summary:
    """Sum up an evaluation; the measurements of one method at a time are held in memory.

    Args:
        results: finished or not.
        methods: labels or keys of those to tell of; None: all.
        seed: of the bootstrap.

    Raises:
        UsageError: when a method is unknown.
        AfmiError: when a file of the results is damaged.
    """
    found: list[MethodSummary] = []
    waiting: list[str] = []
    failures: dict[tuple[int, str], list[str]] = {}
    originals: dict[int, float] = {}
    for label in results.chosen(methods):
        read = results.read(label)
        if not read.done.any():
            waiting.append(label)
            continue
        found.append(_sum_up(results, label, read, seed))
        for place, reason in read.errors.items():
            failures.setdefault((place, " ".join(reason.split())), []).append(label)
        originals |= _of_examples(results, _original(read.values, "probability"))
    found.sort(key=_rank)
    both = [
        ((first.label, second.label), (first.areas, second.areas))
        for first, second in itertools.combinations(found, 2)
        if first.areas is not None and second.areas is not None
    ]
    compared = statistics.paired_many([areas for _, areas in both], seed=seed)
    pairs = {names: pair for (names, _), pair in zip(both, compared, strict=True)}
    return Summary(
        results,
        tuple(found),
        pairs,
        tuple(
            Failure(results.images.keys[place], reason, tuple(stopped))
            for (place, reason), stopped in sorted(failures.items())
        ),
        originals,
        tuple(waiting),
    )


def _rank(method: MethodSummary) -> float:
    known = method.accuracy is not None and method.accuracy.known
    return -method.accuracy.value if known and method.accuracy else float("inf")


def _sum_up(results: Results, label: str, read: Measurements, seed: int) -> MethodSummary:
    values = read.values

    headlines = {
        key: f"{key}/{facts.headline}"
        for key, facts in results.metrics.items()
        if key not in _TABLED
    }
    # All at once, which takes little longer than one.
    averaged = ["insertion/accuracy_auc", "insertion/softmax_ratio_auc"]
    averaged = [name for name in (*averaged, *headlines.values()) if name in values]
    columns = [values[name] for name in averaged]
    estimates = statistics.means(np.stack(columns, axis=1), seed=seed) if columns else []
    mean = dict(zip(averaged, estimates, strict=True))

    def median(name: str) -> Estimate | None:  # of sizes; areas have no sign
        return statistics.median(np.abs(values[name]), seed=seed) if name in values else None

    areas = values.get("insertion/accuracy_auc")
    right = _original(values, "correct")
    curves, softmax_ratio = _curves(values, seed)
    top = values.get("insertion/probability@10%")
    return MethodSummary(
        label,
        str(results.facts(label).get("family") or ""),
        len(results.images),
        int(read.done.sum()),
        len(read.errors),
        mean.get("insertion/accuracy_auc"),
        None if areas is None or right is None else statistics.mean(areas[right == 1], seed=seed),
        mean.get("insertion/softmax_ratio_auc"),
        median("insertion/softmax_ratio_auc"),
        softmax_ratio,
        median("completeness/residual"),
        # Not the mean: the first picture of a run also pays for what is made once.
        median("cost/seconds"),
        {key: mean[name] for key, name in headlines.items() if name in mean},
        curves,
        areas,
        _of_examples(results, top),
    )


def _original(values: Mapping[str, np.ndarray], what: str) -> np.ndarray | None:
    """Return ``correct`` or ``probability`` of the whole picture, (n,)."""
    whole = values.get(f"insertion/original_{what}")
    return values.get(f"insertion/{what}@100%") if whole is None else whole


def _of_examples(results: Results, values: np.ndarray | None) -> dict[int, float]:
    if values is None:
        return {}
    found = {
        number: float(values[results.positions[number]])
        for number in results.examples
        if number in results.positions
    }
    return {number: value for number, value in found.items() if np.isfinite(value)}


def _curves(values: Mapping[str, np.ndarray], seed: int) -> tuple[Curves | None, Estimate | None]:
    """Return the curves, and the area under mean p̂_c over mean p_c."""
    shares = sorted({match[1] for name in values if (match := _AT.match(name))}, key=float)
    if len(shares) < 2 or any(
        f"insertion/{what}@{share}%" not in values
        for share, what in itertools.product(shares, ("correct", "probability"))
    ):
        return None, None
    stack = partial(np.stack, axis=1)
    correct = stack([values[f"insertion/correct@{share}%"] for share in shares])
    probability = stack([values[f"insertion/probability@{share}%"] for share in shares])
    percents = np.array([float(share) for share in shares])
    accuracy = tuple(statistics.means(correct, seed=seed))
    whole = _original(values, "probability")
    if whole is None:
        return Curves(percents, accuracy, (), np.array([]), np.array([])), None
    with np.errstate(divide="ignore", invalid="ignore"):  # p_c = 0 is left out, and counted
        ratios = probability / whole[:, None]
    sound = ratios[np.isfinite(ratios).all(axis=1)]
    both = np.isfinite(probability).all(axis=1) & np.isfinite(whole)
    below = whole[both].mean() if both.any() else 0.0
    unknown = np.full(len(percents), np.nan)
    area = (np.diff(percents / 100) * (probability[:, 1:] + probability[:, :-1]) / 2).sum(axis=1)
    return (
        Curves(
            percents,
            accuracy,
            tuple(statistics.means(ratios, seed=seed)),
            np.median(sound, axis=0) if len(sound) else unknown,
            probability[both].mean(axis=0) / below if below else unknown,
        ),
        statistics.ratio_of_means(area, whole, seed=seed),
    )
