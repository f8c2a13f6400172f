"""Watch every run of a network for what no explanation can stand on, and note what it does."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from afmi.errors import ModelError
from afmi.network.guards import is_compiled, without_compilation
from afmi.network.operations import Trait, operation_name, operations_with
from afmi.network.outputs import may_be_squashed, scores_of
from afmi.network.trace import Trace

__all__ = ["NO_OPERATION", "READS", "LayoutError", "Watch", "run_watched"]

NO_OPERATION = frozenset(
    {
        *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
    }
)
"""What tells a tensor's form and gives no tensor; networks ask for it at every other step."""

READS = frozenset(
    {
        *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__complex__),
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__contains__),
        *(torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
        *(torch.is_nonzero, Tensor.is_nonzero, Tensor.__repr__, Tensor.__format__),
    }
)
"""What gives a tensor's numbers to Python, which may decide or compute by them."""


class LayoutError(RuntimeError):
    """The network asks how its maps lie in memory, so that another layout may change its outputs.

    Raised while a network runs on channels-last images; it is then run on the usual layout.
    """


Check = Callable[[tuple[Any, ...], dict[str, Any]], None]


class Watch(TorchFunctionMode):
    """Checks and notes each operation of a network while the mode is on.

    Raises a `ModelError` where the network draws random numbers: its outputs for an image then
    differ from run to run.

    Args:
        images: what the network is given, (N, C, H, W).
        fast: whether they are in a layout that is not the usual one.
        trace: note the run here.
    """

    def __init__(self, images: Tensor, *, fast: bool = False, trace: Trace | None = None) -> None:
        super().__init__()
        self._fast = fast
        self._trace = trace
        if trace is not None:
            trace.begin(images)
            # What other modes do to the operations is theirs to know.
            if _get_current_dispatch_mode() is not None or any(
                not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
            ):
                trace.decided()

    def reached_layer(self, maps: Tensor) -> None:
        """Note that the network goes on with these maps of the layer."""
        if self._trace is not None:
            self._trace.reached_layer(maps)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> Any:
        """Make a call, or ``call(func, args, kwargs)`` in its place; check and note it."""
        noted = func not in NO_OPERATION
        if noted:
            check, reads_layout, depends_on_more = _looked_out_for(func)
            if check is not None:
                check(args, kwargs)
            if reads_layout and self._fast:
                raise LayoutError(f"{_name(func)!r} depends on the memory layout")
            if self._trace is not None:
                self._trace.call(func, args, kwargs)
                if func in READS or depends_on_more or _by_mask(func, args):
                    self._trace.decided()
        output = func(*args, **kwargs) if call is None else call(func, args, kwargs)
        if noted and self._trace is not None:
            self._trace.made(output)
        return output


def run_watched(model: nn.Module, images: Tensor, fast: bool = False) -> Tensor:
    """Return a network's scores (N, K) of images (N, C, H, W).

    Args:
        model: the network.
        images: passed as they are.
        fast: as in `Watch`.
    """
    if is_compiled(model):  # which was tried as written; its compiler cannot be watched
        scores = scores_of(model, images, seen=False)
        if not may_be_squashed(scores):
            return scores
    with without_compilation(), Watch(images, fast=fast):
        return scores_of(model, images)


def _name(function: Callable[..., Any]) -> str:
    return operation_name(function).partition(".")[0]  # `torch.ops.aten.relu.default`


def _argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str, default: Any = None
) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)


def _random(name: str) -> Check:
    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("generator") is not None:
            return  # perhaps seeded anew in each run; if not, `afmi.network.trial` notices
        raise ModelError(
            f"the network draws random numbers in evaluation mode ({name!r}), so that its outputs "
            "differ from run to run and no explanation holds; draw them only while self.training, "
            "or keep them in a buffer"
        )

    return check


def _dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    probability = _argument(args, kwargs, 1, "p", default=0.5)
    if probability and _argument(args, kwargs, 2, "training", "train", default=True):
        raise ModelError(
            "the network drops activations at random also in evaluation mode, so that its outputs "
            "differ from run to run and no explanation holds; call dropout with "
            "training=self.training"
        )


def _dropping_attention(position: int, training: int | None = None) -> Check:
    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        dropped = _argument(args, kwargs, position, "dropout_p", "dropout", default=0.0)
        if training is not None:
            dropped = dropped and _argument(
                args, kwargs, training, "training", "train", default=True
            )
        if dropped:
            raise ModelError(
                "the network drops activations at random also in evaluation mode, inside an "
                "attention or recurrent layer, so that its outputs differ from run to run and no "
                "explanation holds; pass a dropout of 0.0 unless self.training"
            )

    return check


def _rrelu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _argument(args, kwargs, 3, "training", default=False):
        _random("rrelu")(args, kwargs)


_CHECKS: dict[str, Check] = {
    **{name: _random(name) for name in operations_with(Trait.RANDOM)},
    **dict.fromkeys(operations_with(Trait.DROPOUT), _dropout),
    "scaled_dot_product_attention": _dropping_attention(4),
    "multi_head_attention_forward": _dropping_attention(10, 13),
    "lstm": _dropping_attention(5, 6),
    "gru": _dropping_attention(5, 6),
    "rrelu": _rrelu,
}


@lru_cache(maxsize=4096)
def _looked_out_for(function: Callable[..., Any]) -> tuple[Check | None, bool, bool]:
    """Return what to check of a function's calls, and what its result depends on.

    Returns:
        A check; whether the memory layout is read; whether the result depends on more than what
        a trace notes, such as numbers that become a shape, or code that is not PyTorch's.
    """
    name = _name(function)
    reads_layout = name in operations_with(Trait.LAYOUT)
    home = getattr(function, "__module__", None) or "torch"
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        home = "torch" if str(function).startswith("aten") else "custom"
    foreign = home.partition(".")[0] not in ("torch", "torchvision", "builtins")
    return _CHECKS.get(name), reads_layout, foreign or name in operations_with(Trait.BY_VALUES)


def _by_mask(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Tell whether numbers of the images may choose how many places are taken."""
    if function is not Tensor.__getitem__ or len(args) < 2:
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in index)
