"""Small networks of signals, pictures and volumes, alike but for their number of sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIZES = {1: (48,), 2: (20, 24), 3: (6, 10, 12)}


def of(name: str, sides: int) -> Any:
    """Return PyTorch's module of so many sides, such as ``Conv1d``."""
    return getattr(nn, f"{name}{sides}d")


def images(sides: int, count: int = 2, channels: int = 2, seed: int = 1) -> Tensor:
    """Return random images in [0, 1]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(count, channels, *SIZES[sides], generator=generator, dtype=torch.float32)


def network(sides: int, *, seed: int = 0) -> nn.Sequential:
    """Return two convolutional stages (the second one ends at "6") and one linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        of("Conv", sides)(2, 6, 3, padding=1),
        of("BatchNorm", sides)(6),
        nn.ReLU(),
        of("MaxPool", sides)(2),
        of("Conv", sides)(6, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        of("AdaptiveAvgPool", sides)(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
