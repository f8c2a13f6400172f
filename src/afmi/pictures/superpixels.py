"""Superpixels: cut an image into parts that look alike.

scikit-image is imported only when a segmentation of its runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afmi import specs
from afmi.errors import ShapeError, UsageError
from afmi.packages import imported

__all__ = ["Grid", "Quickshift", "Segmentation", "Slic", "superpixels"]


_LIGHTNESS = 100
"""From black to white in CIELAB, the space that the settings for photographs are meant for."""


def _segmentation() -> Any:
    return imported("skimage.segmentation", "a cut into superpixels", "afmi[regions]")


class Segmentation(ABC):
    """Cuts an image into superpixels.

    Three channels are red, green and blue, compared in CIELAB. Of any other number all count
    alike: two pixels that differ by 1 in every channel are as far apart as black and white.
    """

    @abstractmethod
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return an integer label for each pixel of an image (*spatial, C) in [0, 1]."""


@dataclass(frozen=True)
class Quickshift(Segmentation):
    """Superpixels by quickshift, with the settings of LIME's authors for photographs.

    Signals and volumes, for which it was not made, are cut by `Slic` with its defaults.
    Small pictures fall into one or two such superpixels, which explain nothing; there the kernel
    is halved until there are ``at_least`` superpixels, or else `Grid` takes its place.

    Paper: Vedaldi & Soatto, *Quick Shift and Kernel Methods for Mode Seeking*, ECCV 2008.

    Args:
        kernel_size: width of the Gaussian of the density, in pixels; larger: fewer superpixels.
        max_distance: the longest link inside a superpixel.
        ratio: weight of colour against position, from 0 to 1.
        at_least: the fewest superpixels to accept.
    """

    kernel_size: int = 4
    max_distance: int = 200
    ratio: float = 0.2
    at_least: int = 10

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3:
            return Slic()(image)
        quickshift = _segmentation().quickshift
        channels = image.shape[2]
        color = channels == 3
        bands = image if color else image * (_LIGHTNESS / math.sqrt(channels))
        kernel, distance = self.kernel_size, self.max_distance
        while kernel >= 1:
            labels = quickshift(
                bands,
                kernel_size=kernel,
                max_dist=distance,
                ratio=self.ratio,
                convert2lab=color,
            )
            if labels.max() + 1 >= self.at_least:
                return labels
            kernel, distance = kernel // 2, distance // 2
        return Grid(math.isqrt(max(self.at_least - 1, 0)) + 1)(image)


@dataclass(frozen=True)
class Slic(Segmentation):
    """Superpixels of about the same size, with SHAP's authors' settings for photographs.

    Volumes are cut into supervoxels, signals into intervals of equal length.

    Paper: Achanta et al., *SLIC Superpixels Compared to State-of-the-Art Superpixel Methods*,
    TPAMI 2012.

    Args:
        segments: about how many superpixels.
        compactness: weight of position against colour.
        sigma: of the blur before, in pixels at 224 pixels' side, in proportion for others.
    """

    segments: int = 50
    compactness: float = 30
    sigma: float = 3

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.ndim == 2:
            return Grid(self.segments)(image)
        slic = _segmentation().slic
        channels = image.shape[-1]
        color = channels == 3
        labels = slic(
            image,
            n_segments=self.segments,
            # It brings the image to [0, 1] before anything else, so the weight is scaled instead.
            compactness=self.compactness / (1 if color else _LIGHTNESS / math.sqrt(channels)),
            sigma=self.sigma * min(image.shape[-3:-1]) / 224,
            convert2lab=color,
            channel_axis=-1,
        )
        return np.asarray(labels)


@dataclass(frozen=True)
class Grid(Segmentation):
    """Rectangles of equal size: blocks of a volume, intervals of a signal.

    Args:
        cells: how many along each side; never more than pixels.
    """

    cells: int = 7

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.cells < 1:
            raise UsageError(f"expected at least 1 cell along each side, got {self.cells}")
        labels = np.zeros((), dtype=np.int64)
        for size in image.shape[:-1]:
            cells = min(self.cells, size)
            labels = labels[..., None] * cells + np.arange(size) * cells // size
        return labels


specs.register(
    Segmentation,
    "segmentation",
    lambda: {"Quickshift": Quickshift, "Slic": Slic, "Grid": Grid},
)


def superpixels(segmentation: Callable[[np.ndarray], np.ndarray], image: Tensor) -> Tensor:
    """Cut an image (C, *spatial) into superpixels: labels 0 … d − 1, int64, none missing.

    One channel is shown to the segmentation as grey; values outside [0, 1], which a bare network
    may take, are brought there.

    Args:
        segmentation: a `Segmentation`, or any callable from an array (*spatial, C) in [0, 1] to
            labels (*spatial).
        image: (C, *spatial).
    """
    pixels = image.detach().to("cpu", torch.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, torch.finfo(torch.float64).tiny)
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, *pixels.shape[1:])
    labels = np.asarray(segmentation(pixels.movedim(0, -1).contiguous().numpy()))
    if labels.shape != tuple(image.shape[1:]):
        raise ShapeError(
            f"expected superpixel labels of shape {tuple(image.shape[1:])}, got {labels.shape}"
        )
    _, labels = np.unique(labels, return_inverse=True)
    return torch.from_numpy(labels.reshape(image.shape[1:]).astype(np.int64)).to(image.device)
