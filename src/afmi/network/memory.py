"""Halve batches of images that do not fit into memory."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import torch

from afmi.errors import first_line

__all__ = [
    "TOO_LITTLE_MEMORY",
    "check_memory",
    "from_lack_of_memory",
    "in_parts",
    "is_out_of_memory",
]

TOO_LITTLE_MEMORY = "there is too little memory for it; scale it down, or choose a cheaper method"
"""Why an image could not be explained. How many bytes were missing changes from run to run."""

_WORDS = (
    *("can't allocate memory", "MPS backend out of memory", "CUDA error: out of memory"),
    *("ALLOC_FAILED", "ALLOCATION_FAILED"),  # of cuBLAS, cuDNN, cuSOLVER, cuSPARSE and cuFFT
)
"""In plain RuntimeErrors of PyTorch: on a CPU, on Apple's GPUs, and of CUDA's libraries."""

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(word in str(error) for word in _WORDS)


def from_lack_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that it was raised from, says that memory ran out."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    return any(map(is_out_of_memory, causes))


def check_memory(error: BaseException) -> None:
    """Raise where an error says that memory ran out.

    That is for the engine to answer: a smaller task, or a new process, may have enough.

    Raises:
        MemoryError: without the tensors that the error would keep.
    """
    if from_lack_of_memory(error):
        raise MemoryError(first_line(error)) from None


def in_parts(run: Callable[[int, int], T], count: int, size: int) -> tuple[list[T], int]:
    """Run over ``count`` images in batches, halving those that do not fit into memory.

    Args:
        run: called with the start and the stop of each batch, in order.
        count: how many images there are.
        size: the most images in a batch.

    Returns:
        The results of the runs, and the size of batches that fit.

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
        except (RuntimeError, MemoryError) as error:
            if stop - start == 1 or not is_out_of_memory(error):
                raise
            size = (stop - start) // 2
        # Only now are the failed run's tensors freed, with its error. The blocks that PyTorch's
        # allocator keeps of them have the wrong size.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts, size
