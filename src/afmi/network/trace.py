"""What a run of a network consists of, so that what was learnt of an earlier run can be believed.

A trace holds every operation of a run with all that the operation was given besides the images:
numbers, shapes, weights and other constants. Runs with equal traces compute the same function,
whatever was done to the network between them: to its weights by any door, its attributes, hooks,
modules, methods or the functions that it calls.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from afmi.network.guards import all_modules
from afmi.network.randomness import generator_of
from afmi.network.scored import anchor

__all__ = ["Remembered", "Trace", "checksum", "form_of", "place", "promise_of", "unchanged"]

_ROW = 4096
"""Numbers that one number of a checksum stands for."""

_LARGEST = 256.0
"""Sums up to here tell a change of one of their numbers by a few parts in a hundred thousand."""

# Compared by value. Equal to Python are True and 1, 1 and 1.0, 0.0 and -0.0, but not to PyTorch, so
# other numbers than `int` are compared as text.
_PLAIN = frozenset(
    {
        *(type(None), int, str, bytes, type(...), torch.Size),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    }
)
_NUMBERS = frozenset({bool, float, complex})
_TENSORS = frozenset(
    {Tensor, nn.Parameter, nn.Buffer} if hasattr(nn, "Buffer") else {Tensor, nn.Parameter}
)


class Trace:
    """The operations of one run and their constants, in order.

    Two runs with the same weights and steps computed the same function of their images. A run that
    decides by the images' values is like no other, since it does not tell what it would do for
    other images.

    Args:
        model: the network.
        contents: whether its parameters, buffers and other constants are compared number by number,
            or by their places in memory alone.
    """

    def __init__(self, model: nn.Module, *, contents: bool) -> None:
        weights = [
            tensor
            for module in all_modules(model)
            for tensors in (module._parameters, module._buffers)
            for tensor in tensors.values()
            if tensor is not None
        ]
        self._contents = contents
        self._weights = {id(tensor): i for i, tensor in enumerate(weights)}
        self._state: tuple[object, ...] = ()
        if contents:
            self._state = (*map(place, weights), checksum(weights))
        self._steps: list[object] = []
        # Which step made each tensor that is alive; the identity of a dead one may return.
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.has_decided = False

    def has_other_weights(self, other: Trace) -> bool:
        """Tell whether the network's parameters or buffers are not those of another trace."""
        return self._state != other._state

    def has_steps_of(self, other: Trace) -> bool:
        """Tell whether both runs made the same operations, with the same constants, in order."""
        return not (self.has_decided or other.has_decided) and self._steps == other._steps

    def decided(self) -> None:
        """Note that the network may decide by the images' values what to do next."""
        self.has_decided = True

    def begin(self, images: Tensor) -> None:
        """Start again with a run of these images."""
        self._steps.clear()
        self._made.clear()
        self.has_decided = False
        self.made(images)

    def call(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        """Note an operation that is about to run, and what it is given."""
        self._steps.append(function)
        if type(function) is FunctionType:  # such as F.relu, which calls torch.relu
            self._steps.append(vars(torch).get(function.__name__))
        if torch._C._is_any_autocast_enabled():
            self._steps.append(str(_autocast()))
        self._note(args)
        if kwargs:
            for name, value in kwargs.items():
                self._steps.append(name)
                self._note((value,))

    def reached_layer(self, maps: Tensor) -> None:
        """Note that the maps of the layer are there, and the network goes on with these."""
        self._steps.append("layer")
        self.made(maps)

    def made(self, output: Any) -> None:
        """Note the tensors that the last operation gave."""
        if isinstance(output, Tensor):
            self._made[id(output)] = (weakref.ref(output), len(self._steps))
        elif isinstance(output, (tuple, list)):
            for i, item in enumerate(output):
                self._steps.append(i)
                self.made(item)

    def close(self) -> None:
        """Drop what only a run that has not ended needs."""
        self._made.clear()
        self._weights.clear()

    def _note(self, values: Iterable[Any]) -> None:
        for value in values:
            kind = type(value)
            if kind in _PLAIN:
                self._steps.append(value)
            elif isinstance(value, Tensor):
                self._steps.append(self._tensor(value))
            elif kind is tuple or kind is list:
                self._steps.append(len(value))
                self._note(value)
            elif kind in _NUMBERS:
                self._steps.append(repr(value))
            elif kind is slice:
                self._note((value.start, value.stop, value.step))
            elif isinstance(value, (np.ndarray, np.generic)):
                self._steps.append((value.shape, str(value.dtype), value.tobytes()))
            else:  # which may hold anything, and change
                self.has_decided = True

    def _tensor(self, tensor: Tensor) -> object:
        if type(tensor) not in _TENSORS:  # whose operations may depend on more than its numbers
            self.has_decided = True
        made = self._made.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        weight = self._weights.get(id(tensor))
        if weight is not None:
            return (weight,)
        return (place(tensor), checksum([tensor]) if self._contents else None)


def form_of(images: Tensor) -> tuple[object, ...]:
    """Return what of images (N, C, H, W), besides their pixels, a run's operations depend on."""
    return images.shape, images.dtype, images.device, torch.get_default_dtype(), _autocast()


def _autocast() -> tuple[torch.dtype | None, ...]:
    kinds = ("cpu", "cuda")
    return tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in kinds
    )


def place(tensor: Tensor) -> tuple[object, ...]:
    """Return a tensor's kind, form and place in memory."""
    form = (type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout)
    if tensor.layout != torch.strided or tensor.is_meta:
        return form
    try:
        return (*form, tensor.stride(), tensor.data_ptr())
    except RuntimeError:  # one that stands for others, within torch.func
        return (*form, object())


@torch.no_grad()
def checksum(tensors: list[Tensor]) -> object:
    """Return sums that change with any number of the tensors, but for changes below rounding.

    One sum stands for `_ROW` numbers of a large tensor, weighted at random, so that numbers that
    change places change it too; small tensors are compared exactly. It costs one reading of the
    weights.
    """
    small: dict[_Kind, list[Tensor]] = {}
    large: dict[_Kind, list[tuple[Tensor, Tensor]]] = {}  # numbers, and the sums of their rows
    try:
        for tensor in tensors:
            numbers = _numbers(tensor)
            kind = numbers.dtype, numbers.device
            rows = numbers.numel() // _ROW
            if rows:
                whole = numbers[: rows * _ROW].view(rows, _ROW)
                sums = torch.mv(whole, _random_weights(*kind))
                large.setdefault(kind, []).append((numbers, sums))
                numbers = numbers[rows * _ROW :]
            small.setdefault(kind, []).append(numbers)
        exact = [_bytes(torch.cat(parts)) for parts in small.values()]
        for parts in large.values():
            joined = torch.cat([sums for _, sums in parts])
            exact.append(_bytes(joined))
            if _hides(joined):
                exact += [_bytes(numbers) for numbers, sums in parts if _hides(sums)]
    except (RuntimeError, NotImplementedError):
        return object()  # equal to nothing: a tensor whose numbers cannot be read
    return tuple(hashlib.blake2b(part, digest_size=16).digest() for part in exact)


_Kind = tuple[torch.dtype, torch.device]


def _hides(sums: Tensor) -> bool:
    """Tell whether rows have numbers beside which others would not count: NaN, or large ones."""
    return not bool(sums.abs().amax() <= _LARGEST)


def _bytes(numbers: Tensor) -> bytes:
    return numbers.to("cpu").numpy().tobytes()


def _numbers(tensor: Tensor) -> Tensor:
    """Return a tensor's numbers in the order of its memory, as floats (M,)."""
    if tensor.dtype in (torch.float32, torch.float64) and tensor.is_contiguous():
        return tensor.view(-1)
    tensor = tensor.detach().as_subclass(Tensor)
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    flat = tensor.resolve_conj().resolve_neg().reshape(-1)
    if flat.dtype in (torch.float32, torch.float64):
        return flat
    if flat.dtype in (torch.float16, torch.bfloat16):
        return flat.float()
    return flat.contiguous().view(torch.uint8).float()


_kept_weights: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _random_weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    weights = _kept_weights.get((dtype, device))
    if weights is None:
        generator = generator_of(0)
        drawn = torch.randn(_ROW, generator=generator, dtype=torch.float64, device="cpu")
        weights = _kept_weights[dtype, device] = drawn.to(device, dtype)
    return weights


_promises: ContextVar[tuple[tuple[nn.Module, object], ...]] = ContextVar("promises", default=())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Promise that nothing changes a network within this block.

    What is kept of it (a reference's run, the layer that was found) is checked once for images of
    one form and believed from then on. That saves the weights' checksum and the note of each
    operation, which count where one image is explained at a time.

    Args:
        model: what the methods in this block explain, in this thread.

    Example:
        >>> import afmi
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> method = afmi.methods.AFMI(model)
        >>> with unchanged(model):
        ...     maps = [method.attribute(torch.rand(1, 3, 8, 8)) for _ in range(3)]
    """
    token = _promises.set((*_promises.get(), (model, object())))
    try:
        yield
    finally:
        _promises.reset(token)


def promise_of(model: nn.Module) -> object | None:
    """Return what stands for the outermost block in which the network stays unchanged."""
    return next((promise for promised, promise in _promises.get() if promised is model), None)


K = TypeVar("K", bound=Hashable)
Fact = TypeVar("Fact")
Result = TypeVar("Result")


@dataclass
class _Kept(Generic[Fact]):
    """A fact, the trace of a run for which it holds, and the block in which that was so."""

    fact: Fact
    trace: Trace
    promise: object | None


class Remembered(Generic[K, Fact]):
    """Facts about each living model, believed only while its runs have the trace that they had.

    Args:
        capacity: how many facts are kept for a model; the least recently used is dropped.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._facts: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, _Kept[Fact]]]
        self._facts = weakref.WeakKeyDictionary()

    def use(
        self,
        model: nn.Module,
        key: K,
        learn: Callable[[], Fact],
        run: Callable[[Fact, Trace | None], Result],
        *,
        contents: bool,
    ) -> Result:
        """Return what a run of the network gives by means of a fact about it.

        A remembered fact is tried first. Where the run then has another trace than the run had for
        which the fact was learnt, or fails, the fact is learnt again and the run repeated.

        Args:
            model: the network.
            key: what the fact is about, the form of the images included.
            learn: finds the fact out.
            run: runs the images by the fact, and notes the run in the trace, if there is one.
            contents: whether the fact depends on the weights' numbers, or on the operations alone.
        """
        network, scored = anchor(model)
        key_of_fact = (key, scored)
        with self._lock:
            facts = self._facts.setdefault(network, OrderedDict())
            kept = facts.get(key_of_fact)
            if kept is not None:
                facts.move_to_end(key_of_fact)
        promise = promise_of(network)
        if kept is not None and promise is not None and kept.promise is promise:
            return run(kept.fact, None)
        trace = Trace(model, contents=contents)
        if kept is not None and not (contents and trace.has_other_weights(kept.trace)):
            try:
                result = run(kept.fact, trace)
            except Exception:
                pass  # of a fact that holds no longer, or of the network: then it comes again
            else:
                if trace.has_steps_of(kept.trace):
                    kept.promise = promise
                    return result
                del result
        fact = learn()
        result = run(fact, trace)
        trace.close()
        with self._lock:
            # What a network decides by its images' values is known of these images alone.
            facts[key_of_fact] = _Kept(fact, trace, None if trace.has_decided else promise)
            facts.move_to_end(key_of_fact)
            while len(facts) > self._capacity:
                facts.popitem(last=False)
        return result
