"""Run a network in evaluation mode, watch its modules, and leave it as it was."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

__all__ = [
    "all_modules",
    "evaluation_mode",
    "is_compiled",
    "watching_all_modules",
    "watching_module",
    "without_compilation",
    "without_fused_attention",
    "without_modules_in_backward",
]

_lock = threading.Lock()
# For each module held in evaluation mode, by identity: how many hold it, and its mode before.
# Kept for modules and not for models, because two models may share some.
_held: dict[int, tuple[int, bool]] = {}


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of ``model.modules()``, in another order and a tenth of the time."""
    visited = {model}
    modules = [model]
    for module in modules:  # grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in visited:
                visited.add(child)
                modules.append(child)
    return modules


def _is_training(module: nn.Module) -> bool:
    return getattr(module, "training", False)  # which a frozen TorchScript module has not


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold all modules in evaluation mode; the last thread to leave restores their modes.

    What they pass to ``torch.utils.checkpoint`` runs plainly meanwhile.
    """
    modules = all_modules(model)
    with _lock:
        # Where nobody trains and nobody else holds anything, there is nothing to restore.
        if not _held and not any(map(_is_training, modules)):
            modules = []
        for module in modules:
            count, before = _held.get(id(module), (0, _is_training(module)))
            _held[id(module)] = (count + 1, before)
            # Set flags one by one: `model.eval()` may be overridden and do more than that.
            if _is_training(module):
                module.training = False
    try:
        with _without_checkpointing():
            yield
    finally:
        with _lock:
            for module in modules:
                count, before = _held.pop(id(module))
                if count > 1:
                    _held[id(module)] = (count - 1, before)
                elif before:
                    module.training = True


_fused_before: list[bool] = []


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Let PyTorch's transformer layers run their modules one by one; the last thread restores.

    In evaluation mode they run a fused kernel otherwise, and none of the modules inside them.
    """
    with _lock:
        _fused_before.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _lock:
            before = _fused_before.pop()
            if not _fused_before:
                torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def watching_module(module: nn.Module, callback: Callable[[object], object]) -> Iterator[None]:
    """Call ``callback(output)`` after each run of one module by this thread.

    What the callback returns, unless None, replaces the output. The hook is removed on leaving;
    unlike PyTorch's process-wide one it costs the other modules nothing.
    """
    if isinstance(module, torch.jit.ScriptModule):  # which takes no hook of its own
        with watching_all_modules(lambda run, output: callback(output) if run is module else None):
            yield
        return
    thread = threading.get_ident()

    def on_output(_module: nn.Module, _args: object, output: object) -> object:
        return callback(output) if threading.get_ident() == thread else None

    handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


class _Stance:
    """The process's stance on compiled code, eager as long as somebody needs it.

    The first to need it sets it, and the last sets it back: threads that each put back what they
    found would leave it eager for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._eager: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._eager = torch.compiler.set_stance("force_eager")
                self._eager.__enter__()
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._eager.__exit__(None, None, None)


_stance = _Stance()


@contextmanager
def without_compilation() -> Iterator[None]:
    """Run networks compiled by ``torch.compile`` operation by operation, as written."""
    # Not imported here: that takes seconds, and whoever compiled has imported it.
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    _stance.enter()
    try:
        with warnings.catch_warnings():
            # Of process-wide hooks that would run twice; those of `watching_all_modules` may.
            warnings.filterwarnings("ignore", "Using `torch.compile")
            yield
    finally:
        _stance.leave()


def is_compiled(model: nn.Module) -> bool:
    """Tell whether ``torch.compile`` made a part of the network."""
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in all_modules(model)
    )


class _Checkpointing(threading.local):
    """How many passes of this thread run checkpointed parts of networks plainly."""

    passes: int = 0


_checkpointing = _Checkpointing()
_checkpointing_patches: list[ExitStack] = []


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Run what networks pass to ``torch.utils.checkpoint`` once, in this thread alone.

    In the backward pass it would run again, without what was there in the forward pass: another
    mode of the modules, other operations, and no interception.
    """
    with _lock:
        _checkpointing_patches.append(ExitStack())
        if len(_checkpointing_patches) == 1:
            _patch_checkpointing(_checkpointing_patches[0])
    _checkpointing.passes += 1
    try:
        yield
    finally:
        _checkpointing.passes -= 1
        with _lock:
            # The first has the patches, and goes last.
            if len(_checkpointing_patches) == 1:
                _checkpointing_patches[0].close()
            _checkpointing_patches.pop()


def _patch_checkpointing(patches: ExitStack) -> None:
    """Let both of PyTorch's forms of checkpointing ask which thread calls them."""
    checkpoint = cast(Any, torch.utils.checkpoint)
    reentrant = checkpoint.CheckpointFunction
    recompute = reentrant.apply  # inherited, so that deleting it restores it

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if _checkpointing.passes:
            return function(*args)
        return recompute(function, preserve, *args)

    reentrant.apply = staticmethod(apply)
    patches.callback(delattr, reentrant, "apply")

    def plainly(generator: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
        def steps(*args: Any, **kwargs: Any) -> Iterator[None]:
            if _checkpointing.passes:
                yield
            else:
                yield from generator(*args, **kwargs)

        return steps

    for name, generator in list(vars(checkpoint).items()):
        if name.startswith("_checkpoint_without_reentrant_generator"):
            setattr(checkpoint, name, plainly(generator))
            patches.callback(setattr, checkpoint, name, generator)


@contextmanager
def without_modules_in_backward(model: nn.Module, error: Exception) -> Iterator[None]:
    """Raise ``error`` where a backward pass runs one of the network's modules."""
    modules = set(all_modules(model))

    def before(module: nn.Module, _args: object) -> None:
        # Autograd runs parts for other devices in threads of its own.
        if module in modules and torch._C._current_graph_task_id() != -1:
            raise error

    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


ModuleCallback = Callable[[nn.Module, object], object]


class _Watchers(threading.local):
    """The callbacks of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[ModuleCallback] = []


_watchers = _Watchers()
_watching_threads = 0
_handle = None


def _on_module_output(module: nn.Module, _args: object, output: object) -> object:
    if not _watchers.stack:
        return None
    return _watchers.stack[-1](module, output)


@contextmanager
def watching_all_modules(callback: ModuleCallback) -> Iterator[None]:
    """Call ``callback(module, output)`` after each module that this thread runs.

    What the callback returns, unless None, replaces the output. It rests on PyTorch's
    process-wide hook, so the user's network gets no hook, and other threads' runs of the same
    network are ignored.
    """
    global _watching_threads, _handle
    with _lock:
        _watching_threads += 1
        if _handle is None:
            # PyTorch's own annotation forbids what its documentation allows: hooks that return.
            _handle = register_module_forward_hook(cast(Any, _on_module_output))
    _watchers.stack.append(callback)
    try:
        yield
    finally:
        _watchers.stack.pop()
        with _lock:
            _watching_threads -= 1
            if _watching_threads == 0 and _handle is not None:
                _handle.remove()
                _handle = None
