"""Leave the global random state alone: restore it, or draw from generators of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["generator_of", "image_generator", "keeping_random_state"]


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Restore PyTorch's global random state, of the CPU and of ``device``, on leaving."""
    devices = [device] if device.type == "cuda" else []
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        try:
            yield
        finally:
            if on_mps is not None:
                torch.mps.set_rng_state(on_mps)


def generator_of(seed: int) -> torch.Generator:
    """Return a generator on the CPU, from which every device and dtype gets the same numbers.

    Whoever draws from it says dtype and device, which default to what the user's program has set.
    """
    return torch.Generator("cpu").manual_seed(seed)


def image_generator(seed: int, image: Tensor) -> torch.Generator:
    """Return a CPU generator that depends on the seed and on the image's pixels.

    So an image gets the same numbers alone and in any batch, and other images get others.
    """
    pixels = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    digest = hashlib.blake2b(pixels, digest_size=8, key=seed.to_bytes(8, "little", signed=True))
    return generator_of(int.from_bytes(digest.digest(), "little") >> 1)
