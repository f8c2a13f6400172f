"""What to do when a batch of images does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["in_parts", "is_out_of_memory"]

T = TypeVar("T")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a tensor could not be allocated, on a GPU or a CPU."""
    # On a CPU PyTorch raises a plain RuntimeError, known by its allocator's words alone.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_parts(run: Callable[[int, int], T], count: int, size: int) -> tuple[list[T], int]:
    """Run over ``count`` images in batches, which are halved where memory does not do for one.

    Args:
        run: called with the start and the stop of each batch, in order.
        count: how many images there are.
        size: the most images in a batch.

    Returns:
        What the runs gave, and the size of batches that did fit.

    Raises:
        RuntimeError: one image alone does not fit.
    """
    parts: list[T] = []
    start = 0
    while start < count:
        stop = min(start + size, count)
        try:
            parts.append(run(start, stop))
            start = stop
            continue
        except RuntimeError as error:
            if stop - start == 1 or not is_out_of_memory(error):
                raise
            size = (stop - start) // 2
        # Only now are the failed run's tensors gone, with its error. What PyTorch keeps of them
        # for later is in pieces of the wrong size.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts, size
