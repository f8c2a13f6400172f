"""Say how sure an average is: bootstrap intervals, and paired differences of two methods.

All intervals are percentile bootstraps (Efron, *Bootstrap methods: another look at the jackknife*,
Annals of Statistics 1979): the pictures are drawn again with replacement, as many as there are,
many times; the interval holds the middle share of these averages. Numbers that are not
finite are left out, and counted. The same seed gives the same interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Estimate",
    "Paired",
    "means",
    "median",
    "paired",
    "ratio_of_means",
]

CONFIDENCE = 0.95
"""Share of the bootstrap averages that an interval holds."""
RESAMPLES = 2000
"""How often the pictures are drawn again."""
# Differences of areas are sums of steps that binary numbers do not hold exactly.
_EQUAL = 1e-9
# Bounds the memory for many pictures: a block of counts takes 32 MB.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """An average, and how sure it is.

    Attributes:
        value: the average; NaN of no numbers.
        low: lower end of the 95 % interval; NaN of fewer than two numbers.
        high: its upper end.
        count: how many numbers it rests on.
        missing: how many were not finite, and left out.
    """

    value: float
    low: float
    high: float
    count: int
    missing: int = 0

    @property
    def known(self) -> bool:
        """Whether it rests on any number."""
        return self.count > 0


@dataclass(frozen=True)
class Paired:
    """How one method compares with another on the pictures that both have.

    Attributes:
        difference: mean of first minus second; `Estimate.count` is the number of pictures.
        wins: share of the pictures where the first is higher, from 0 to 1; NaN of no pictures.
        ties: share where they are equal.
        losses: share where the first is lower.
    """

    difference: Estimate
    wins: float
    ties: float
    losses: float

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0


def means(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Estimate]:
    """Return the mean of each column with its interval.

    Columns with the same gaps share what is drawn, which costs little more than one of them.

    Args:
        values: (n, k); of each column the numbers that are not finite are left out.
        seed: of what is drawn.
        resamples: how often.

    Returns:
        k estimates.

    Example:
        >>> means(np.array([[1.0], [2.0], [3.0], [float("nan")]]))[0].value
        2.0
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    groups: dict[bytes, list[int]] = {}
    for column in range(values.shape[1]):
        groups.setdefault(finite[:, column].tobytes(), []).append(column)
    estimates: dict[int, Estimate] = {}
    for columns in groups.values():
        kept = values[:, columns][finite[:, columns[0]]]
        count = len(kept)
        # Of the deviations: sums of large numbers would lose the small differences.
        center = kept.mean(axis=0) if count else np.full(len(columns), np.nan)
        low, high = _interval(
            count,
            lambda drawn, kept=kept, center=center: center + drawn @ (kept - center) / len(kept),
            seed,
            resamples,
            len(columns),
        )
        for column, c, a, b in zip(columns, center, low, high, strict=True):
            estimates[column] = Estimate(float(c), float(a), float(b), count, len(values) - count)
    return [estimates[column] for column in range(values.shape[1])]


def median(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return the median of (n,) numbers with its interval."""
    kept, missing = _finite_rows(np.asarray(values)[:, None])
    ordered = np.sort(kept[:, 0])
    count = len(ordered)

    def medians(drawn: np.ndarray) -> np.ndarray:
        reached = drawn.cumsum(axis=1)
        middle = [(reached <= place).sum(axis=1) for place in ((count - 1) // 2, count // 2)]
        return (ordered[middle[0]] + ordered[middle[1]])[:, None] / 2

    (low,), (high,) = _interval(count, medians, seed, resamples, 1)
    value = float(np.median(ordered)) if count else float("nan")
    return Estimate(value, float(low), float(high), count, missing)


def ratio_of_means(
    above: np.ndarray, below: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return mean(above) / mean(below) with its interval.

    Args:
        above: (n,).
        below: (n,), of the same pictures, none negative; where either is not finite, both are left
            out.
        seed: of what is drawn.
        resamples: how often.

    Returns:
        The estimate; NaN where the mean below is 0.
    """
    kept, missing = _finite_rows(np.stack([above, below], axis=1))
    count = len(kept)

    def ratios(drawn: np.ndarray) -> np.ndarray:
        sums = drawn @ kept
        return _ratio(sums[:, :1], sums[:, 1:])

    (low,), (high,) = _interval(count, ratios, seed, resamples, 1)
    value = float(_ratio(*kept.sum(axis=0))) if count else float("nan")
    return Estimate(value, float(low), float(high), count, missing)


def paired(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Paired]:
    """Compare the two methods of each pair picture by picture, in little more time than for one.

    Pictures differ in difficulty far more than methods do, so the interval of the difference is
    narrower than the two intervals by themselves would suggest.

    Args:
        pairs: (n,) numbers of each method, of the same pictures; those where either is not finite
            are left out.
        seed: of what is drawn.
        resamples: how often.
    """
    if not pairs:
        return []
    with np.errstate(invalid="ignore"):  # infinity less infinity
        differences = np.stack([np.subtract(*pair, dtype=np.float64) for pair in pairs], axis=1)
    estimates = means(differences, seed=seed, resamples=resamples)
    return [_shares(column, e) for column, e in zip(differences.T, estimates, strict=True)]


def _shares(differences: np.ndarray, estimate: Estimate) -> Paired:
    kept = differences[np.isfinite(differences)]
    if not len(kept):
        return Paired(estimate, *[float("nan")] * 3)
    higher, lower = float((kept > _EQUAL).mean()), float((kept < -_EQUAL).mean())
    return Paired(estimate, higher, float((np.abs(kept) <= _EQUAL).mean()), lower)


def _finite_rows(values: np.ndarray) -> tuple[np.ndarray, int]:
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values).all(axis=1)
    return values[finite], int((~finite).sum())


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _draws(count: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield how often each of ``count`` numbers is drawn: blocks (b, count) of float64."""
    if count * resamples <= _BLOCK:
        yield _one_block(count, seed, resamples)
        return
    generator = np.random.default_rng(seed)
    rows = max(_BLOCK // count, 1)
    for start in range(0, resamples, rows):
        yield _block(generator, count, min(rows, resamples - start))


# Most averages of an evaluation are over the same number of pictures.
@functools.lru_cache(maxsize=2)
def _one_block(count: int, seed: int, resamples: int) -> np.ndarray:
    block = _block(np.random.default_rng(seed), count, resamples)
    block.flags.writeable = False
    return block


def _block(generator: np.random.Generator, count: int, rows: int) -> np.ndarray:
    places = generator.integers(count, size=(rows, count))
    places += np.arange(rows)[:, None] * count
    return np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count) * 1.0


def _interval(
    count: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    resamples: int,
    columns: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of the interval of each column; ``statistic``: counts (b, n) → (b, k)."""
    if count < 2:  # one picture says nothing of how pictures differ
        return np.full(columns, np.nan), np.full(columns, np.nan)
    averages = np.concatenate([statistic(drawn) for drawn in _draws(count, seed, resamples)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(averages, [tail, 1 - tail], axis=0)
    return low, high
