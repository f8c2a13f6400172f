"""Notice that a network's weights have changed."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from afmi.network.guards import all_modules

__all__ = ["Fingerprint", "fingerprint"]

Fingerprint = tuple[object, ...]
"""The weights' addresses, then versions and samples of their values."""

_SAMPLES = 8
"""Numbers of each weight that are compared to notice a change."""


@torch.no_grad()
def fingerprint(model: nn.Module, *, closely: bool) -> Fingerprint:
    """Identify the weights as they are now, so that further training makes cached runs stale.

    PyTorch counts a tensor's changes, but not those made through ``.data`` (as averaged weights
    often are) or in inference mode, so samples of the weights are compared as well. The first of
    the parts holds their addresses.

    Args:
        model: the network.
        closely: whether biases and buffers are sampled, too, where nothing else would notice a
            change of them alone.

    Returns:
        A value that stays equal as long as the weights do, but for silent changes of numbers that
        are not sampled.
    """
    places: list[int] = []
    versions: list[int] = []
    tensors: list[Tensor] = []
    for module in all_modules(model):
        places.append(id(module))
        for tensors_by_name in (module._parameters, module._buffers):
            for tensor in tensors_by_name.values():
                if tensor is not None:
                    places.append(tensor.data_ptr())
                    versions.append(-1 if tensor.is_inference() else tensor._version)
                    tensors.append(tensor)
    addresses = tuple(places)
    kept = _sampled[closely].get(model)
    if kept is None or kept[0] != addresses:
        kept = _sampled[closely][model] = (addresses, _samples(tensors, closely=closely))
    numbers = (torch.cat(views).cpu().view(torch.uint8).numpy().tobytes() for views in kept[1])
    return (addresses, tuple(versions), *numbers)


# Views of the sampled numbers. They keep their memory alive, so an address stands for a dtype and
# a device too.
_Sampled = weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], list[list[Tensor]]]]
_sampled: dict[bool, _Sampled] = {closely: weakref.WeakKeyDictionary() for closely in (False, True)}


def _samples(tensors: list[Tensor], *, closely: bool) -> list[list[Tensor]]:
    """Return views of a few numbers of each weight, those of one dtype and device together."""
    views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        count = tensor.numel()
        sampled = closely or tensor.dim() > 1 or tensor.is_inference()
        if count and sampled and tensor.is_contiguous() and tensor.is_floating_point():
            size, step = min(count, _SAMPLES), max(count // _SAMPLES, 1)
            view = torch.as_strided(tensor.detach(), (size,), (step,))
            views.setdefault((tensor.dtype, tensor.device), []).append(view)
    return list(views.values())
