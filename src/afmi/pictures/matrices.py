"""Matrices that act along the sides of an image: interpolation and blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.pictures.dimensions import plane

Edges = Literal["renormalised", "zero"]

__all__ = [
    "BLUR_SHARE",
    "CellsToPixels",
    "along",
    "along_each",
    "at_224",
    "blurring",
    "crops",
    "gaussian",
    "interpolation",
    "product",
    "unfolded",
]


def at_224(length: float, inputs: Tensor) -> float:
    """Scale a length in pixels that a paper gives for images of side 224 to these images."""
    return length * plane(inputs) / 224


def interpolation(cells: int, size: int) -> Tensor:
    """Return the matrix (size, cells), float64, that interpolates cells linearly to pixels.

    It is what ``F.interpolate(…, mode="bilinear", align_corners=False)`` does along one axis.
    """
    identity = torch.eye(cells, dtype=torch.float64, device="cpu")
    return F.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T


def gaussian(
    size: int, sigma: float, *, edges: Literal["renormalised", "zero"] = "renormalised"
) -> Tensor:
    """Return the matrix (size, size), float64, that blurs a row.

    Args:
        size: of the row.
        sigma: standard deviation, in its places.
        edges: ``"renormalised"``: the matrix's own rows sum to 1, also at the edges. ``"zero"``:
            as if the row were 0 beyond them, so that rows near the edges sum to less.
    """
    position = torch.arange(size, dtype=torch.float64, device="cpu")
    weight = torch.exp(-((position[:, None] - position[None]) ** 2) / (2 * sigma**2))
    if edges == "renormalised":
        return weight / weight.sum(1, keepdim=True)
    reach = math.ceil(8 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
    return weight / torch.exp(-(line**2) / (2 * sigma**2)).sum()


BLUR_SHARE = 0.1
"""Standard deviation of a blur that leaves no detail, in shorter sides of the image."""


def blurring(inputs: Tensor, share: float, *, sigma: float | None = None) -> list[Tensor]:
    """Return a matrix for each side of images (N, C, *spatial) that blurs them by a Gaussian.

    Args:
        inputs: the images, in whose dtype and on whose device the matrices are.
        share: standard deviation in shorter sides; at least half a pixel. Across the slices of a
            volume, of which there are often few, it is a share of their number.
        sigma: standard deviation in pixels instead.
    """
    slices = inputs.shape[2:-2]
    sides = [*slices, *[plane(inputs)] * (inputs.dim() - 2 - len(slices))]
    return [
        gaussian(size, sigma or max(share * side, 0.5)).to(inputs)
        for size, side in zip(inputs.shape[2:], sides, strict=True)
    ]


def product(*factors: Tensor) -> Tensor:
    """Return the matrix product of two or more tensors, in their own precision.

    Autocast, which a user switches on for the network, would compute it in 16 bits.
    """
    device = factors[0].device.type
    off = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if off else nullcontext():
        return reduce(torch.matmul, factors)


def along(matrix: Tensor, x: Tensor, side: int) -> Tensor:
    """Return x with a matrix applied along one of its dimensions.

    Args:
        matrix: (n, m), or one for each row of x, (B, n, m).
        x: (B, …), m long in that dimension, which becomes n.
        side: the dimension, from the end: −1 is the last.
    """
    if matrix.dim() > 2:
        matrix = matrix.view(len(matrix), *[1] * (x.dim() - 3), *matrix.shape[1:])
    if side == -1:
        return product(x, matrix.mT)
    return product(matrix, x.movedim(side, -2)).movedim(-2, side)


def along_each(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return x (B, C, *sides) with one matrix applied along each of its sides, the first first."""
    for side, matrix in enumerate(matrices, -len(matrices)):
        x = along(matrix, x, side)
    return x


def crops(matrix: Tensor, size: int) -> Tensor:
    """Return all runs of ``size`` rows of a matrix (n, cells): (n − size + 1, size, cells)."""
    return torch.stack([matrix[i : i + size] for i in range(len(matrix) - size + 1)])


def unfolded(x: Tensor, side: int) -> Tensor:
    """Return all windows, (B, places of a window, windows), of x (B, L) or (B, H, W)."""
    return x.unfold(1, side, 1).mT if x.dim() == 2 else F.unfold(x[:, None], side)


@dataclass(frozen=True)
class CellsToPixels:
    """Spread coarse masks over the pixels, and take gradients back to the cells.

    Attributes:
        sides: from cells to pixels along each side of the images, ([B,] size, cells).
    """

    sides: tuple[Tensor, ...]

    def __call__(self, masks: Tensor) -> Tensor:
        """Return masks (B, *cells) at pixel size, (B, 1, *spatial)."""
        return along_each(self.sides, masks[:, None])

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the cells, (B, *cells), given the one by pixels."""
        return along_each([side.mT for side in self.sides], gradient)[:, 0]
