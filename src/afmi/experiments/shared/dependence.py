"""How much features depend on one another over samples: correlation, rank, prediction, removal.

Everything takes an array (samples, features) in which no feature is constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = [
    "FOLDS",
    "Removal",
    "effective_rank",
    "mean_correlation",
    "participation_ratio",
    "predictability",
    "removal",
]

FOLDS = 5
"""Parts of the samples that are predicted in turn, each from models fitted to the others."""

_PENALTIES = 10.0 ** np.arange(-4, 3)
"""Ridge penalties to choose from, for each sample."""

_SURE = 1.645
"""A mean so many standard errors above 0 is positive with 95 % confidence, to one side."""


def mean_correlation(features: np.ndarray) -> float:
    """Return the mean of |Pearson's r| over all pairs of features.

    Independent ones have about √(2/πn) with n samples, and not 0.
    """
    r = np.corrcoef(features, rowvar=False)
    return float(np.abs(r[np.triu_indices_from(r, 1)]).mean())


def effective_rank(features: np.ndarray) -> float:
    """Return exp(H) of the singular values of the standardised features, over their number.

    H = −Σ p_i ln p_i with p_i = σ_i / Σ σ; 1 where all features are uncorrelated, 1/p where all are
    one.

    Paper: Roy & Vetterli, *The effective rank*, EUSIPCO 2007. Differs: divided by the number p.
    """
    sizes = np.linalg.svd(_standardised(features), compute_uv=False)
    shares = sizes / sizes.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()) / features.shape[1])


def participation_ratio(features: np.ndarray) -> float:
    """Return (Σ λ)² / Σ λ² of the correlation matrix's eigenvalues, over their number.

    Large eigenvalues count for more than in `effective_rank`, and so does what all features share.
    """
    r = np.corrcoef(features, rowvar=False)
    return float(np.trace(r) ** 2 / (r * r).sum() / len(r))


def predictability(
    pool: np.ndarray, chosen: np.ndarray, *, nearest: int | None = None
) -> np.ndarray:
    """Return how well each chosen feature is predicted from others on samples held out: its R².

    R² = 1 − Σ (x − x̂)² / Σ (x − x̄)² over all samples, each predicted by a ridge regression that
    was fitted to the other four fifths, with x̄ of those; 1: the others hold all of it, 0 or below:
    nothing that helps. The penalty is chosen for each fit by leave-one-out among its own samples.

    Args:
        pool: (n, P), all features.
        chosen: which are predicted, (p,).
        nearest: predict from so many features of the whole pool, those most correlated with it
            among the samples that it is fitted to; None: from all others that were chosen.

    Returns:
        (p,).
    """
    if nearest is None:
        return _from_all_others(pool[:, chosen].astype(np.float64))
    errors, spread = np.zeros(len(chosen)), np.zeros(len(chosen))
    for rest, held in _folds(len(pool)):
        others = _most_correlated(pool[rest], chosen, nearest)
        for i, (feature, predictors) in enumerate(zip(chosen, others, strict=True)):
            x, y = pool[:, predictors].astype(np.float64), pool[:, feature].astype(np.float64)
            fit = _Ridge(x[rest], y[rest])
            errors[i] += ((y[held] - fit.predict(x[held])) ** 2).sum()
            spread[i] += ((y[held] - y[rest].mean()) ** 2).sum()
    return 1 - errors / spread


def _from_all_others(x: np.ndarray) -> np.ndarray:
    """Return R² of each feature from all others, (p,).

    All p regressions come from one inverse: with P = (X'X + λ)⁻¹, what the others leave of feature
    j is X P_j / P_jj, and sample i has the leverage 1/n + x_i' P x_i − (x_i' P_j)² / P_jj on it.
    """
    errors, spread = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for rest, held in _folds(len(x)):
        mean, std = _location(x[rest])
        fitted, new = (x[rest] - mean) / std, (x[held] - mean) / std
        w, v = np.linalg.eigh(fitted.T @ fitted)
        misses, left = [], []
        for penalty in _PENALTIES * len(fitted):
            p = (v / (w + penalty)) @ v.T
            pulled, own = fitted @ p, np.diag(p)
            leverage = 1 / len(fitted) + (fitted * pulled).sum(1)[:, None] - pulled**2 / own
            misses.append(((pulled / own / (1 - leverage)) ** 2).sum(0))
            left.append(((std * (new @ p) / own) ** 2).sum(0))
        errors += np.take_along_axis(np.array(left), np.argmin(misses, 0)[None], 0)[0]
        spread += ((std * new) ** 2).sum(0)
    return 1 - errors / spread


class Removal(NamedTuple):
    """What `removal` found.

    Attributes:
        explained: R² of the scores on samples held out, from all features; the mean over scores.
        relevant: share of the features that the others cannot replace.
    """

    explained: float
    relevant: float


def removal(features: np.ndarray, scores: np.ndarray) -> Removal:
    """Tell which features are strongly relevant to scores that are predicted linearly from them.

    A feature is strongly relevant where removing it makes the prediction worse although all others
    stay: here where the squared errors on samples held out, in units of each score's variance and
    averaged over the scores, rise with 95 % confidence (to one side, over the samples). Of features
    that hold nothing of their own 5 % do so by chance, or fewer.

    Paper: Kohavi & John, *Wrappers for feature subset selection*, Artificial Intelligence 1997,
    Definition 5. Differs: of a ridge regression's errors, not of the Bayes-optimal classifier's.

    Args:
        features: (n, p).
        scores: (n, C), such as a network's logits.
    """
    scores = _standardised(scores)
    rises = np.zeros_like(features, dtype=np.float64)
    errors, spread = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for rest, held in _folds(len(features)):
        for c, score in enumerate(scores.T):
            fit = _Ridge(features[rest], score[rest])
            miss = score[held] - fit.predict(features[held])
            errors[c] += (miss**2).sum()
            spread[c] += ((score[held] - score[rest].mean()) ** 2).sum()
            without = miss[:, None] + fit.shares(features[held])
            rises[held] += (without**2 - miss[:, None] ** 2) / scores.shape[1]
    mean, error = rises.mean(0), rises.std(0, ddof=1) / np.sqrt(len(rises))
    return Removal(float((1 - errors / spread).mean()), float((mean > _SURE * error).mean()))


class _Ridge:
    """A ridge regression whose penalty leave-one-out chose.

    With X standardised, X'X = V diag(w) V' and Z = XV, a penalty λ fits Z (w + λ)⁻¹ Z'y; sample i
    left out is missed by (y_i − fit_i) / (1 − h_i), h_i = 1/n + Σ_j Z_ij² / (w_j + λ).
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self._level = y.mean()
        self._mean, self._std = _location(x)
        x = (x - self._mean) / self._std
        w, self._v = np.linalg.eigh(x.T @ x)
        z = x @ self._v
        pulled = z.T @ (y - self._level)
        misses = []
        for penalty in _PENALTIES * len(x):
            fitted = z @ (pulled / (w + penalty))
            leverage = 1 / len(x) + z**2 @ (1 / (w + penalty))
            misses.append((((y - self._level - fitted) / (1 - leverage)) ** 2).sum())
        self._inverse = 1 / (w + _PENALTIES[int(np.argmin(misses))] * len(x))
        self._weights = self._v @ (pulled * self._inverse)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return ŷ (n,)."""
        return self._level + (x - self._mean) / self._std @ self._weights

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Return ŷ less the prediction without each feature, refitted to the others, (n, p).

        Without feature j a ridge regression's weights are β − P_j β_j / P_jj, P = (X'X + λ)⁻¹.
        """
        p = (self._v * self._inverse) @ self._v.T
        return (x - self._mean) / self._std @ (p * (self._weights / np.diag(p)))


def _folds(samples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the samples that are fitted to and those held out, in turns, so that each is once.

    Every fifth is held out, so that samples sorted by class are in all parts.
    """
    part = np.arange(samples) % FOLDS
    for fold in range(FOLDS):
        yield np.flatnonzero(part != fold), np.flatnonzero(part == fold)


def _location(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations; 1 for features that are constant in these samples."""
    std = features.std(0)
    return features.mean(0), np.where(std > 0, std, 1)


def _standardised(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return (features - features.mean(0)) / features.std(0)


_STRIP = 8192
"""Features of the pool whose correlations are computed at a time."""


def _most_correlated(pool: np.ndarray, chosen: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the features (count,) of the pool most correlated with each chosen one, itself not."""
    wanted = _standardised_or_zero(pool[:, chosen])
    r = np.concatenate(
        [
            np.abs(wanted.T @ _standardised_or_zero(pool[:, start : start + _STRIP]))
            for start in range(0, pool.shape[1], _STRIP)
        ],
        1,
    )
    r[np.arange(len(chosen)), chosen] = -1
    count = min(count, pool.shape[1] - 1)
    return list(np.argpartition(-r, count - 1, 1)[:, :count])


def _standardised_or_zero(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    std = centred.std(0)
    return centred / np.where(std > 0, std, np.inf)
