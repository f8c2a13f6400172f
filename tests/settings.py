"""Constructor arguments that make each method quick on a tiny network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from afmi.errors import AfmiError
from afmi.methods import CATALOGUE, Method
from afmi.methods.base import LayerMethod
from afmi.methods.masking_network import MaskingNetwork, untrained
from afmi.network.classifier import input_channels

# Fewer samples, steps or masks than the papers'; only those that the method has are passed.
_FEW: dict[str, Any] = {
    "samples": 4,
    "steps": 3,
    "masks": 8,
    "iterations": 3,
    "segments": 6,
    "scales": (50,),
}


# The masking model explains classes of the network that it was trained for, and nothing else.
UNTRAINED = [name for name in CATALOGUE if name != "MaskingModel"]

# One for each way through a network: none, outputs of altered images, gradients at the pixels and
# along a path, rules, maps of a layer with and without gradients, modified gradients, masks.
ONE_OF_EACH = {
    *("Random", "RISE", "Gradient", "IntegratedGradients", "LRP"),
    *("GradCAM", "ScoreCAM", "AFMI", "MaskingModel"),
}


def crossed(
    names: Iterable[str], kinds: Iterable[Any], whole: Collection[str] = ONE_OF_EACH
) -> list[Any]:
    """Return pairs of methods and what they are given, as parameters; most are slow tests.

    What they share is proved by the methods in ``whole`` with every kind, and by every other one
    with one kind, which are taken in turn.
    """
    kinds = list(kinds)
    return [
        pytest.param(
            name,
            kind,
            marks=() if name in whole or (n - k) % len(kinds) == 0 else pytest.mark.slow,
        )
        for n, name in enumerate(names)
        for k, kind in enumerate(kinds)
    ]


def masks_for(model: nn.Module) -> MaskingNetwork | None:
    """Return masks with random weights; None where the network has no feature maps for them."""
    if not isinstance(model, nn.Module):
        return None
    image = torch.full((1, input_channels(model), 20, 20), 0.5, dtype=dtype_of(model), device="cpu")
    try:
        return untrained(model, image, width=4, finest=1)
    except AfmiError:
        return None


def dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def method(name: str, model: nn.Module, **options: Any) -> Method:
    """Return a method of the catalogue with quick settings; ``layer`` only where it has one.

    The masking model gets masks with random weights.
    """
    kind = CATALOGUE[name]
    if not issubclass(kind, LayerMethod):
        options.pop("layer", None)
    fields = kind.__dataclass_fields__
    few = {key: value for key, value in _FEW.items() if key in fields}
    if name == "MaskingModel":
        few["weights"] = masks_for(model)
    return kind(model, **{**few, **options})


# What a program may have set for its own tensors. On "meta" no tensor holds numbers, so that one
# made there by mistake is noticed without a second device.
STRANGE_DEFAULTS: list[dict[str, Any]] = [
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
    {"device": "meta"},
]


@contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[None]:
    """Make tensors in this dtype and on this device where they are made without saying so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
