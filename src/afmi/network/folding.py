"""Folded execution: fewer and faster operations that give the same numbers to rounding.

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
from afmi.network.guards import all_modules
from afmi.network.operations import operation_name

__all__ = ["FoldedExecution", "folded_execution", "run_folded"]

T = TypeVar("T")


def run_folded(
    model: nn.Module,
    function: Callable[[FoldedExecution], T],
    images: Tensor,
    folded: FoldedExecution | None = None,
) -> T:
    """Return ``function(folded)``, whose run of the network folds batch norms into convolutions.

    Where the run uses a folded convolution's output otherwise than by its batch norm, the function
    is called again, and the network runs its own operations, from then on.

    Args:
        model: in evaluation mode. It is not changed.
        function: makes what its run needs, and runs the network within
            `FoldedExecution.intercepting`. Only logits and gradients by the images are to be taken
            from the run.
        images: (N, C, H, W); the first of them is run to plan what to fold, where that is not
            known yet.
        folded: for the network's weights as they are now; None: see `folded_execution`.
    """
    folded = folded_execution(model) if folded is None else folded
    folded.prepare(model, images)
    try:
        return function(folded)
    except FoldingMismatch:
        folded.abandon()
        return function(folded)


class FoldedExecution:
    """Runs a network with its batch norms folded into the convolutions before them.

    Args:
        model: in evaluation mode.
        weights: its fingerprint, which tells whether the folded weights are still right.
    """

    def __init__(self, model: nn.Module, weights: Fingerprint) -> None:
        self.weights = weights
        # A compiled network is left to its compiler.
        self._plan = _Plan() if _is_compiled(model) else None

    def with_new_weights(self, weights: Fingerprint) -> FoldedExecution:
        """Return the same for the network's weights as they are now, in their old places."""
        new = copy(self)
        new.weights = weights
        if self._plan is not None:
            pairs = {at: pair.folded() for at, pair in self._plan.pairs.items()}
            new._plan = replace(self._plan, pairs=pairs)
        return new

    @torch.no_grad()
    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Plan what to fold by a run of the first image, where that is not known yet."""
        if self._plan is not None:
            return
        try:
            with _Planner() as planner:
                model(images[:1].clone(memory_format=torch.contiguous_format))
        except Exception:
            return  # the run that follows raises it again
        self._plan = planner.plan()

    def abandon(self) -> None:
        """Run the network's own operations from now on."""
        self._plan = _Plan()

    def intercepting(self, *, pools: bool = True) -> AbstractContextManager[object]:
        """Return a context in which one run of the network is folded.

        Args:
            pools: whether max pooling is made faster, too.

        Raises:
            FoldingMismatch: when the run differs from the one that was planned by.
        """
        plan = self._plan
        return _Folding(plan, pools=pools) if plan and (plan.pairs or plan.pools) else nullcontext()


_kept: weakref.WeakKeyDictionary[nn.Module, FoldedExecution] = weakref.WeakKeyDictionary()


def folded_execution(model: nn.Module) -> FoldedExecution:
    """Return the folded execution for the weights as they are now, the same while they stay so.

    It is kept as long as the network, with a folded copy of its convolutions' weights.

    Args:
        model: in evaluation mode.
    """
    kept = _kept.get(model)
    weights = fingerprint(model, closely=True)
    if kept is None or kept.weights[0] != weights[0] or _is_compiled(model):
        kept = _kept[model] = FoldedExecution(model, weights)
    elif kept.weights != weights:
        kept = _kept[model] = kept.with_new_weights(weights)
    return kept


def _is_compiled(model: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in all_modules(model)
    )


class FoldingMismatch(Exception):  # noqa: N818 (caught by `run_folded`)
    """A run used a folded convolution's output otherwise than by its batch norm."""


@dataclass(frozen=True)
class _Pair:
    """A convolution and the batch norm behind it.

    Attributes:
        convolution: the arguments of the convolution, without its input.
        norm: those of the batch norm.
        weight: of both in one, (K, C, h, w); None: not computed yet.
        bias: (K,), likewise.
    """

    convolution: dict[str, Any]
    norm: dict[str, Any]
    weight: Tensor | None = None
    bias: Tensor | None = None

    @torch.no_grad()
    def folded(self) -> _Pair:
        """Make γ (W x + b − μ) / √(σ² + ε) + β one convolution."""
        norm, weight = self.norm, self.convolution["weight"]
        wide = torch.float32 if weight.device.type == "mps" else torch.float64  # has no float64

        def given(name: str, default: float) -> Any:
            return default if norm.get(name) is None else norm[name].to(wide)

        scale = given("weight", 1.0) * (given("running_var", 1.0) + norm.get("eps", 1e-5)).rsqrt()
        bias = 0.0 if self.convolution.get("bias") is None else self.convolution["bias"].to(wide)
        bias = (bias - given("running_mean", 0.0)) * scale + given("bias", 0.0)
        scaled = weight.to(wide) * scale.view(-1, 1, 1, 1)
        return replace(self, weight=scaled.to(weight.dtype), bias=bias.to(weight.dtype))


@dataclass(frozen=True)
class _Plan:
    """What can run faster.

    Attributes:
        pairs: convolutions and batch norms, by the address of the former's weights, since these
            may come detached. A pair keeps them alive, so that nothing else gets their address.
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
    """One convolution of the first run, the batch norm behind it, and its output's users."""

    call: dict[str, Any]
    norm: dict[str, Any] | None = None
    users: int = 0


class _Planner(TorchFunctionMode):
    """Lists the convolutions and the users of their outputs, and notices max pooling."""

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

    def plan(self) -> _Plan:
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
        return _Plan(pairs, self._pools)


def _without_input(parameters: dict[str, Any]) -> dict[str, Any]:
    """Leave the images out, which nothing needs to keep alive."""
    return {name: value for name, value in parameters.items() if name != "input"}


def _gives_tensors(output: Any) -> bool:
    """Tell an operation on tensors from a query of their shape or dtype."""
    return isinstance(output, Tensor) or (
        isinstance(output, (tuple, list)) and any(isinstance(item, Tensor) for item in output)
    )


def _tensors(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (tuple, list)):
            tensors += _tensors(value)
    return tensors


_FOLDED = "_afmi_folded"


@dataclass
class _Output:
    """A folded convolution's output, attached to the view of it that the network gets.

    Attributes:
        output: batch norm included.
        pair: the convolution and the batch norm.
        normed: whether the network has called the batch norm.
    """

    output: Tensor
    pair: _Pair
    normed: bool = False

    def expects(self, norm: dict[str, Any]) -> bool:
        """Tell whether this batch norm is the one that was folded."""
        mean: Tensor | None = norm.get("running_mean")
        folded = self.pair.norm
        same = mean is not None and mean.data_ptr() == folded["running_mean"].data_ptr()
        same = same and norm.get("eps") == folded.get("eps")
        return same and not self.normed and not norm.get("training", False)


class _Folding(TorchFunctionMode):
    """Runs each convolution with its pair's weights, and skips the batch norm.

    The network gets a view of the convolution's output, which betrays any other use of it.
    """

    def __init__(self, plan: _Plan, *, pools: bool) -> None:
        super().__init__()
        self._pairs = plan.pairs
        self._pools = pools
        # Folded convolutions whose batch norms have not been called yet.
        self._open = 0

    def __exit__(self, kind: Any, *rest: Any) -> Any:
        super().__exit__(kind, *rest)
        if kind is None and self._open:
            raise FoldingMismatch

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
        if folded and func is F.batch_norm and folded[0].expects(_parameters(func, args, kwargs)):
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
            raise FoldingMismatch
        return output
