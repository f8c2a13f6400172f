"""Constructor arguments that make each method quick on a tiny network."""

from __future__ import annotations

from typing import Any

from torch import nn

from afmi.methods import CATALOGUE, Method
from afmi.methods.base import LayerMethod

# Fewer samples, steps or masks than the papers'; only those that the method has are passed.
_FEW: dict[str, Any] = {
    "samples": 4,
    "steps": 3,
    "masks": 8,
    "iterations": 3,
    "segments": 6,
    "scales": (50,),
}


def method(name: str, model: nn.Module, **options: Any) -> Method:
    """Return a method of the catalogue with quick settings; ``layer`` only where it has one."""
    kind = CATALOGUE[name]
    if not issubclass(kind, LayerMethod):
        options.pop("layer", None)
    fields = kind.__dataclass_fields__
    few = {key: value for key, value in _FEW.items() if key in fields}
    return kind(model, **{**few, **options})
