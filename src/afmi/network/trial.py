"""Try a network once, before anything is explained, for what no operation betrays."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from afmi.errors import ModelError
from afmi.network.channels_last import is_fast, keep_usual_layout
from afmi.network.guards import all_modules, without_compilation
from afmi.network.outputs import logits_of
from afmi.network.randomness import generator_of
from afmi.network.trace import form_of
from afmi.network.watch import Watch

__all__ = ["try_once"]

_ROUNDING = {"cpu": 2e-3}
"""Outputs of one image may differ by as much of the largest on a kind of device; otherwise by …"""
_ROUNDING_ELSEWHERE = 1e-2  # … since convolutions may round to ten bits there

_MANY = 1_000_000
"""Images in a batch that is large enough for any layout."""

_tried: weakref.WeakKeyDictionary[nn.Module, tuple[object, set[object]]]
_tried = weakref.WeakKeyDictionary()


def try_once(model: nn.Module, images: Tensor) -> None:
    """Compare a network's outputs for an image alone, again, in a batch and in a fast layout.

    It is done once for images of one form, and again after a change of the network's modules,
    hooks or methods. A network that gives other outputs in channels-last layout is run on the usual
    one from then on.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W); noise of their form is run.

    Raises:
        ModelError: when the outputs for one image differ from run to run, or with the other images
            of a batch.
    """
    parts, forms = _tried.get(model, (None, set()))
    now = _parts(model)
    form = form_of(images[:1])
    if parts == now and form in forms:
        return
    _try(model, images[:1])
    _tried[model] = (now, {*forms, form} if parts == now else {form})


def _parts(model: nn.Module) -> tuple[object, ...]:
    """Return what the network is made of, by identity."""
    return tuple(
        (
            id(module),
            id(type(module).forward),
            id(module.__dict__.get("forward")),
            *module._forward_hooks,
            *module._forward_pre_hooks,
        )
        for module in all_modules(model)
    )


@torch.no_grad()
def _try(model: nn.Module, like: Tensor) -> None:
    # Noise, since a reference of one colour would hide much.
    generator = generator_of(0)
    shape = (2, *like.shape[1:])
    two = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(like)
    image = two[:1]
    rounding = _ROUNDING.get(image.device.type, _ROUNDING_ELSEWHERE)
    tolerance = max(rounding, 16 * torch.finfo(form_of(image)[-1] or image.dtype).eps)
    try:
        alone, again, together = (_run(model, x) for x in (image, image, two))
    except ModelError:
        raise
    except Exception:
        return  # the run that follows raises it, or the network takes one image at a time
    if _differ(alone, again, tolerance / 10):
        raise ModelError(
            "the network gives other outputs each time for the same image, so that no explanation "
            "holds; let it draw random numbers, or change its state, only while self.training"
        )
    if len(together) == 2 and _differ(alone, together[:1], tolerance):
        raise ModelError(
            "the network gives an image other outputs in a batch than alone, so that no "
            "explanation holds; let it treat each image by itself: a batch norm without running "
            "statistics (track_running_stats=False), for one, ties the images of a batch together"
        )
    if is_fast(model, image.expand(_MANY, *image.shape[1:])):
        try:
            other = _run(model, image.to(memory_format=torch.channels_last), fast=True)
        except RuntimeError:
            return  # `in_fast_layout` comes to the same
        if _differ(alone, other, tolerance):
            keep_usual_layout(model)


def _run(model: nn.Module, images: Tensor, *, fast: bool = False) -> Tensor:
    with without_compilation(), Watch(images, fast=fast):
        return logits_of(model(images.clone()))


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    difference, scale = (first - second).abs().max(), first.abs().max()
    return bool(difference > tolerance * scale)
