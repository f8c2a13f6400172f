"""The network that comes with the package: a small VGG that knows eleven kinds of photographs.

It keeps what makes VGG interesting to explain. A stack of convolutions ends in a feature map
with a last ReLU before the last max pool, and *three* fully connected layers follow, so the
gradient at that feature map has to pass two more ReLUs: the case in which gradients saturate.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import torch
from torch import Tensor, nn

from afmi.models.building import (
    ModelEntry,
    build_with_weights,
    call,
    weights_path,
)
from afmi.models.weights import read_weights
from afmi.network.preprocessing import Preprocessing, with_classes

__all__ = ["INPUT_SIZE", "LABELS", "MASKS", "MEAN", "NAME", "STD", "PhotoVGG", "build", "entry"]

NAME = "photos"
"""What `load_model` calls it."""

LABELS: tuple[str, ...] = (
    "English springer",
    "French horn",
    "cassette player",
    "cat",
    "chain saw",
    "church",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
    "tench",
)
"""Class names in the order of the network's outputs (alphabetical by training folder)."""

INPUT_SIZE: int = 128
"""Side in pixels of the square images the network was trained on."""

MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Per-channel statistics (RGB, pixels in 0..1) that inputs are normalised with."""

_WEIGHTS = "photo_vgg.safetensors"
MASKS = "photo_masks.safetensors"
"""The file beside this one with its masking network (`afmi.methods.MaskingModel`)."""
_RESIZE = 144  # the short side of the photographs that it was trained on

_STEM = 24
_BLOCKS: tuple[tuple[int, ...], ...] = ((48,), (80, 80), (144, 144), (256, 256))
_POOLED = 4


def _convolution(
    channels: int, width: int, kernel_size: int = 3, stride: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


class PhotoVGG(nn.Module):
    """VGG with batch norm in five blocks of convolutions and three fully connected layers.

    The module has VGG's shape (``features``, ``avgpool``, ``classifier``), and every block of
    ``features`` ends conv, batch norm, ReLU, max pool. A 5x5 convolution of stride 2 comes first,
    in place of VGG's first block, which alone would cost as much on a CPU as all the others. The
    adaptive pooling makes any input of 64 pixels a side or more work; ``INPUT_SIZE`` is what the
    weights were trained on.
    """

    def __init__(self, num_classes: int = len(LABELS), dropout: float = 0.2) -> None:
        super().__init__()
        layers = _convolution(3, _STEM, kernel_size=5, stride=2)
        channels = _STEM
        for block in _BLOCKS:
            for width in block:
                layers += _convolution(channels, width)
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(channels * _POOLED * _POOLED, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(256, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits), shape (N, classes), of normalised images (N, 3, H, W)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def entry() -> ModelEntry:
    """Return what is known of the network, building it without its weights."""
    with torch.device("meta"):
        millions = sum(p.numel() for p in PhotoVGG().parameters()) / 1e6
    return ModelEntry(NAME, millions, None, INPUT_SIZE, _WEIGHTS)


def build(weights: object, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    """Return the network with its default weights, a file's or random ones."""

    def network(**more: Any) -> nn.Module:
        return call(NAME, PhotoVGG, {**options, **more})

    preprocessing = Preprocessing(MEAN, STD, LABELS, _RESIZE, INPUT_SIZE)
    if weights is None:
        built = network()
        return built, with_classes(preprocessing, built)
    if weights == "default":
        folder = importlib.resources.files(__package__ or "afmi.models")
        with importlib.resources.as_file(folder / _WEIGHTS) as path:
            state, source = read_weights(path), f"the file {path.name!r}"
    else:
        state, source = read_weights(weights_path(weights)), f"the file {str(weights)!r}"
    built = build_with_weights(network, state, source, options)
    return built, with_classes(preprocessing, built)
