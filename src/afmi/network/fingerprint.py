"""Know a network again: a digest of its weights and of the normalisation before them."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.network.classifier import classifier_of
from afmi.network.trace import checksum, place, promise_of
from afmi.network.wrappers import within

__all__ = ["fingerprint_of", "remembered_fingerprint"]


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
    return _digest(_tensors(model))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    network, classifier = within(model), classifier_of(model)
    held = (*network.named_parameters(), *network.named_buffers())
    tensors = {f"network {name}": tensor for name, tensor in held}
    if classifier is not None:
        tensors |= {"mean": classifier.mean, "std": classifier.std}
    return tensors


@dataclass(frozen=True)
class _Remembered:
    """A fingerprint, the weights that had it, and the block in which they stay unchanged."""

    fingerprint: str
    state: object
    promise: object | None


_remembered: weakref.WeakKeyDictionary[nn.Module, _Remembered] = weakref.WeakKeyDictionary()


def remembered_fingerprint(model: nn.Module) -> str | None:
    """Return `fingerprint_of` a network, as quickly as it can be had; None: it cannot be.

    Where the weights lie where they lay, PyTorch counted no write to them, and their checksum (see
    `Trace`) is the same, they are those of the last time, and so is the fingerprint.

    Cost: one reading of the weights by the device's own arithmetic, and the digest after a change;
    neither within `afmi.unchanged`.
    """
    network = within(model)
    promise, known = promise_of(model), _remembered.get(network)
    if known is not None and promise is not None and known.promise is promise:
        return known.fingerprint
    tensors = _tensors(model)
    try:
        held = list(tensors.values())
        state = (
            tuple(tensors),
            *((place(tensor), _writes(tensor)) for tensor in held),
            checksum(held),
        )
        if known is None or known.state != state:
            known = _Remembered(_digest(tensors), state, promise)
    except (RuntimeError, TypeError, NotImplementedError):  # weights that hold no plain numbers
        return None
    _remembered[network] = _Remembered(known.fingerprint, state, promise)
    return known.fingerprint


def _writes(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


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
