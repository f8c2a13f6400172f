"""Names for PyTorch's operations: one name for the function, the method and the in-place form.

``F.relu``, ``torch.relu``, ``Tensor.relu`` and ``Tensor.relu_`` are all ``relu``. Rules and
layers are written against these names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from types import FunctionType
from typing import Any

import torch.nn.functional as F

__all__ = ["is_inplace", "operation_name"]

# Spellings that the general rule for names (below) would not bring together.
_ALIASES = {
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d",
    "adaptive_max_pool2d_with_indices": "adaptive_max_pool2d",
    "adaptive_max_pool3d_with_indices": "adaptive_max_pool3d",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "rtruediv": "rdiv",
    "negative": "neg",
    "pos": "positive",
    "clip": "clamp",
    "absolute": "abs",
    "expit": "sigmoid",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "t": "transpose",
    "T": "transpose",
    "mT": "transpose",
    "moveaxis": "movedim",
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "itruediv": "div",
    "ipow": "pow",
}


def _spelling(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    if name == "__get__":  # a property such as Tensor.T: the descriptor knows its name
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name


@cache
def _boolean_dispatched() -> dict[Callable[..., Any], str]:
    """Name the pooling functions of ``nn.functional``, which are all called ``fn``."""
    return {
        function: _ALIASES.get(name, name)
        for name, function in vars(F).items()
        if callable(function) and "pool" in name and not name.startswith("_")
    }


@lru_cache(maxsize=4096)
def operation_name(function: Callable[..., Any]) -> str:
    """Return the operation's name: ``relu`` for ``F.relu``, ``Tensor.relu_``, … alike."""
    dispatched = _boolean_dispatched().get(function)
    if dispatched is not None:
        return dispatched
    name = _spelling(function)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    else:
        name = name.rstrip("_").lstrip("_")
    return _ALIASES.get(name, name)


@lru_cache(maxsize=4096)
def _writes_in_place(function: Callable[..., Any]) -> bool:
    name = _spelling(function)
    if name.startswith("__"):
        return name in {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
    return name.endswith("_")


@lru_cache(maxsize=4096)
def _inplace_position(function: Callable[..., Any]) -> int | None:
    """Return where ``inplace`` stands among the function's positional parameters."""
    if not isinstance(function, FunctionType):
        return None
    names = list(inspect.signature(function, follow_wrapped=False).parameters)
    return names.index("inplace") if "inplace" in names else None


def is_inplace(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call writes its result into its first operand."""
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    position = _inplace_position(function)
    if position is not None:
        return len(args) > position and bool(args[position])
    return _writes_in_place(function)
