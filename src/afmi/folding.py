"""Fold batch norms into the convolutions before them, where a network runs very many times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.untouched import every_module

__all__ = ["Folding"]

T = TypeVar("T")


class Folding:
    """Runs a network with its batch norms folded into the convolutions before them.

    In evaluation mode such a pair is one convolution with other weights: the same numbers to
    rounding, in less time where convolutions are cheap beside their norms (MobileNet). The first
    run finds the pairs; the network itself is not changed, and its weights must stay as they are
    from then on.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        # A compiled network is left to its compiler.
        compiled = any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in every_module(model)
        )
        self._pairs: dict[int, _Pair] | None = {} if compiled else None

    def __call__(self, run: Callable[[], T]) -> T:
        """Return ``run()``, which passes images through the network without gradients."""
        if self._pairs is None:
            with _Finding() as finding:
                result = run()
            self._pairs = finding.pairs()
            return result
        if not self._pairs:
            return run()
        with _Folded(self._pairs):
            return run()


@dataclass(frozen=True)
class _Pair:
    """A convolution's weights with its batch norm's in them.

    Attributes:
        of: the convolution's own weights, which tell its call from others.
        weight: (K, C, h, w).
        bias: (K,).
    """

    of: Tensor
    weight: Tensor
    bias: Tensor


def _parameters(call: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name a call's arguments."""
    return {**dict(zip(_NAMES[call], args, strict=False)), **kwargs}


_NAMES: dict[Any, tuple[str, ...]] = {
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
}


_MADE = "_afmi_convolution"


@dataclass
class _Convolution:
    """One convolution of the first run, the batch norm behind it, and how many used its output."""

    call: dict[str, Any]
    norm: dict[str, Any] | None = None
    users: int = 0


class _Finding(TorchFunctionMode):
    """Lists the convolutions, with what took their output."""

    def __init__(self) -> None:
        super().__init__()
        self._convolutions: list[_Convolution] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        used = [getattr(t, _MADE, None) for t in _tensors((*args, *kwargs.values()))]
        if _gives_tensors(output):
            for convolution in used:
                if convolution is not None:
                    convolution.users += 1
        if func is torch.conv2d:
            made = _Convolution(_parameters(func, args, kwargs))
            self._convolutions.append(made)
            setattr(output, _MADE, made)  # and not by its identity, which a later tensor may get
        elif func is F.batch_norm and used and used[0] is not None:
            used[0].norm = _parameters(func, args, kwargs)
        return output

    def pairs(self) -> dict[int, _Pair]:
        """Return convolutions that only a batch norm follows, by their weights' identity."""
        runs = Counter(id(made.call["weight"]) for made in self._convolutions)
        return {
            id(made.call["weight"]): _folded(made.call, made.norm)
            for made in self._convolutions
            if made.norm is not None
            and not made.norm.get("training", False)
            and made.users == runs[id(made.call["weight"])] == 1
        }


def _gives_tensors(output: Any) -> bool:
    """Tell a use of tensors from a question about their form."""
    return isinstance(output, Tensor) or (
        isinstance(output, (tuple, list)) and any(isinstance(item, Tensor) for item in output)
    )


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found


@torch.no_grad()
def _folded(convolution: dict[str, Any], norm: dict[str, Any]) -> _Pair:
    """Return γ (W x + b − μ) / √(σ² + ε) + β as one convolution, computed in float64."""
    weight: Tensor = convolution["weight"]
    mean, variance = norm["running_mean"].double(), norm["running_var"].double()
    scale = (variance + norm.get("eps", 1e-5)).rsqrt()
    if norm.get("weight") is not None:
        scale = scale * norm["weight"].double()
    bias = convolution.get("bias")
    bias = ((0.0 if bias is None else bias.double()) - mean) * scale
    if norm.get("bias") is not None:
        bias = bias + norm["bias"].double()
    scaled = weight.double() * scale.view(-1, 1, 1, 1)
    return _Pair(weight, scaled.to(weight.dtype), bias.to(weight.dtype))


_DONE = "_afmi_normed"


class _Folded(TorchFunctionMode):
    """Takes the folded weights for each pair's convolution, and passes its batch norm over."""

    def __init__(self, pairs: dict[int, _Pair]) -> None:
        super().__init__()
        self._pairs = pairs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            call = _parameters(func, args, kwargs)
            pair = self._pairs.get(id(call["weight"]))
            if pair is not None:
                output = func(**{**call, "weight": pair.weight, "bias": pair.bias})
                setattr(output, _DONE, self)
                return output
        elif func is F.batch_norm:
            images = _parameters(func, args, kwargs)["input"]
            if getattr(images, _DONE, None) is self:
                return images
        return func(*args, **kwargs)
