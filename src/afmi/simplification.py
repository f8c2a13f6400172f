"""Run a network by fewer and faster operations that give the same numbers to rounding.

A convolution and the batch norm behind it are one convolution with other weights; and max pooling
of maps in the usual layout is slow on a CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.memory_layout import pooled
from afmi.operations import operation_name
from afmi.untouched import every_module

__all__ = ["Simplification"]

T = TypeVar("T")


class Simplification:
    """Runs a network with its batch norms folded into the convolutions before them.

    The first run finds what there is to do. The network itself is not changed, and its weights
    must stay as they are from then on.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        # A compiled network is left to its compiler.
        self._compiled = any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in every_module(model)
        )
        self._pairs: dict[int, _Pair] = {}
        self._found: dict[object, _Shortcuts | None] = {}

    def __call__(self, run: Callable[[], T], use: object = None) -> T:
        """Return ``run()``, which passes images through the network.

        Args:
            run: passes images through the network once.
            use: what is taken from the run besides the logits, such as a layer's output. What is
                used alone is left as it is.
        """
        if not self.knows(use):
            with _Finding() as finding:
                result = run()
            self._found[use] = self._shortcuts(finding)
            return result
        shortcuts = self._found.get(use)
        if shortcuts is None:
            return run()
        with _Taking(shortcuts):
            return run()

    def on_top(self, use: object = None) -> AbstractContextManager[object]:
        """Return a context for what intercepts operations on the way of a run.

        So that it is shown what the network runs by, and not what it says.
        """
        shortcuts = self._found.get(use)
        return _Taking(shortcuts, pools=False) if shortcuts else nullcontext()

    def knows(self, use: object = None) -> bool:
        """Tell whether nothing is left to be found by a run."""
        return self._compiled or use in self._found

    def _shortcuts(self, finding: _Finding) -> _Shortcuts | None:
        pairs: dict[int, _Pair] = {}
        for weight, call, norm in finding.pairs():
            # Weights are known by their address, as they may come detached; the pair keeps it.
            at = weight.data_ptr()
            if at not in self._pairs:
                self._pairs[at] = _folded(call, norm)
            pairs[at] = self._pairs[at]
        return _Shortcuts(pairs) if pairs or finding.pools else None


@dataclass(frozen=True)
class _Pair:
    """A convolution's weights with its batch norm's in them.

    Attributes:
        of: the convolution's own weights.
        weight: (K, C, h, w).
        bias: (K,).
    """

    of: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Shortcuts:
    """What can be done faster in a run.

    Attributes:
        pairs: of convolutions and batch norms, by the address of the former's weights.
    """

    pairs: dict[int, _Pair]


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
    """Lists the convolutions, with what took their output, and looks out for max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self._convolutions: list[_Convolution] = []
        self.pools = False

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
        elif operation_name(func) == "max_pool2d" and args and args[0].device.type == "cpu":
            self.pools = True
        return output

    def pairs(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return the weights and calls of convolutions that only a batch norm follows."""
        runs = Counter(made.call["weight"].data_ptr() for made in self._convolutions)
        return [
            (made.call["weight"], made.call, made.norm)
            for made in self._convolutions
            if made.norm is not None
            and not made.norm.get("training", False)
            and made.call["weight"].dtype in (torch.float32, torch.float64)
            and made.users == runs[made.call["weight"].data_ptr()] == 1
        ]


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


class _Taking(TorchFunctionMode):
    """Takes each pair's weights for its convolution, and passes its batch norm over."""

    def __init__(self, shortcuts: _Shortcuts, *, pools: bool = True) -> None:
        super().__init__()
        self._pairs = shortcuts.pairs
        self._pools = pools

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
            pair = self._pairs.get(call["weight"].data_ptr())
            if pair is not None:
                output = func(**{**call, "weight": pair.weight, "bias": pair.bias})
                setattr(output, _DONE, self)
                return output
        elif func is F.batch_norm:
            images = _parameters(func, args, kwargs)["input"]
            if getattr(images, _DONE, None) is self:
                setattr(images, _DONE, None)  # another norm may follow
                return images
        elif self._pools and operation_name(func) == "max_pool2d" and args:

            def pool(x: Tensor) -> tuple[Tensor, ...]:
                maxima = func(x, *args[1:], **kwargs)
                return maxima if isinstance(maxima, tuple) else (maxima,)

            maxima, *indices = pooled(pool, args[0])
            return (maxima, *indices) if indices else maxima
        return func(*args, **kwargs)
