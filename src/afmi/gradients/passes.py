"""Run a network on many images, in batches that are fast and fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients import forward_pass
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_model, check_run, named_failures
from afmi.network.memory import in_parts
from afmi.network.outputs import responses
from afmi.network.trial import meaning_of, try_once
from afmi.network.watch import run_watched

__all__ = ["BatchRunner", "check_batch_size"]

_CPU_PIXELS = 8 * 224 * 224
_DEVICE_PIXELS = 64 * 224 * 224


def check_batch_size(batch_size: int | None) -> None:
    """Raise a `UsageError` unless it is None or a number from 1."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"expected a batch_size of at least 1, or None, got {batch_size}")


class BatchRunner:
    """Run a network on many images, as many at once as are fast and fit into memory.

    Where there is too little memory for a batch, it is halved, for this and all later calls.

    Args:
        model: maps (N, C, *spatial) to logits (N, K).
        like: images of the size and on the device of those to come.
        batch_size: the most images per call. None: as many as hold about 400,000 pixels on a
            CPU, whose caches make smaller batches faster (8 of side 224), and 8 times that on
            other devices.
    """

    def __init__(self, model: nn.Module, like: Tensor, batch_size: int | None = None) -> None:
        check_model(model)
        check_batch_size(batch_size)
        self.model = model
        if batch_size is None:
            pixels = _CPU_PIXELS if like.device.type == "cpu" else _DEVICE_PIXELS
            batch_size = max(1, pixels // like[0, 0].numel())
        self.size = batch_size

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """Cut ``count`` images into batches: (start, stop) of each."""
        return [(i, min(i + self.size, count)) for i in range(0, count, self.size)]

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, C, *spatial)."""

        def run(start: int, stop: int) -> tuple[Tensor]:
            watched = partial(run_watched, self.model)
            rows = in_fast_layout(self.model, watched, images[start:stop])
            return (check_run(rows, images[start:stop]),)

        with named_failures(self.model, images):
            try_once(self.model, images)
            return self._halving(run, len(images))[0]

    def responses(
        self, images: Tensor, dtype: torch.dtype = torch.float64, device: Any = "cpu"
    ) -> Tensor:
        """Return the probabilities (N, K) that the network gives images, or its values.

        Args:
            images: (N, C, H, W).
            dtype: to compute them in.
            device: to compute them on.
        """
        scores = self.logits(images).to(device, dtype)
        return responses(scores, meaning_of(self.model, images))

    def gradients(
        self, images: Tensor, slope: Callable[[Tensor, int, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and the gradient of a score by the images, (N, C, *spatial).

        Args:
            images: (N, C, *spatial).
            slope: returns ∂score/∂logits, given the logits of images ``start`` to ``stop``,
                and these two.
        """

        def run(start: int, stop: int) -> tuple[Tensor, Tensor]:
            some = images[start:stop]
            done = forward_pass(self.model, some, layer=None)
            return done.logits, done.pull_back(slope(done.logits, start, stop), last=True)

        logits, gradients = self._halving(run, len(images))
        return logits, gradients

    def class_gradients(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return ∂y_c/∂x of images x (N, C, *spatial) and their classes c, int64 (N,)."""

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
