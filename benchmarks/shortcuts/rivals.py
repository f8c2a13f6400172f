"""What images are described by instead, where people look for shortcuts today."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afmi import AFMI, Classifier
from afmi.auditing.grouping import evidence_of
from afmi.methods import LRP, GradCAM, Method

__all__ = ["DESCRIPTIONS", "spectral_groups"]

_BATCH = 110
_SIDE = 16
"""Pixels a side of the maps that SpRAy compares."""
_MOST = 8
_NEIGHBOURS = 10

Description = Callable[[Classifier, Tensor, Tensor], np.ndarray]


def _contributions(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    method = AFMI(model)
    parts = [
        method.attribution(some, of).vectors["contribution"]
        for some, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    ]
    return evidence_of(torch.cat(parts).numpy())


def _places(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return the evidence of the exact map, place by place."""
    method = AFMI(model, averaged=False)
    maps = []
    for some, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        coarse = method.attribution(some, of).coarse
        assert coarse is not None
        maps.append(F.adaptive_avg_pool2d(coarse.clamp_min(0), _SIDE).flatten(1))
    places = torch.cat(maps).numpy()
    return evidence_of(places / np.maximum(places.sum(1, keepdims=True), 1e-12))


def _of_all_classes(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return the evidence for the own class, and for each of the classes."""
    method = AFMI(model)
    parts = []
    for some, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        rows = torch.stack([of, *(torch.full_like(of, n) for n in range(len(model.labels)))])
        vectors = [each.vectors["contribution"] for each in method.attributions(some, rows)]
        parts.append(torch.cat(vectors, 1))
    return evidence_of(torch.cat(parts).numpy())


def _unit_length(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return the contributions, signed, each image's scaled to length 1."""
    method = AFMI(model)
    parts = [
        F.normalize(method.attribution(some, of).vectors["contribution"])
        for some, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    ]
    return torch.cat(parts).numpy()


def _penultimate(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """What the last linear layer sees."""
    features, head = model.wrapped
    with torch.no_grad():
        parts = [
            head[:-1](features((some - model.mean) / model.std)) for some in images.split(_BATCH)
        ]
    return torch.cat(parts).numpy()


def _pixels(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    return F.adaptive_avg_pool2d(images, _SIDE).flatten(1).numpy()


def _maps_of(method: type[Method]) -> Description:
    def describe(model: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
        parts = [
            F.adaptive_avg_pool2d(method(model).attribute(some, of), _SIDE)
            for some, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
        ]
        maps = torch.cat(parts).flatten(1)
        # Each map by itself, as SpRAy does, so that strong ones do not decide.
        return (maps / maps.abs().sum(1, keepdim=True).clamp_min(1e-12)).numpy()

    return describe


DESCRIPTIONS: dict[str, Description] = {
    "contributions": _contributions,
    "exact maps": _places,
    "contributions to all classes": _of_all_classes,
    "contributions, signed, length 1": _unit_length,
    "penultimate features": _penultimate,
    "Grad-CAM maps": _maps_of(GradCAM),
    "LRP maps": _maps_of(LRP),
    "pixels": _pixels,
}


def spectral_groups(maps: np.ndarray, seed: int) -> np.ndarray:
    """Return groups as SpRAy finds them: spectral clustering, their number by the eigengap.

    Lapuschkin et al., *Unmasking Clever Hans predictors*, Nature Communications 2019.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(maps, _NEIGHBOURS, include_self=False)
    affinity = 0.5 * (graph + graph.T).toarray()
    degree = affinity.sum(1)
    laplacian = np.eye(len(affinity)) - affinity / np.sqrt(np.outer(degree, degree))
    values = np.linalg.eigvalsh(laplacian)[: _MOST + 1]
    number = max(int(np.argmax(np.diff(values)[1:])) + 2, 2)
    clusters = SpectralClustering(number, affinity="precomputed", random_state=seed)
    return clusters.fit_predict(affinity)
