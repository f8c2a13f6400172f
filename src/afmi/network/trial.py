"""Try a network once, before anything is explained, for what no operation betrays."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from afmi.errors import ModelError, OutputsWarning
from afmi.network.channels_last import is_fast, keep_usual_layout
from afmi.network.checking import is_quantised
from afmi.network.guards import all_modules, without_compilation
from afmi.network.outputs import Meaning, Outputs, declaration_of, read_outputs
from afmi.network.randomness import generator_of
from afmi.network.scored import Scored, anchor
from afmi.network.trace import form_of, promise_of
from afmi.network.watch import Watch

__all__ = ["meaning_of", "try_once"]

_ROUNDING = 1e-4
"""A logit may differ by as much of itself, or of the middle one where that is larger; by more in
less than single precision."""

_MANY = 1_000_000
"""Images in a batch that is large enough for any layout."""

_tried: weakref.WeakKeyDictionary[nn.Module, _Tried] = weakref.WeakKeyDictionary()


def try_once(model: nn.Module, images: Tensor) -> None:
    """Compare a network's outputs for an image in several batches and in both memory layouts.

    It is done once for images of one form, and again after a change of the network's modules,
    attributes, hooks or methods. A network that gives other outputs in channels-last layout is run
    on the usual one from then on.

    Args:
        model: in evaluation mode.
        images: (N, C, *spatial); three batches of two images of noise of their form are run.

    Raises:
        ModelError: when the outputs for one image differ from run to run, or with the other images
            of a batch.
    """
    network, scored = anchor(model)
    alike = model.target.alike() if isinstance(model, Scored) else None
    form, promise, tried = (alike, form_of(images[:1])), promise_of(network), _tried.get(network)
    if tried is None or promise is None or tried.promise is not promise:
        parts = _parts(network)
        if tried is None or not tried.is_of(parts):
            tried = _Tried(parts)
        tried.promise = promise
    if form in tried.forms:
        return
    outputs = _try(model, images[:1])
    # What a run itself changes (a counter, a kept activation) is no change of the network.
    after = _parts(network)
    tried.volatile |= {key for key in tried.parts | after if tried.parts.get(key) != after.get(key)}
    tried.forms.add(form)
    _tried[network] = tried
    if outputs is not None and scored is None:
        if outputs.assumed is not None and tried.meaning is None:
            warnings.warn(outputs.assumed, OutputsWarning, stacklevel=2)
        tried.meaning = outputs.meaning


def meaning_of(model: nn.Module, images: Tensor) -> Meaning:
    """Return what the scores of a network mean that has run images of this form.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W).
    """
    declared = declaration_of(model).meaning
    if declared is not None:
        return declared
    try_once(model, images)
    tried = _tried.get(anchor(model)[0])
    return "logits" if tried is None or tried.meaning is None else tried.meaning


_Parts = dict[object, object]


@dataclass
class _Tried:
    """A network as it was when it was tried.

    Attributes:
        parts: what it was made of.
        volatile: which of these its own runs change.
        forms: those of the images.
        promise: the block in which it was last the same, see `afmi.network.trace.unchanged`.
        meaning: of its outputs; None: they have no rows of scores.
    """

    parts: _Parts
    volatile: set[object] = field(default_factory=set)
    forms: set[object] = field(default_factory=set)
    promise: object | None = None
    meaning: Meaning | None = None

    def is_of(self, parts: _Parts) -> bool:
        """Tell whether a network is made of the same parts."""
        return self.parts == parts or all(
            self.parts.get(key) == parts.get(key)
            for key in self.parts | parts
            if key not in self.volatile
        )


def _parts(model: nn.Module) -> _Parts:
    """Return what the network is made of: plain attributes by value, all else by identity."""
    parts: _Parts = {}
    for module in all_modules(model):
        here = id(module)
        parts[here] = (
            *_definition(type(module)),
            *(name for name, buffer in module._buffers.items() if buffer is None),
            *map(id, module._forward_hooks.values()),
            *map(id, module._forward_pre_hooks.values()),
        )
        for name, value in module.__dict__.items():
            if name not in _KEPT_BY_PYTORCH:
                parts[here, name] = value if type(value) in _PLAIN else id(value)
    return parts


_PLAIN = frozenset({type(None), bool, int, float, str})
_KEPT_BY_PYTORCH = frozenset(vars(nn.Module()))


def _definition(kind: type) -> Iterator[int]:
    """Yield what the methods of a class are, by identity, PyTorch's own classes left out."""
    for cls in kind.__mro__:
        if not cls.__module__.startswith("torch.") and cls is not object:
            yield from map(id, vars(cls).values())


@torch.no_grad()
def _try(model: nn.Module, like: Tensor) -> Outputs | None:
    """Try the network on noise, and return the outputs for it; None: it takes no pairs."""
    # Noise, since a reference of one colour would hide much.
    shape = (3, *like.shape[1:])
    noise = torch.rand(shape, generator=generator_of(0), dtype=torch.float32, device="cpu")
    first, second, third = noise.to(like)
    tolerance = max(_ROUNDING, 16 * torch.finfo(_dtype(like)).eps)
    differ = partial(_differ, tolerance)
    try:
        # Batches of one size, because a network may round otherwise for another.
        outputs, with_third, after_third = (
            _run(model, torch.stack(pair))
            for pair in ((first, second), (first, third), (third, second))
        )
    except ModelError:
        raise
    except Exception:
        return _try_single(model, first)
    together, with_third, after_third = outputs.scores, with_third.scores, after_third.scores
    if any(is_quantised(module) for module in all_modules(model)):
        return outputs  # activations may be rounded by the range of their batch, and are coarse
    if len(together) == 2 and (
        differ(together[0], with_third[0]) or differ(together[1], after_third[1])
    ):
        raise _unsteady(differ(together, _run(model, torch.stack((first, second))).scores))
    if is_fast(model, like[:1].expand(_MANY, *like.shape[1:])):
        pair = torch.stack((first, second)).to(memory_format=torch.channels_last)
        try:
            fast = _run(model, pair, fast=True)
        except RuntimeError:
            return outputs  # `in_fast_layout` comes to the same
        if differ(together, fast.scores):
            keep_usual_layout(model)
    return outputs


def _try_single(model: nn.Module, image: Tensor) -> Outputs | None:
    """Return the outputs of a network that takes one image at a time."""
    try:
        return _run(model, image[None])
    except Exception:
        return None  # the run that follows raises it


def _dtype(images: Tensor) -> torch.dtype:
    device = images.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype


def _differ(tolerance: float, logits: Tensor, others: Tensor) -> bool:
    finite = logits.isfinite()
    if not torch.equal(finite, others.isfinite()):
        return True
    logits, others = logits[finite], others[finite]
    if not logits.numel():
        return False
    # Measured by each logit and the middle one: a class ruled out by -1e9 must hide no other.
    scale = torch.maximum(logits.abs(), logits.abs().median())
    return bool(((logits - others).abs() > tolerance * scale).any())


def _run(model: nn.Module, images: Tensor, *, fast: bool = False) -> Outputs:
    with without_compilation(), Watch(images, fast=fast):
        return read_outputs(model, images)


def _unsteady(from_run_to_run: bool) -> ModelError:
    if from_run_to_run:
        return ModelError(
            "the network gives other outputs each time for the same image, so that no explanation "
            "holds; let it draw random numbers, or change its state, only while self.training"
        )
    return ModelError(
        "the network gives an image other outputs with the other images of a batch, so that no "
        "explanation holds; let it treat each image by itself: a batch norm without running "
        "statistics (track_running_stats=False), for one, ties the images of a batch together"
    )
