"""Matrices that act along one side of an image: interpolation and blur."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Edges = Literal["renormalised", "zero"]

__all__ = ["CellsToPixels", "at_224", "crops", "gaussian", "interpolation", "product"]


def at_224(length: float, inputs: Tensor) -> float:
    """Scale a length in pixels that a paper gives for images of side 224 to these images."""
    return length * min(inputs.shape[-2:]) / 224


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


def product(*factors: Tensor) -> Tensor:
    """Return the matrix product of two or more tensors, in their own precision.

    Autocast, which a user switches on for the network, would compute it in 16 bits.
    """
    device = factors[0].device.type
    off = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if off else nullcontext():
        return reduce(torch.matmul, factors)


def crops(matrix: Tensor, size: int) -> Tensor:
    """Return all runs of ``size`` rows of a matrix (n, cells): (n − size + 1, size, cells)."""
    return torch.stack([matrix[i : i + size] for i in range(len(matrix) - size + 1)])


@dataclass(frozen=True)
class CellsToPixels:
    """Spread coarse masks over the pixels, and take gradients back to the cells.

    Attributes:
        down: from cells to pixels along the height, ([B,] H, h).
        across: the same along the width, ([B,] W, w).
    """

    down: Tensor
    across: Tensor

    def __call__(self, masks: Tensor) -> Tensor:
        """Return masks (B, h, w) at pixel size, (B, 1, H, W)."""
        return product(self.down, masks, self.across.mT)[:, None]

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the cells, (B, h, w), given the one by pixels (B, 1, H, W)."""
        return product(self.down.mT, gradient[:, 0], self.across)
