"""What the methods that perturb images share: batches, masks, superpixels, replacements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import quickshift, slic
from torch import Tensor, nn

from afmi.errors import ShapeError, UsageError
from afmi.gradients import forward_pass
from afmi.network.channels_last import in_fast_layout
from afmi.network.folding import FoldedExecution, folded_execution, run_folded
from afmi.network.memory import in_parts
from afmi.network.outputs import logits_of
from afmi.pictures.references import Blurred, Reference

__all__ = [
    "Grid",
    "Passes",
    "Quickshift",
    "Segmentation",
    "Slic",
    "at_224",
    "check_batch_size",
    "gaussian",
    "interpolation",
    "replacements",
    "superpixels",
]

_CPU_PIXELS = 8 * 224 * 224
_DEVICE_PIXELS = 64 * 224 * 224


def check_batch_size(batch_size: int | None) -> None:
    """Raise a `UsageError` unless it is None or a number from 1."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"expected a batch_size of at least 1, or None, got {batch_size}")


class Passes:
    """Run a network on many images, as many at once as are fast and fit into memory.

    Where there is too little memory for a batch, it is halved, for this and all later calls.

    Args:
        model: maps (N, C, H, W) to logits (N, K).
        like: images of the size and on the device of those to come.
        batch_size: the most images per call. None: as many as hold about 400,000 pixels on a
            CPU, whose caches make smaller batches faster (8 of side 224), and 8 times that on
            other devices.
    """

    def __init__(self, model: nn.Module, like: Tensor, batch_size: int | None = None) -> None:
        check_batch_size(batch_size)
        self.model = model
        if batch_size is None:
            pixels = _CPU_PIXELS if like.device.type == "cpu" else _DEVICE_PIXELS
            batch_size = max(1, pixels // (like.shape[-2] * like.shape[-1]))
        self.size = batch_size
        self._folded = folded_execution(model)

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """Cut ``count`` images into batches: (start, stop) of each."""
        return [(i, min(i + self.size, count)) for i in range(0, count, self.size)]

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, C, H, W)."""

        def run(start: int, stop: int) -> tuple[Tensor]:
            def logits(folded: FoldedExecution) -> Tensor:
                def classified(x: Tensor) -> Tensor:
                    with folded.intercepting():
                        return logits_of(self.model(x))

                return in_fast_layout(self.model, classified, images[start:stop])

            return (run_folded(self.model, logits, images, self._folded),)

        return self._halving(run, len(images))[0]

    def gradients(
        self, images: Tensor, slope: Callable[[Tensor, int, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and the gradient of a score by the images, (N, C, H, W).

        Args:
            images: (N, C, H, W).
            slope: returns ∂score/∂logits, given the logits of images ``start`` to ``stop``,
                and these two.
        """

        def run(start: int, stop: int) -> tuple[Tensor, Tensor]:
            some = images[start:stop]
            done = forward_pass(self.model, some, layer=None, folded=self._folded)
            return done.logits, done.pull_back(slope(done.logits, start, stop), last=True)

        logits, gradients = self._halving(run, len(images))
        return logits, gradients

    def class_gradients(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return ∂y_c/∂x of images x (N, C, H, W) and their classes c, int64 (N,)."""

        def chosen(logits: Tensor, start: int, stop: int) -> Tensor:
            return F.one_hot(classes[start:stop], logits.shape[1]).to(logits)

        return self.gradients(images, chosen)[1]

    def _halving(
        self, run: Callable[[int, int], tuple[Tensor, ...]], count: int
    ) -> tuple[Tensor, ...]:
        parts, self.size = in_parts(run, count, self.size)
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def at_224(length: float, inputs: Tensor) -> float:
    """Scale a length in pixels that a paper gives for images of side 224 to these images."""
    return length * min(inputs.shape[-2:]) / 224


def interpolation(cells: int, size: int) -> Tensor:
    """Return the matrix (size, cells), float64, that interpolates cells linearly to pixels.

    It is what ``F.interpolate(…, mode="bilinear", align_corners=False)`` does along one axis.
    """
    identity = torch.eye(cells, dtype=torch.float64)
    return F.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T


def gaussian(size: int, sigma: float) -> Tensor:
    """Return the matrix (size, size), float64, that blurs a row; its own rows sum to 1."""
    # Each row of the identity as an image of one row.
    identity = torch.eye(size, dtype=torch.float64)
    return Blurred(sigma)(identity[:, None, None])[:, 0, 0].T


def replacements(reference: Reference, inputs: Tensor) -> Tensor:
    """Return what each image's hidden pixels are replaced with: (N, R, C, H, W).

    R is 1 for a reference that is made per image, and the number of its images otherwise.
    """
    images = reference(inputs)
    if reference.per_image:
        return images[:, None]
    return images[None].expand(inputs.shape[0], *images.shape)


class Segmentation(ABC):
    """Cuts an image into superpixels."""

    @abstractmethod
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return an integer label for each pixel, (H, W), of an image (H, W, C) in [0, 1]."""


@dataclass(frozen=True)
class Quickshift(Segmentation):
    """Superpixels by quickshift, with the settings of LIME's authors for photographs.

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
        color = image.shape[2] == 3
        kernel, distance = self.kernel_size, self.max_distance
        while kernel >= 1:
            labels = quickshift(
                image,
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
        labels = slic(
            image,
            n_segments=self.segments,
            compactness=self.compactness,
            sigma=self.sigma * min(image.shape[:2]) / 224,
            convert2lab=image.shape[2] == 3,
            channel_axis=2,
        )
        return np.asarray(labels)


@dataclass(frozen=True)
class Grid(Segmentation):
    """Rectangles of equal size.

    Args:
        cells: how many along each side; never more than pixels.
    """

    cells: int = 7

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.cells < 1:
            raise UsageError(f"expected at least 1 cell along each side, got {self.cells}")
        height, width = image.shape[:2]
        rows, columns = min(self.cells, height), min(self.cells, width)
        row = np.arange(height) * rows // height
        column = np.arange(width) * columns // width
        return row[:, None] * columns + column[None]


def superpixels(segmentation: Callable[[np.ndarray], np.ndarray], image: Tensor) -> Tensor:
    """Cut an image (C, H, W) into superpixels: labels 0 … d − 1, int64 (H, W), none missing.

    One channel is shown to the segmentation as grey; values outside [0, 1], which a bare network
    may take, are brought there.

    Args:
        segmentation: a `Segmentation`, or any callable from an array (H, W, C) in [0, 1] to
            labels (H, W).
        image: (C, H, W).
    """
    pixels = image.detach().to("cpu", torch.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, torch.finfo(torch.float64).tiny)
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    labels = np.asarray(segmentation(pixels.permute(1, 2, 0).contiguous().numpy()))
    if labels.shape != tuple(image.shape[1:]):
        raise ShapeError(
            f"expected superpixel labels of shape {tuple(image.shape[1:])}, got {labels.shape}"
        )
    _, labels = np.unique(labels, return_inverse=True)
    return torch.from_numpy(labels.reshape(image.shape[1:]).astype(np.int64)).to(image.device)
