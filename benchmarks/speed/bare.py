"""The passes that a method cannot do without, as a user would write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from afmi.gradients.passes import BatchRunner
from afmi.methods.work import Work

from .harness import Plan, Run, Stopwatch, measure
from .settings import LAYOUTS

__all__ = ["best_batch", "forward", "passes"]

BATCHES = (1, 2, 4, 8, 16)


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Return one forward pass of images (N, C, H, W)."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def passes(
    model: nn.Module, image: Tensor, work: Work, batch: int, layout: str, target: int = 0
) -> Run:
    """Return ``work`` on an image (1, C, H, W), so many of it at once, in a layout of `LAYOUTS`.

    Each backward pass, to the input, comes with a forward pass of its own.
    """
    backwards = round(work.backwards)
    forwards = round(work.forwards) - backwards
    many = image.repeat(batch, 1, 1, 1).contiguous(memory_format=LAYOUTS[layout])

    def run() -> None:
        for start in range(0, backwards, batch):
            leaf = many[: backwards - start].detach().requires_grad_()
            torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
        with torch.inference_mode():
            for start in range(0, forwards, batch):
                model(many[: forwards - start])

    return run


def best_batch(
    model: nn.Module,
    image: Tensor,
    layout: str,
    watch: Stopwatch,
    *,
    backward: bool,
    most: int = BATCHES[-1],
) -> int:
    """Return in which batches of up to ``most`` passes take the least time.

    Among those tried are the batches that our own methods would take.
    """
    sizes = sorted(size for size in {*BATCHES, BatchRunner(model, image).size} if size <= most)
    count = sizes[-1]
    work = Work(count, count) if backward else Work(count)
    tried = {str(size): passes(model, image, work, size, layout) for size in sizes}
    timings = measure(tried, Plan(seconds=2, least=2, most=7), watch, image.device)
    return int(timings.fastest(list(tried)) or 1)
