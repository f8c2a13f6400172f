"""List the layers of a network where feature maps can be taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.errors import LayerError
from afmi.network.classifier import Classifier
from afmi.network.guards import evaluation_mode, watching_all_modules
from afmi.network.layers import resolve_layer
from afmi.network.wrappers import within

__all__ = ["LayerMaps", "grey_image", "list_layers"]

_SIDE = 224
"""Pixels a side where neither crop nor size is known."""


@dataclass(frozen=True)
class LayerMaps:
    """A layer that gives feature maps.

    Attributes:
        layer: its dotted name; of an activation that is a function call, behind a module, as
            ``features+relu``.
        module: its class, or that function.
        maps: the shape (K, h, w) of its output.
        chosen: whether it is the one that is found automatically.
    """

    layer: str
    module: str
    maps: tuple[int, ...]
    chosen: bool


def grey_image(model: Classifier) -> Tensor:
    """Return a grey picture (1, C, H, W) of the size that a network sees."""
    crop = model.crop or model.resize or _SIDE
    size = crop if isinstance(crop, tuple) else (crop, crop)
    return model.mean.new_full((1, model.mean.shape[0], *size), 0.5)


def list_layers(model: Classifier) -> list[LayerMaps]:
    """Run one grey picture and list the modules that give feature maps (K, h, w), in this order."""
    image = grey_image(model)
    names = {module: name for name, module in within(model).named_modules() if name}
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, output: object) -> None:
        if module in names and isinstance(output, Tensor) and output.dim() == 4:
            shapes[module] = tuple(output.shape[1:])

    with torch.no_grad(), evaluation_mode(model), watching_all_modules(note):
        model(image)
    try:
        layer = resolve_layer(model, None, image)[1]
    except LayerError:  # such a network's layers are the more worth listing
        layer = None
    found = []
    for module, shape in shapes.items():
        chosen = layer is not None and layer.name == names[module]
        whole = chosen and layer is not None and layer.then is None
        found.append(LayerMaps(names[module], type(module).__name__, shape, whole))
        if chosen and layer is not None and layer.then is not None:
            # An activation that is a function call, behind this module: no module of its own.
            found.append(LayerMaps(str(layer), layer.then, shape, True))
    return found
