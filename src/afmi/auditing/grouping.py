"""Find images of a class that are recognised for another reason than the rest of it.

Each image is described by what speaks for its class, once feature map by feature map and once place
by place, on a scale of square roots, so that nothing strong hides the rest (as in Hellinger's
distance); the principal components are parted into groups by k-means for several numbers of groups,
and each group is asked how far it stands from the next one: the mean silhouette of its members
(Rousseeuw, *Silhouettes*, Journal of Computational and Applied Mathematics 1987). A class that is
recognised for one reason has no group that stands apart. How often a group comes back when some
images are left out is Hennig's clusterwise stability (*Cluster-wise assessment of cluster
stability*, Computational Statistics & Data Analysis 2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from afmi.packages import imported

__all__ = [
    "ISOLATED",
    "LEAST",
    "STABLE",
    "STRONGER",
    "Grouping",
    "check_installed",
    "evidence_of",
    "grouping_of",
]

ISOLATED = 0.4
"""Mean silhouette from which a group counts as apart from the rest of its class.

Chosen by the classes without a plant of ``python -m benchmarks.shortcuts``.
"""
STABLE = 0.75
"""Mean Jaccard index over resampling from which a group is stable (Hennig 2007)."""
STRONGER = 0.8
"""Standard deviations by which a group's scores are much higher: Cohen's large effect."""
LEAST = 20
"""Images of a class below which nothing is said of it."""
COMPONENTS = 10
"""Principal components."""
RESAMPLES = 10
"""How often a fifth of the images is left out."""
MOST_GROUPS = 8
"""Numbers of groups that are tried: from 2 up to this one."""

_SMALLEST = 0.02, 4
"""Share of a class and images that a group has at least."""
_NEIGHBOUR = 10
"""The distance to this neighbour says how far out an image is."""
_FAR = 4.0
"""Deviations (from the median, by the median of absolute deviations) from which it is far out."""
_DRAWS = 5
"""Of data without groups, of each kind."""
_KEPT = 0.8
_SAMPLED = 5000
"""Images of a class from which silhouettes, whose cost is quadratic, are sampled."""


@dataclass(frozen=True)
class Grouping:
    """How the images of a class fall into groups.

    Attributes:
        groups: of each image, int (N,): 0 is the rest of the class, to which its largest group
            belongs, 1 and higher the groups apart, from the one that is furthest apart.
        isolation: of each group apart, its mean silhouette, −1 to 1.
        stability: of each group apart, the mean Jaccard index over resampling, 0 to 1.
        nearest: the highest mean silhouette of any group, also where it is not apart.
        components: principal components of the images, (N, C).
        distances: of each image to its tenth neighbour among the components, in deviations from
            the median; where it is high the image is like no other.
    """

    groups: np.ndarray
    isolation: tuple[float, ...]
    stability: tuple[float, ...]
    nearest: float
    components: np.ndarray
    distances: np.ndarray

    @property
    def outliers(self) -> np.ndarray:
        """The images that are far out, the furthest first, int (O,)."""
        order = np.argsort(-self.distances, kind="stable")
        return order[self.distances[order] >= _FAR]


def check_installed() -> None:
    """Raise a `MissingPackageError` unless scikit-learn is there."""
    imported("sklearn", "an audit, which groups images,", "afmi[audit]")


def evidence_of(contributions: np.ndarray) -> np.ndarray:
    """Return what speaks for the class, on a scale of square roots, float64 (N, K).

    Args:
        contributions: of each image what of the score's change goes through each feature map, or
            lies at each place, (N, K); signed.
    """
    return np.sqrt(np.maximum(contributions.astype(np.float64), 0))


def grouping_of(
    evidence: np.ndarray, *, isolated: float = ISOLATED, seed: int = 0, resamples: int = RESAMPLES
) -> Grouping:
    """Return the groups of a class's images.

    Args:
        evidence: what describes each image, (N, K); see `evidence_of`.
        isolated: mean silhouette from which a group is apart, if it is also higher than any of
            data without groups whose components vary as much; −1: from which any is.
        seed: of the starts of k-means, and of resampling.
        resamples: how often a fifth of the images is left out to see whether groups come back; 0:
            their stability is NaN.

    Returns:
        The grouping; of fewer images than `LEAST`, or of equal ones, without groups apart.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> contributions = generator.random((60, 16))
        >>> contributions[:15, 3] += 9  # a shortcut, through the fourth map
        >>> np.bincount(grouping_of(evidence_of(contributions)).groups).tolist()
        [45, 15]
    """
    components = _components(evidence, seed)
    count = len(components)
    distances = _distances(components)
    none = Grouping(np.zeros(count, int), (), (), float("nan"), components, distances)
    if count < LEAST or not components.shape[1]:
        return none
    labels, apart = _furthest(components, seed)
    best = max(apart.values(), default=-1.0)
    level = isolated
    if best >= isolated > -1:
        level = max(isolated, _chance(components, seed))
    chosen = sorted((each for each in apart if apart[each] >= level), key=lambda g: -apart[g])
    groups = np.zeros(count, int)
    for number, each in enumerate(chosen, 1):
        groups[labels == each] = number
    return Grouping(
        groups,
        tuple(apart[each] for each in chosen),
        tuple(_stability(components, labels, chosen, seed, resamples)),
        best,
        components,
        distances,
    )


def _components(evidence: np.ndarray, seed: int) -> np.ndarray:
    """Return the principal components, (N, up to `COMPONENTS`)."""
    from sklearn.decomposition import PCA

    varying = evidence[:, np.ptp(evidence, axis=0) > 0] if len(evidence) else evidence
    number = min(COMPONENTS, len(varying) - 1, varying.shape[1])
    if number < 1:
        return np.zeros((len(evidence), 0))
    return PCA(number, svd_solver="randomized", random_state=seed).fit_transform(varying)


def _furthest(components: np.ndarray, seed: int) -> tuple[np.ndarray, dict[int, float]]:
    """Return the clusters among which one stands furthest from the rest, and each one's isolation.

    Their number is the one that gives that.
    """
    best, labels, apart = -1.0, np.zeros(len(components), int), {}
    for number in range(2, min(MOST_GROUPS, len(components) // 4, _distinct(components)) + 1):
        found = _k_means(components, number, seed)
        isolation = _isolation(found, _silhouettes(components, found, seed))
        if isolation and max(isolation.values()) > best:
            best, labels, apart = max(isolation.values()), found, isolation
    return labels, apart


def _chance(components: np.ndarray, seed: int) -> float:
    """Return how far a group stands apart at most where there are none.

    Of normal and of uniform numbers with the components' own deviations: where few components
    carry a class, parts of it lie far from each other without being groups.
    """
    count = min(len(components), _SAMPLED)
    deviations = components.std(0)
    highest = -1.0
    for turn in range(_DRAWS):
        generator = np.random.default_rng((seed, turn))
        shape = (count, components.shape[1])
        for drawn in (generator.normal(size=shape), generator.uniform(-1, 1, shape) * 3**0.5):
            apart = _furthest(drawn * deviations, seed)[1]
            highest = max([highest, *apart.values()])
    return highest


def _distinct(components: np.ndarray) -> int:
    """Return how many images differ by more than rounding."""
    scale = np.abs(components).max(initial=0) or 1.0
    return len(np.unique(np.round(components / scale, 9), axis=0))


def _k_means(components: np.ndarray, number: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    starts: Any = 5  # which the library's annotations take for a text
    return KMeans(number, n_init=starts, random_state=seed).fit_predict(components)


def _silhouettes(components: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the silhouette of each image, (N,); NaN of those that are not sampled."""
    from sklearn.metrics import silhouette_samples

    values = np.full(len(labels), np.nan)
    sampled = np.arange(len(labels))
    if len(labels) > _SAMPLED:
        sampled = np.random.default_rng(seed).permutation(len(labels))[:_SAMPLED]
    if len(np.unique(labels[sampled])) > 1:
        values[sampled] = silhouette_samples(components[sampled], labels[sampled])
    return values


def _isolation(labels: np.ndarray, silhouettes: np.ndarray) -> dict[int, float]:
    """Return the mean silhouette of each cluster but the largest, and those of a few images."""
    share, least = _SMALLEST
    sizes = np.bincount(labels)
    fit = sizes >= max(share * len(labels), least)
    fit[sizes.argmax()] = False
    members = {each: silhouettes[labels == each] for each in np.flatnonzero(fit).tolist()}
    return {
        each: float(np.nanmean(values))
        for each, values in members.items()
        if bool(np.isfinite(values).any())
    }


def _stability(
    components: np.ndarray, labels: np.ndarray, chosen: list[int], seed: int, resamples: int
) -> list[float]:
    """Return for each cluster how alike the nearest one is when a fifth of the images is left out.

    Every time with other starts of k-means.
    """
    if not chosen or not resamples:
        return [float("nan")] * len(chosen)
    number = int(labels.max()) + 1
    alike = np.zeros((resamples, len(chosen)))
    for turn in range(resamples):
        generator = np.random.default_rng((seed, turn))
        kept = generator.permutation(len(labels))[: round(_KEPT * len(labels))]
        number = min(number, _distinct(components[kept]))
        found = _k_means(components[kept], number, seed + 1 + turn)
        for place, each in enumerate(chosen):
            members = labels[kept] == each
            jaccard = [
                (members & (found == other)).sum() / max((members | (found == other)).sum(), 1)
                for other in range(number)
            ]
            alike[turn, place] = max(jaccard)
    return alike.mean(0).tolist()


def _distances(components: np.ndarray) -> np.ndarray:
    """Return how far each image is from its tenth neighbour, in deviations from the median."""
    from sklearn.neighbors import NearestNeighbors

    count = len(components)
    if count <= _NEIGHBOUR or not components.shape[1]:
        return np.zeros(count)
    search = NearestNeighbors(n_neighbors=_NEIGHBOUR).fit(components)
    distance = search.kneighbors()[0][:, -1]
    centre = np.median(distance)
    deviation = 1.4826 * np.median(np.abs(distance - centre))
    return (distance - centre) / deviation if deviation > 0 else np.zeros(count)
