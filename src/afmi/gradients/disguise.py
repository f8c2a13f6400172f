"""What networks ask of tensors; a run with gradients looks to them like one without.

A network in evaluation asks autograd for nothing. So a network that asks whether a tensor needs a
gradient hears no, as it does within ``torch.no_grad()``: its backward hooks, the hooks that it puts
on tensors and what it would compute again in the backward pass have no part in an explanation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad_mode

from afmi.network.watch import NO_OPERATION

__all__ = ["FORM", "OF_AUTOGRAD", "SET_GRAD_ENABLED", "GradMode"]


FORM = NO_OPERATION | {Tensor.stride, Tensor.is_contiguous}
"""What tells a tensor's form and gives no tensor."""


def _hook_that_never_runs(tensor: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    """Return a handle, as ``Tensor.register_hook`` does."""
    return torch.empty(0, dtype=torch.float32, device="cpu", requires_grad=True).register_hook(hook)


OF_AUTOGRAD: dict[Callable[..., Any], Callable[..., Any]] = {
    vars(torch._C.TensorBase)["requires_grad"].__get__: lambda tensor, *_: False,
    vars(torch._C.TensorBase)["requires_grad"].__set__: lambda tensor, value: None,
    Tensor.requires_grad_: lambda tensor, *_, **__: tensor,
    vars(torch._C.TensorBase)["is_leaf"].__get__: lambda tensor, *_: True,
    vars(torch._C.TensorBase)["grad_fn"].__get__: lambda tensor, *_: None,
    Tensor.retain_grad: lambda tensor: None,
    Tensor.register_hook: _hook_that_never_runs,
    torch.autograd.grad: torch.autograd.grad,
}
"""What a tensor that autograd follows answers to a network that asks."""

SET_GRAD_ENABLED = torch._C._set_grad_enabled


class GradMode:
    """The gradients' mode of a run that begins in the midst of a network.

    Below the layer gradients are off. The network may have opened contexts there, such as
    ``set_grad_enabled(True)``, that would turn them off again when it leaves them behind the layer.
    Contexts that it opens behind the layer have their effect.
    """

    def __init__(self) -> None:
        self._contexts: list[object] = []
        self._inference: torch.inference_mode | None = None

    def begin(self) -> None:
        """Turn gradients on."""
        if torch.is_inference_mode_enabled():
            self._inference = torch.inference_mode(False)
            self._inference.__enter__()
        SET_GRAD_ENABLED(True)

    def end(self) -> None:
        """Leave what `begin` entered."""
        if self._inference is not None:
            self._inference.__exit__(None, None, None)

    def set(self, enabled: bool) -> None:
        """Do what the network calls for, unless it leaves a context from before the layer."""
        SET_GRAD_ENABLED(enabled or self._leaves_earlier_context(sys._getframe(1)))

    def keep(self) -> None:
        """Turn gradients on again where the network has left an inference mode around the layer."""
        left = self._inference is not None and not torch.is_grad_enabled()
        if left and not (self._contexts or torch.is_inference_mode_enabled()):
            SET_GRAD_ENABLED(True)

    def _leaves_earlier_context(self, frame: FrameType | None) -> bool:
        """Note the contexts that the network enters, and tell whether it leaves another one."""
        while frame is not None and frame.f_globals.get("__name__") != grad_mode.__name__:
            frame = frame.f_back
        context = None
        leaves = False
        while frame is not None and frame.f_globals.get("__name__") == grad_mode.__name__:
            context = frame.f_locals.get("self")
            leaves = frame.f_code.co_name == "__exit__"
            frame = frame.f_back
        if not leaves:
            self._contexts.append(context)
            return False
        return not any(known is context for known in self._contexts)
