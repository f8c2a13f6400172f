"""Gradients averaged on the straight way from a reference to an image."""

from __future__ import annotations

import torch
from torch import Tensor

from afmi.gradients.passes import Passes
from afmi.progress import track

__all__ = ["integrated_gradients", "starts"]


def starts(references: Tensor, *, per_image: bool) -> list[Tensor]:
    """Return the beginnings of the ways: tensors (1 or N, C, H, W), one for each reference.

    Args:
        references: (R, C, H, W).
        per_image: whether reference i belongs to image i only.
    """
    return [references] if per_image else list(references.split(1))


def integrated_gradients(
    passes: Passes,
    inputs: Tensor,
    start: Tensor,
    classes: Tensor,
    *,
    steps: int,
    description: str,
) -> Tensor:
    """Return (x − x̄) · (1/m) Σ_s ∂y_c/∂x at x̄ + α_s (x − x̄) with α_s = (s − ½)/m.

    Args:
        passes: of the network.
        inputs: images x (N, C, H, W).
        start: where the ways begin, x̄ (1 or N, C, H, W).
        classes: int64 (N,).
        steps: m, points on each way.
        description: what progress is reported as.

    Returns:
        (N, C, H, W).
    """
    start = start.expand_as(inputs)
    way = inputs - start
    total = torch.zeros_like(inputs)
    # Every point of every image's way: point p lies on the way of image p // steps.
    points = torch.arange(inputs.shape[0] * steps, device=inputs.device)
    for chunk in track(points.split(passes.size), description):
        image = chunk // steps
        alpha = ((chunk % steps).to(inputs.dtype) + 0.5) / steps
        x = torch.addcmul(start[image], alpha.view(-1, 1, 1, 1), way[image])
        total.index_add_(0, image, passes.class_gradients(x, classes[image]))
    return total / steps * way
