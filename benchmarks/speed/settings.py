"""Where a network runs, in which memory layout and under which precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["LAYOUTS", "PRECISIONS", "Setting"]

LAYOUTS = {"usual": torch.contiguous_format, "channels-last": torch.channels_last}
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """A device, a memory layout and a precision.

    Attributes:
        device: where model and images lie.
        layout: a key of `LAYOUTS`.
        precision: a key of `PRECISIONS`; but for float32 contenders run under autocast.
    """

    device: torch.device
    layout: str = "usual"
    precision: str = "float32"

    @property
    def name(self) -> str:
        """What differs from PyTorch's defaults; empty where nothing does."""
        parts = [self.layout] * (self.layout != "usual")
        parts += [f"{self.precision} autocast"] * (self.precision != "float32")
        return ", ".join(parts)

    def model(self, model: M) -> M:
        """Return the model, moved there."""
        # Only four-dimensional parameters change their layout.
        return model.to(self.device).to(memory_format=LAYOUTS[self.layout])

    def images(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) on the device and in the layout."""
        return images.to(self.device).contiguous(memory_format=LAYOUTS[self.layout])

    def under(self, run: Callable[[], T]) -> Callable[[], T]:
        """Return ``run`` under this precision."""
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return run

        def precise() -> T:
            with torch.autocast(self.device.type, dtype):
                return run()

        return precise
