"""Run a network on the memory layout on which its convolutions are fastest."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from afmi.network.guards import all_modules
from afmi.network.memory import is_out_of_memory
from afmi.network.scored import anchor

__all__ = ["in_fast_layout", "is_fast", "keep_usual_layout", "pooled"]

T = TypeVar("T")

# Batches of at most this many pixels gain nothing by another layout, …
_FEW_PIXELS = 224 * 224
# … except in networks like MobileNet, where the limit is lower.
_FEW_PIXELS_DEPTHWISE = 112 * 112

# Max pooling gains from the other layout from this many channels and numbers up.
_VECTOR = 8
_LARGE_MAPS = 16_384

# Networks that need the usual layout, such as those that take a ``view`` of their maps.
_contiguous_only: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_fast(model: nn.Module, images: Tensor) -> bool:
    """Tell whether the network is to get images (N, C, H, W) in channels-last layout.

    On a CPU in float32 convolutions then take as little as half the time (SqueezeNet), for the
    same numbers to rounding. Signals and volumes keep the usual layout, which is theirs.
    """
    if images.device.type != "cpu" or images.dtype != torch.float32 or images.dim() != 4:
        return False
    if anchor(model)[0] in _contiguous_only:
        return False
    pixels = images[:, 0].numel()
    return pixels > _FEW_PIXELS or (pixels > _FEW_PIXELS_DEPTHWISE and _is_depthwise(model))


_depthwise: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def _is_depthwise(model: nn.Module) -> bool:
    """Tell whether the network has depthwise convolutions and batch norms, as MobileNet has.

    ConvNeXt has the former only, and permutes its maps itself.
    """
    model = anchor(model)[0]
    if model not in _depthwise:
        modules = all_modules(model)
        _depthwise[model] = any(isinstance(module, nn.BatchNorm2d) for module in modules) and any(
            isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
            for module in modules
        )
    return _depthwise[model]


def in_fast_layout(
    model: nn.Module, run: Callable[[Tensor, bool], T], images: Tensor, *, fast: bool | None = None
) -> T:
    """Return ``run(copy of the images, fast)``, the copy in the layout that is fast here.

    A network that raises on that layout gets the usual one from then on, as does one that reads how
    its maps lie in memory (see `afmi.network.watch`).

    Args:
        model: the network.
        run: passes images through it, and may overwrite them; may be called twice. It is told
            whether they are in channels-last layout.
        images: (N, C, *spatial).
        fast: which layout; None: see `is_fast`.
    """
    if is_fast(model, images) if fast is None else fast:
        try:
            return run(images.to(memory_format=torch.channels_last, copy=True), True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
        result = run(images.clone(memory_format=torch.contiguous_format), False)
        _contiguous_only.add(anchor(model)[0])
        return result
    return run(images.clone(memory_format=torch.contiguous_format), False)


def keep_usual_layout(model: nn.Module) -> None:
    """Run this network on images in the usual layout from now on."""
    _contiguous_only.add(anchor(model)[0])


def pooled(pool: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Return ``pool(x)``, computed in the layout on which max pooling is fast, laid out as x is.

    On a CPU PyTorch pools maps in the usual layout one number at a time; pooling in channels-last
    layout takes a fifth of that, conversions included.

    Args:
        pool: max pooling that gives the maxima, and perhaps their positions.
        x: (N, C, H, W), or of other dimensions, which stay as they are.
    """
    slow = x.device.type == "cpu" and x.dim() == 4 and x.is_contiguous()
    if not slow or x.shape[1] < _VECTOR or x.numel() < _LARGE_MAPS:
        return pool(x)
    pooled_maps = pool(x.contiguous(memory_format=torch.channels_last))
    return tuple(tensor.contiguous() for tensor in pooled_maps)
