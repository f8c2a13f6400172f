"""The network that comes with the package."""

from __future__ import annotations

import importlib.resources
from typing import Any

import torch
from torch import nn

from afmi.models import photos as photo_network
from afmi.models.building import ModelEntry, View, call, path_of, with_classes, with_weights
from afmi.models.weights import read_weights

__all__ = ["EMBEDDED", "build", "entry"]

EMBEDDED = "photos"
"""Name of the network that comes with the package."""

_WEIGHTS = "photo_vgg.safetensors"
_RESIZE = 144  # the short side of the photographs that it was trained on


def entry() -> ModelEntry:
    """Return what is known of the network, building it without its weights."""
    shapes = [p.shape for p in _network(device="meta").parameters()]
    millions = sum(shape.numel() for shape in shapes) / 1e6
    return ModelEntry(EMBEDDED, millions, None, photo_network.INPUT_SIZE, _WEIGHTS)


def _network(device: str = "cpu", **options: Any) -> nn.Module:
    with torch.device(device):
        return photo_network.PhotoVGG(**options)


def build(weights: object, options: dict[str, Any]) -> tuple[nn.Module, View]:
    """Return the network with its own weights, a file's or random ones."""
    view = View(
        photo_network.MEAN,
        photo_network.STD,
        photo_network.LABELS,
        _RESIZE,
        photo_network.INPUT_SIZE,
    )

    def made(**more: Any) -> nn.Module:
        return call(EMBEDDED, _network, {**options, **more})

    if weights is None:
        network = made()
    elif weights == "default":
        folder = importlib.resources.files(photo_network.__package__ or "afmi.models")
        with importlib.resources.as_file(folder / _WEIGHTS) as path:
            network = with_weights(made, read_weights(path), f"the file {path.name!r}", options)
    else:
        source = f"the file {str(weights)!r}"
        network = with_weights(made, read_weights(path_of(weights)), source, options)
    return network, with_classes(view, network)
