"""Saliency maps: upsample, rank pixels, keep the top share of them, compare, scale for display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.errors import ShapeError, UsageError

__all__ = [
    "INTERPOLATION",
    "Scale",
    "channel_maximum",
    "display_range",
    "is_blank",
    "rank_correlation",
    "rank_pixels",
    "top_mask",
    "upsample",
]


INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""What PyTorch calls it, by the number of spatial dimensions."""


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, 1, *coarse) at a size such as (H, W), interpolated linearly along each side.

    Raises:
        ShapeError: when they have another number of dimensions.
    """
    size = tuple(size)
    if tuple(maps.shape[2:]) == size:
        return maps
    if maps.dim() != 2 + len(size):
        raise ShapeError(
            f"expected maps with as many sides as the images of size {size}, got "
            f"{tuple(maps.shape)}"
        )
    return F.interpolate(maps, size=size, mode=INTERPOLATION[len(size)], align_corners=False)


def channel_maximum(attributions: Tensor) -> Tensor:
    """Return each pixel's largest magnitude over the channels, (N, 1, *spatial)."""
    return attributions.abs().amax(1, keepdim=True)


def rank_pixels(maps: Tensor) -> Tensor:
    """Rank the pixels of each map, the highest first.

    Equal pixels are ranked in reading order, on every device.

    Args:
        maps: (N, 1, H, W), or (N, 1, L) or (N, 1, D, H, W) of signals and volumes.

    Returns:
        Flat positions, int64 (N, pixels): row i lists image i's pixels from first to last.

    Example:
        >>> rank_pixels(torch.tensor([[[[0.0, 2.0], [2.0, 1.0]]]])).tolist()
        [[1, 2, 3, 0]]
    """
    if not _are_maps(maps):
        raise ShapeError(f"expected maps of shape (N, 1, H, W), got {tuple(maps.shape)}")
    return maps.flatten(1).argsort(dim=1, descending=True, stable=True)


def _are_maps(maps: Tensor) -> bool:
    return maps.dim() in (3, 4, 5) and maps.shape[1] == 1


def top_mask(maps: Tensor, fraction: float) -> Tensor:
    """Mark the top ``fraction`` of each map's pixels (the paper's PI, Appendix A.3).

    Args:
        maps: (N, 1, *spatial).
        fraction: share of the pixels to keep, from 0 to 1; the number is rounded to the nearest
            whole one, halves up.

    Returns:
        bool (N, 1, *spatial).
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"expected a fraction from 0 to 1, got {fraction}")
    order = rank_pixels(maps)
    count = math.floor(fraction * order.shape[1] + 0.5)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter_(1, order[:, :count], True).view(maps.shape)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps.

    ρ = Pearson's correlation of the pixels' ranks, where equal pixels share the mean of their
    ranks. It depends on the order of the pixels alone, not on the maps' scale.

    Args:
        first: (N, 1, *spatial).
        second: (N, 1, *spatial).

    Returns:
        float64 (N,) on the CPU, from −1 to 1; NaN where a map is the same everywhere.

    Example:
        >>> up = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> rank_correlation(up, up.exp()).item(), rank_correlation(up, -up).item()
        (1.0, -1.0)
    """
    if first.shape != second.shape or not _are_maps(first):
        raise ShapeError(
            "expected two batches of maps of one shape (N, 1, H, W), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    one, other = _centred_ranks(first), _centred_ranks(second)
    # 0/0 where a map has one rank only, which is the NaN wanted.
    scale = ((one * one).sum(1) * (other * other).sum(1)).sqrt()
    return ((one * other).sum(1) / scale).clamp(-1, 1)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Return each pixel's rank, less the mean rank: float64 (N, pixels) on the CPU."""
    flat = maps.detach().to("cpu", torch.float64).flatten(1)
    # NumPy's sort is the fastest here; equal pixels may come in any order.
    order = torch.from_numpy(flat.numpy().argsort(axis=1))
    values = flat.gather(1, order)
    # Pixels of one value are a run in sorted order; all get the mean position of their run.
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    run = starts.long().cumsum(1) - 1
    sizes = torch.zeros_like(values)
    sizes.scatter_add_(1, run, torch.ones_like(sizes))
    mean = sizes.cumsum(1) - (sizes + 1) / 2 - (flat.shape[1] - 1) / 2
    return torch.empty_like(mean).scatter_(1, order, mean.gather(1, run))


def is_blank(maps: Tensor) -> Tensor:
    """Tell which maps are the same everywhere within rounding, so that they rank no pixel.

    Args:
        maps: (N, …).

    Returns:
        bool (N,).

    Example:
        >>> is_blank(torch.tensor([[[[0.1, 0.1 + 1e-8]]], [[[0.0, 1e-8]]]])).tolist()
        [True, False]
    """
    low, high = maps.flatten(1).aminmax(dim=1)
    return high - low <= 4 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())


class Scale(NamedTuple):
    """What the colours of a map's picture span.

    Attributes:
        low: the value of the one end.
        high: that of the other, above ``low``.
        signed: whether the colours part at zero, in the middle, into for and against.
    """

    low: float
    high: float
    signed: bool


def display_range(values: Tensor, *, signed: bool = True) -> Scale:
    """Return the scale that a picture of a map should have.

    That of a signed map is symmetric, so that zero falls in the middle of a diverging colour map,
    whatever its values: a method's pictures look alike. Another begins at its lowest value: RISE's
    scores, say, are all well above zero, and only their differences tell. The strongest 0.5 % of
    the pixels do not stretch it.

    Args:
        values: one map, any shape.
        signed: whether negative values are evidence against the class; see `Method.signed`.

    Example:
        >>> display_range(torch.tensor([1.0, 1.0]))
        Scale(low=-1.0, high=1.0, signed=True)
    """
    flat = values.detach().to("cpu", torch.float64).flatten()
    lowest, highest = float(flat.min()), float(flat.max())
    few = flat.numel() <= 2**24
    high = float(torch.quantile(flat, 0.995)) if few else highest
    if signed:
        low = float(torch.quantile(flat, 0.005)) if few else lowest
        bound = max(abs(low), abs(high)) or max(abs(lowest), abs(highest)) or 1.0
        return Scale(-bound, bound, signed)
    if bool(is_blank(values.detach().reshape(1, -1))):
        low, high = min(lowest, 0.0), max(highest, 0.0)
        return Scale(low, high if low < high else 1.0, signed)
    return Scale(lowest, high if high > lowest else highest, signed)
