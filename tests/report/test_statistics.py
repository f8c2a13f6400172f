"""Intervals against closed forms and scipy's bootstrap; paired differences by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats

from afmi.report.statistics import Estimate, means, median, paired, ratio_of_means

NAN = float("nan")


def mean(values: np.ndarray, **options: int) -> Estimate:
    return means(values[:, None], **options)[0]


def _skewed(count: int = 200) -> np.ndarray:
    return np.random.default_rng(1).exponential(size=count)


def _close(estimate: Estimate, low: float, high: float, share: float = 0.06) -> bool:
    """Return whether both ends are near, in widths of the interval."""
    return max(abs(estimate.low - low), abs(estimate.high - high)) < share * (high - low)


@pytest.mark.parametrize(("ours", "theirs"), [(mean, np.mean), (median, np.median)])
def test_intervals_are_those_of_scipy(ours, theirs):
    values = _skewed()
    expected = scipy.stats.bootstrap(
        (values,), theirs, method="percentile", n_resamples=20_000, rng=7
    ).confidence_interval
    estimate = ours(values, resamples=20_000)
    assert estimate.value == theirs(values)
    assert _close(estimate, expected.low, expected.high)


def test_ratio_of_means_has_the_interval_of_scipy():
    below = _skewed()
    above = below * np.random.default_rng(2).uniform(0.2, 1.4, len(below))

    def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) / b.mean(axis=axis)

    expected = scipy.stats.bootstrap(
        (above, below), ratio, paired=True, method="percentile", n_resamples=20_000, rng=7
    ).confidence_interval
    estimate = ratio_of_means(above, below, resamples=20_000)
    assert estimate.value == pytest.approx(above.mean() / below.mean())
    assert _close(estimate, expected.low, expected.high)


def test_the_mean_of_a_share_has_binomial_ends():
    # 30 of 100 right: each draw counts Binomial(100, 0.3) right ones.
    values = np.repeat([1.0, 0.0], [30, 70])
    estimate = mean(values, resamples=20_000)
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert estimate.value == 0.3
    assert abs(estimate.low - low) <= 0.0101
    assert abs(estimate.high - high) <= 0.0101


@pytest.mark.parametrize("count", [21, 22])
def test_medians_of_every_draw_are_exact(count):
    # Of 21 numbers, the drawn median is at most the k-th with the chance that at least 11 of 21
    # draws are among the k first.
    values = np.random.default_rng(3).permutation(np.arange(float(count)))
    estimate = median(values, resamples=50_000)
    assert estimate.value == (count - 1) / 2
    if count == 21:
        chances = scipy.stats.binom.sf(10, 21, np.arange(1, 22) / 21)
        assert estimate.low == np.searchsorted(chances, 0.025)
        assert estimate.high == np.searchsorted(chances, 0.975)
    else:
        assert estimate.low % 0.5 == 0
        assert estimate.low < estimate.value < estimate.high


def test_numbers_that_are_missing_are_left_out_and_counted():
    values = np.array([1.0, NAN, 3.0, np.inf, 8.0])
    assert mean(values) == Estimate(
        4.0, mean(np.array([1.0, 3, 8])).low, mean(np.array([1.0, 3, 8])).high, 3, 2
    )
    assert (median(values).value, median(values).missing) == (3.0, 2)
    estimate = ratio_of_means(np.array([1.0, 2, NAN, 4]), np.array([2.0, NAN, 5, 6]))
    assert (estimate.value, estimate.count, estimate.missing) == (5 / 8, 2, 2)


@pytest.mark.parametrize("how", [mean, median, lambda values: ratio_of_means(values, values)])
def test_too_few_numbers_have_no_interval(how):
    none, one = how(np.array([NAN])), how(np.array([2.0, NAN]))
    assert np.isnan([none.value, none.low, none.high]).all()
    assert not none.known
    assert np.isnan([one.low, one.high]).all()
    assert one.known
    assert one.value in (1.0, 2.0)


def test_a_ratio_over_zero_is_unknown():
    assert np.isnan(ratio_of_means(np.ones(3), np.zeros(3)).value)


def test_equal_numbers_have_an_interval_without_width():
    estimate = mean(np.full(50, 0.1))
    assert estimate.low == pytest.approx(0.1, abs=1e-15)
    assert estimate.high == pytest.approx(0.1, abs=1e-15)


def test_the_seed_decides_and_columns_share_the_draws():
    values = _skewed(60)
    assert mean(values, seed=4) == mean(values, seed=4)
    assert mean(values, seed=4) != mean(values, seed=5)
    first, second = means(np.stack([values, values + 1], axis=1))
    assert first == mean(values)
    assert second.low == pytest.approx(first.low + 1)


def test_columns_with_gaps_are_each_as_if_alone():
    values = np.random.default_rng(8).normal(size=(30, 4))
    values[3, 1] = values[7, 1] = values[4, 2] = NAN
    estimates = means(values)
    assert [e.count for e in estimates] == [30, 28, 29, 30]
    for column, estimate in zip(values.T, estimates, strict=True):
        alone = mean(column)
        assert estimate.value == pytest.approx(np.nanmean(column))
        assert (estimate.low, estimate.high) == pytest.approx((alone.low, alone.high))


def test_many_pairs_are_each_as_if_alone():
    a, b, c = np.random.default_rng(9).normal(size=(3, 25))
    c[2] = NAN
    for comparison, pair in zip(paired([(a, b), (b, c)]), [(a, b), (b, c)], strict=True):
        (alone,) = paired([pair])
        assert comparison.difference.low == pytest.approx(alone.difference.low)
        assert (comparison.wins, comparison.losses, comparison.difference.count) == (
            alone.wins,
            alone.losses,
            alone.difference.count,
        )
    assert paired([]) == []


def test_blocks_of_draws_make_one_interval(monkeypatch):
    values = _skewed(50)
    whole = mean(values, resamples=300)
    monkeypatch.setattr("afmi.report.statistics._BLOCK", 50 * 7)
    parts = mean(values, resamples=300)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_methods_are_compared_on_the_pictures_that_both_have():
    # Differences 0.3, 0 (but for rounding), −0.1, 0.2.
    first = np.array([0.9, 0.1 + 0.2, 0.4, NAN, 0.7, 0.1])
    second = np.array([0.6, 0.3, 0.5, 0.2, 0.5, NAN])
    (pair,) = paired([(first, second)])
    assert pair.difference.value == pytest.approx(0.1)
    assert (pair.difference.count, pair.difference.missing) == (4, 2)
    assert (pair.wins, pair.ties, pair.losses) == (0.5, 0.25, 0.25)
    assert not pair.clear
    assert pair.difference.low < 0 < pair.difference.high


def test_a_small_but_steady_difference_is_clear():
    random = np.random.default_rng(5)
    pictures = random.uniform(0, 1, 100)
    better = pictures + 0.02 + random.normal(0, 0.02, 100)
    (pair,) = paired([(better, pictures)])
    assert pair.clear
    # Though the two intervals by themselves overlap widely.
    assert mean(better).low < mean(pictures).value


def test_methods_without_common_pictures_cannot_be_compared():
    (pair,) = paired([(np.array([1.0, NAN]), np.array([NAN, 1.0]))])
    assert np.isnan([pair.difference.value, pair.wins, pair.ties, pair.losses]).all()
    assert not pair.clear


def test_a_thousand_pictures_take_moments():
    values = np.random.default_rng(6).uniform(size=(1000, 20))
    started = time.perf_counter()
    for column in values.T:
        mean(column)
    assert time.perf_counter() - started < 20  # 1 s here
