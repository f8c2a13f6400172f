"""Know a network again: a digest of its weights and of the normalisation before them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from afmi.network.classifier import classifier_of
from afmi.network.wrappers import within

__all__ = ["fingerprint_of"]


def fingerprint_of(model: nn.Module) -> str:
    """Return a hex digest (BLAKE2b) of a network's parameters, buffers and normalisation.

    It is the same on every device, in every process and in every precision that holds the weights
    exactly. The code of the network does not count.

    Cost: every weight is read, each time; what PyTorch counts of the writes to a tensor misses
    those through ``.data`` or NumPy.

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
    return _digest(tensors)


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
