"""Know a network again: a digest of its weights and of the normalisation before them."""

from __future__ import annotations

import hashlib
import weakref

import torch
from torch import Tensor, nn

from afmi.network.classifier import classifier_of
from afmi.network.wrappers import within

__all__ = ["fingerprint_of"]

_Places = tuple[tuple[int, int], ...]

_kept: weakref.WeakKeyDictionary[nn.Module, tuple[_Places, str]] = weakref.WeakKeyDictionary()


def fingerprint_of(model: nn.Module) -> str:
    """Return a hex digest (BLAKE2b) of a network's parameters, buffers and normalisation.

    It is the same on every device, in every process and in every precision that holds the weights
    exactly. The code of the network does not count.

    Made again only when a tensor is another or was written to, so it is there to tell networks
    apart, and no key for results: a change behind PyTorch's back, such as through NumPy, is missed.

    Args:
        model: a `Classifier` or any ``nn.Module``.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> before = fingerprint_of(network)
        >>> with torch.no_grad():
        ...     _ = network.bias.add_(1)
        >>> fingerprint_of(network) == before
        False
    """
    network, classifier = within(model), classifier_of(model)
    held = (*network.named_parameters(), *network.named_buffers())
    tensors = {f"network {name}": tensor for name, tensor in held}
    if classifier is not None:
        tensors |= {"mean": classifier.mean, "std": classifier.std}
    places = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors.values())
    kept = _kept.get(network)
    if kept is None or kept[0] != places:
        kept = _kept[network] = (places, _digest(tensors))
    return kept[1]


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        if name.endswith("num_batches_tracked"):  # which nothing reads
            continue
        values = tensor.detach().to("cpu")
        values = values.to(torch.float32) if values.is_floating_point() else values
        digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
