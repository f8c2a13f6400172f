"""Gradients at points on the straight ways from references to images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from afmi.gradients.passes import BatchRunner
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = ["gradients_on_the_way", "integrated_gradients"]


def gradients_on_the_way(
    runner: BatchRunner,
    inputs: Tensor,
    references: Tensor,
    classes: Tensor,
    which: Tensor,
    alpha: Tensor,
    *,
    description: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ∂y_c/∂x at x̄ + α (x − x̄), batch by batch, for as many points of each image x.

    Args:
        runner: of the network.
        inputs: images x (N, C, H, W).
        references: images x̄ (R, C, H, W).
        classes: c, int64 (N,).
        which: index of each point's reference, int64 (N · points,), image by image.
        alpha: how far each point lies on its way, (N · points,).
        description: what progress is reported as.

    Yields:
        For B points at a time: the index of each one's image, int64 (B,), its way x − x̄ and its
        gradient, (B, C, H, W).
    """
    points = torch.arange(which.numel(), device=inputs.device)
    for chunk in track(points.split(runner.size), description):
        image = chunk // (which.numel() // inputs.shape[0])
        start = references[which[chunk]]
        way = inputs[image] - start
        x = torch.addcmul(start, alpha[chunk].view(-1, 1, 1, 1), way)
        yield image, way, runner.class_gradients(x, classes[image])


def integrated_gradients(
    runner: BatchRunner,
    inputs: Tensor,
    reference: Reference,
    classes: Tensor,
    *,
    steps: int,
    description: str,
) -> Tensor:
    """Return (x − x̄) · (1/m) Σ_s ∂y_c/∂x at x̄ + α_s (x − x̄) with α_s = (s − ½)/m.

    Args:
        runner: of the network.
        inputs: images x (N, C, H, W).
        reference: gives the x̄ where the ways begin, R for each image.
        classes: int64 (N,).
        steps: m, points on each way.
        description: what progress is reported as.

    Returns:
        (R, N, C, H, W).
    """
    count = inputs.shape[0]
    alpha = (torch.arange(steps, dtype=inputs.dtype, device=inputs.device) + 0.5) / steps
    integrated = []
    for start in reference.for_each(inputs).transpose(0, 1):
        total = torch.zeros_like(inputs)
        which = torch.arange(count, device=inputs.device).repeat_interleave(steps)
        for image, _, gradients in gradients_on_the_way(
            runner, inputs, start, classes, which, alpha.repeat(count), description=description
        ):
            total.index_add_(0, image, gradients)
        integrated.append(total / steps * (inputs - start))
    return torch.stack(integrated)
