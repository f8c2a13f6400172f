"""Run a network by fewer and faster operations that give the same numbers to rounding.

A convolution and the batch norm behind it are one convolution with other weights; and max pooling
of maps in the usual layout is slow on a CPU.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.network.channels_last import pooled
from afmi.network.fingerprint import Fingerprint, fingerprint
from afmi.network.guards import every_module
from afmi.network.operations import operation_name

__all__ = ["OtherWay", "Simplification", "simplification_of"]

T = TypeVar("T")


class Simplification:
    """Runs a network with its batch norms folded into the convolutions before them.

    The network itself is not changed, and its weights must stay as they are. Only logits and
    gradients by the images are to be taken from the runs.

    Args:
        model: in evaluation mode.
        weights: its fingerprint, by which `simplification_of` knows whether this still fits.
    """

    def __init__(self, model: nn.Module, weights: Fingerprint) -> None:
        self.weights = weights
        # A compiled network is left to its compiler.
        self._shortcuts = _Shortcuts() if _is_compiled(model) else None

    def with_new_weights(self, weights: Fingerprint) -> Simplification:
        """Return the same for the network's weights as they are now, in their old places."""
        new = copy(self)
        new.weights = weights
        if self._shortcuts is not None:
            pairs = {at: pair.folded() for at, pair in self._shortcuts.pairs.items()}
            new._shortcuts = replace(self._shortcuts, pairs=pairs)
        return new

    @torch.no_grad()
    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Find what there is to do by a run of the first image, where that is not known yet."""
        if self._shortcuts is not None:
            return
        try:
            with _Finding() as found:
                model(images[:1].clone(memory_format=torch.contiguous_format))
        except Exception:
            return  # the run that follows will tell of it
        self._shortcuts = found.shortcuts()

    def taking(self, *, pools: bool = True) -> AbstractContextManager[object]:
        """Do what was found, in one run of the network within this context.

        Args:
            pools: whether to look after max pooling, too.

        Raises:
            OtherWay: when the run goes another way than the first; see `surely`.
        """
        some = self._shortcuts is not None and (self._shortcuts.pairs or self._shortcuts.pools)
        return _Taking(self._shortcuts, pools=pools) if self._shortcuts and some else nullcontext()

    def surely(self, attempt: Callable[[], T]) -> T:
        """Return ``attempt()``, by the network's own operations where its ways differ.

        Args:
            attempt: makes what its run needs, and runs the network within `taking`.
        """
        try:
            return attempt()
        except OtherWay:
            self._shortcuts = _Shortcuts()
            return attempt()


_kept: weakref.WeakKeyDictionary[nn.Module, Simplification] = weakref.WeakKeyDictionary()


def simplification_of(model: nn.Module) -> Simplification:
    """Return a simplification for the weights as they are now, the same while they stay so.

    It is kept as long as the network, with a copy of the weights that it folds.

    Args:
        model: in evaluation mode.
    """
    kept = _kept.get(model)
    weights = fingerprint(model, closely=True)
    if kept is None or kept.weights[0] != weights[0] or _is_compiled(model):
        kept = _kept[model] = Simplification(model, weights)
    elif kept.weights != weights:
        kept = _kept[model] = kept.with_new_weights(weights)
    return kept


def _is_compiled(model: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in every_module(model)
    )


class OtherWay(Exception):  # noqa: N818 (never seen outside)
    """A run used a folded convolution's output otherwise than by its batch norm."""


@dataclass(frozen=True)
class _Pair:
    """A convolution and the batch norm behind it.

    Attributes:
        of: the convolution's own parameters, without its input.
        norm: the batch norm's.
        weight: both in one, (K, C, h, w); None: not made yet.
        bias: (K,), likewise.
    """

    of: dict[str, Any]
    norm: dict[str, Any]
    weight: Tensor | None = None
    bias: Tensor | None = None

    @torch.no_grad()
    def folded(self) -> _Pair:
        """Make γ (W x + b − μ) / √(σ² + ε) + β one convolution."""
        norm, weight = self.norm, self.of["weight"]
        wide = torch.float32 if weight.device.type == "mps" else torch.float64  # has no float64

        def of(name: str, otherwise: float) -> Any:
            return otherwise if norm.get(name) is None else norm[name].to(wide)

        scale = of("weight", 1.0) * (of("running_var", 1.0) + norm.get("eps", 1e-5)).rsqrt()
        bias = 0.0 if self.of.get("bias") is None else self.of["bias"].to(wide)
        bias = (bias - of("running_mean", 0.0)) * scale + of("bias", 0.0)
        scaled = weight.to(wide) * scale.view(-1, 1, 1, 1)
        return replace(self, weight=scaled.to(weight.dtype), bias=bias.to(weight.dtype))


@dataclass(frozen=True)
class _Shortcuts:
    """What can be done faster in a run.

    Attributes:
        pairs: convolutions and batch norms, by the address of the former's weights: these may
            come detached. A pair keeps them, so that nothing else gets their address.
        pools: whether there is max pooling on a CPU.
    """

    pairs: dict[int, _Pair] = field(default_factory=dict)
    pools: bool = False


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
        self._pools = False

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
            made = _Convolution(_without_input(_parameters(func, args, kwargs)))
            self._convolutions.append(made)
            setattr(output, _MADE, made)  # and not by its identity, which a later tensor may get
        elif func is F.batch_norm and used and used[0] is not None:
            used[0].norm = _without_input(_parameters(func, args, kwargs))
        elif operation_name(func) == "max_pool2d" and args and args[0].device.type == "cpu":
            self._pools = True
        return output

    def shortcuts(self) -> _Shortcuts:
        """Return the convolutions that only a batch norm follows, and whether there are pools."""
        runs = Counter(made.call["weight"].data_ptr() for made in self._convolutions)
        pairs = {
            made.call["weight"].data_ptr(): _Pair(made.call, made.norm).folded()
            for made in self._convolutions
            if made.norm is not None
            and not made.norm.get("training", False)
            and made.call["weight"].dtype in (torch.float32, torch.float64)
            and made.users == runs[made.call["weight"].data_ptr()] == 1
        }
        return _Shortcuts(pairs, self._pools)


def _without_input(parameters: dict[str, Any]) -> dict[str, Any]:
    """Leave the images out, which nothing needs to keep alive."""
    return {name: value for name, value in parameters.items() if name != "input"}


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


_FOLDED = "_afmi_folded"


@dataclass
class _Output:
    """What a folded convolution gave, on the view of it that the network has.

    Attributes:
        output: with the batch norm.
        pair: the two.
        normed: whether the batch norm has run.
    """

    output: Tensor
    pair: _Pair
    normed: bool = False

    def goes_to(self, norm: dict[str, Any]) -> bool:
        """Tell whether this batch norm is the one that was folded."""
        mean: Tensor | None = norm.get("running_mean")
        folded = self.pair.norm
        same = mean is not None and mean.data_ptr() == folded["running_mean"].data_ptr()
        same = same and norm.get("eps") == folded.get("eps")
        return same and not self.normed and not norm.get("training", False)


class _Taking(TorchFunctionMode):
    """Takes each pair's weights for its convolution, and passes its batch norm over.

    The network gets a view of the convolution's output, by which any other use of it is noticed.
    """

    def __init__(self, shortcuts: _Shortcuts, *, pools: bool) -> None:
        super().__init__()
        self._pairs = shortcuts.pairs
        self._pools = pools
        # Folded convolutions whose batch norms are still to come.
        self._open = 0

    def __exit__(self, kind: Any, *rest: Any) -> Any:
        super().__exit__(kind, *rest)
        if kind is None and self._open:
            raise OtherWay

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        folded = [
            getattr(tensor, _FOLDED)
            for tensor in _tensors((*args, *kwargs.values()))
            if hasattr(tensor, _FOLDED)
        ]
        if folded and func is F.batch_norm and folded[0].goes_to(_parameters(func, args, kwargs)):
            self._open -= 1
            folded[0].normed = True
            return folded[0].output
        if func is torch.conv2d:
            call = _parameters(func, args, kwargs)
            pair = self._pairs.get(call["weight"].data_ptr())
            if pair is not None and not folded:
                output = func(**{**call, "weight": pair.weight, "bias": pair.bias})
                view = output.view_as(output)
                setattr(view, _FOLDED, _Output(output, pair))
                self._open += 1
                return view
        elif self._pools and operation_name(func) == "max_pool2d" and args:

            def pool(x: Tensor) -> tuple[Tensor, ...]:
                maxima = func(x, *args[1:], **kwargs)
                return maxima if isinstance(maxima, tuple) else (maxima,)

            maxima, *indices = pooled(pool, args[0])
            return (maxima, *indices) if indices else maxima
        output = func(*args, **kwargs)
        if folded and _gives_tensors(output):
            raise OtherWay
        return output
