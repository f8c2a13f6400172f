"""What to do when a batch of images does not fit into memory."""

from __future__ import annotations

import torch

__all__ = ["free_cached", "is_out_of_memory"]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a tensor could not be allocated, on a GPU or a CPU."""
    # On a CPU PyTorch raises a plain RuntimeError, known by its allocator's words alone.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_cached() -> None:
    """Give back what PyTorch keeps for later on GPUs, which is in pieces of the wrong size."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
