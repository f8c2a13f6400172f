"""Saliency maps: upsample, rank pixels, keep the top share of them, scale for display."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.errors import ShapeError, UsageError

__all__ = ["channel_maximum", "display_range", "rank_pixels", "top_mask", "upsample"]


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (N, 1, h, w) at ``size`` = (H, W), interpolated bilinearly."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def channel_maximum(attributions: Tensor) -> Tensor:
    """Return each pixel's largest magnitude over the channels: (N, C, H, W) → (N, 1, H, W)."""
    return attributions.abs().amax(1, keepdim=True)


def rank_pixels(maps: Tensor) -> Tensor:
    """Rank the pixels of each map, the highest first.

    Equal pixels are ranked in reading order, on every device.

    Args:
        maps: (N, 1, H, W).

    Returns:
        Flat positions, int64 (N, H·W): row i lists image i's pixels from first to last.

    Example:
        >>> rank_pixels(torch.tensor([[[[0.0, 2.0], [2.0, 1.0]]]])).tolist()
        [[1, 2, 3, 0]]
    """
    if maps.dim() != 4 or maps.shape[1] != 1:
        raise ShapeError(f"expected maps of shape (N, 1, H, W), got {tuple(maps.shape)}")
    return maps.flatten(1).argsort(dim=1, descending=True, stable=True)


def top_mask(maps: Tensor, fraction: float) -> Tensor:
    """Mark the top ``fraction`` of each map's pixels (the paper's PI, Appendix A.3).

    Args:
        maps: (N, 1, H, W).
        fraction: share of the pixels to keep, from 0 to 1; the number is rounded to the nearest
            whole one, halves up.

    Returns:
        bool (N, 1, H, W).
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"expected a fraction from 0 to 1, got {fraction}")
    order = rank_pixels(maps)
    count = math.floor(fraction * order.shape[1] + 0.5)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter_(1, order[:, :count], True).view(maps.shape)


def display_range(values: Tensor) -> tuple[float, float]:
    """Return the range that a picture of a map should span.

    A map with negative values gets a symmetric range, so that zero falls in the middle of a
    diverging colour map. Another begins at its lowest value: RISE's scores, say, are all well above
    zero, and only their differences tell. The strongest 0.5 % of the pixels do not stretch it.

    Args:
        values: one map, any shape.
    """
    flat = values.detach().double().flatten()
    low = float(torch.quantile(flat, 0.005)) if flat.numel() <= 2**24 else float(flat.min())
    high = float(torch.quantile(flat, 0.995)) if flat.numel() <= 2**24 else float(flat.max())
    if float(flat.min()) < 0:
        bound = max(abs(low), abs(high)) or float(flat.abs().max())
        return -bound, bound
    lowest = float(flat.min())
    if lowest == float(flat.max()):
        return 0.0, high or 1.0
    return lowest, high if high > lowest else float(flat.max())
