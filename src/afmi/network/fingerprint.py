"""Notice that a network's weights are no longer what they were."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from afmi.network.guards import every_module

__all__ = ["Fingerprint", "fingerprint"]

Fingerprint = tuple[object, ...]
"""Where the weights are, then what tells their numbers."""

_SAMPLES = 8
"""Numbers of each weight that are compared to notice a change."""


@torch.no_grad()
def fingerprint(model: nn.Module, *, closely: bool) -> Fingerprint:
    """Identify the weights as they are now, so that training on makes cached runs stale.

    PyTorch counts a tensor's changes, but not those made through ``.data`` (as averaged weights
    often are) or in inference mode, so a few numbers of the weights are compared besides. The
    first of the parts tells where they are.

    Args:
        model: the network.
        closely: whether biases and buffers are compared, too, where a change of them alone
            would be noticed by nothing else.

    Returns:
        What is equal as long as the weights are, but for changes of numbers that are not looked at.
    """
    places: list[int] = []
    versions: list[int] = []
    tensors: list[Tensor] = []
    for module in every_module(model):
        places.append(id(module))
        for owned in (module._parameters, module._buffers):
            for tensor in owned.values():
                if tensor is not None:
                    places.append(tensor.data_ptr())
                    versions.append(-1 if tensor.is_inference() else tensor._version)
                    tensors.append(tensor)
    where = tuple(places)
    kept = _sampled[closely].get(model)
    if kept is None or kept[0] != where:
        kept = _sampled[closely][model] = (where, _samples(tensors, closely=closely))
    numbers = (torch.cat(views).cpu().view(torch.uint8).numpy().tobytes() for views in kept[1])
    return (where, tuple(versions), *numbers)


# Views of the numbers that are compared. They keep the memory that they look at, so an address
# stands for a dtype and a device too.
_Sampled = weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], list[list[Tensor]]]]
_sampled: dict[bool, _Sampled] = {closely: weakref.WeakKeyDictionary() for closely in (False, True)}


def _samples(tensors: list[Tensor], *, closely: bool) -> list[list[Tensor]]:
    """Return views of a few numbers of each weight, those of one dtype and device together."""
    views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        count = tensor.numel()
        seen = closely or tensor.dim() > 1 or tensor.is_inference()
        if count and seen and tensor.is_contiguous() and tensor.is_floating_point():
            size, step = min(count, _SAMPLES), max(count // _SAMPLES, 1)
            view = torch.as_strided(tensor.detach(), (size,), (step,))
            views.setdefault((tensor.dtype, tensor.device), []).append(view)
    return list(views.values())
