"""Devices that work no longer."""

from __future__ import annotations

import torch

from afmi.errors import DeviceError, one_line
from afmi.network.memory import is_out_of_memory

__all__ = ["check_device"]


def check_device(device: torch.device, doing: str, error: Exception) -> None:
    """Raise unless a device works: after some errors of a GPU every later call fails, too.

    Args:
        device: where an error arose.
        doing: what it arose at, such as the method and the pictures, in words.
        error: what it was.

    Raises:
        DeviceError: it works no longer.
    """
    try:
        torch.zeros(1, dtype=torch.float32, device=device).cpu()
    except RuntimeError as dead:
        if is_out_of_memory(dead):
            return
        raise DeviceError(f"{device} works no longer since {doing} ({one_line(error)})") from dead
