"""Identify a run: what must be the same for its results to be continued."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import afmi
from afmi.data.labelled import LabelledImages
from afmi.metrics import Metric
from afmi.network.classifier import Classifier
from afmi.specs import to_json

__all__ = ["identity_of"]


def identity_of(
    model: nn.Module, images: LabelledImages, metrics: Mapping[str, Metric], batch_size: int
) -> dict[str, Any]:
    """Return what makes a run what it is, as JSON holds it."""
    return {
        "afmi": afmi.__version__,
        "torch": torch.__version__,
        "model": {
            "name": model.name if isinstance(model, Classifier) else type(model).__name__,
            "fingerprint": _fingerprint(model),
            "labels": list(getattr(model, "labels", ())),
            "preparation": _preparation(model),
        },
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            "images": len(images),
        },
        "metrics": {key: to_json(metric) for key, metric in metrics.items()},
        "batch_size": batch_size,
    }


def _preparation(model: nn.Module) -> dict[str, Any]:
    """Return how a picture is prepared for the network, and the layer explained."""
    if not isinstance(model, Classifier):
        return {}
    return {
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "resize": model.resize,
        "crop": model.crop,
        "interpolation": str(model.interpolation),
        "layer": model.layer,
    }


@torch.no_grad()
def _fingerprint(model: nn.Module) -> str:
    """Return a digest of the network's structure and of every weight."""
    digest = hashlib.blake2b(str(model).encode(), digest_size=16)
    for name, tensor in model.state_dict(keep_vars=False).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
