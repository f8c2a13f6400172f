"""Identify a run: what must be the same for its results to be continued."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import afmi
from afmi.data.labelled import LabelledImages
from afmi.data.streams import ImageStream
from afmi.evaluation.code import CodeReader, tensor_digest
from afmi.metrics import Metric
from afmi.network.classifier import (
    Classifier,
    classifier_of,
    classify,
    labels_of,
    name_of,
    preparation_of,
)
from afmi.network.randomness import generator_of, keeping_random_state
from afmi.pictures.maps import INTERPOLATION
from afmi.specs import to_json

__all__ = ["code_of", "identity_of"]

_PREPARATION = ("resize", "crop", "interpolation", "layer")
_FORMAT = 2
"""Of what a run keeps: how a stream's pictures are listed, and where batches end.

Raised when a folder of before must not be continued.
"""
_MOST_OUTPUTS = 32
"""Numbers that are kept of what the network gives for a test image."""


def identity_of(
    model: nn.Module,
    images: LabelledImages | ImageStream,
    metrics: Mapping[str, Metric],
    batch_size: int,
    device: str | None = None,
) -> dict[str, Any]:
    """Return what makes a run what it is, as JSON holds it.

    Two test images go through the network, as large as the first one of the data. What decides
    in which order numbers are added counts, too: other batches, threads, precisions and kinds of
    device give other last digits. Processors of another make may as well, which nobody can tell
    beforehand.

    Args:
        model: the network.
        images: the data.
        metrics: what is measured.
        batch_size: pictures that go through the network at once.
        device: type of the device that it runs on; None: where it lies.
    """
    first = images.first()
    weights = next(model.parameters(), first)
    return {
        "format": _FORMAT,
        "afmi": afmi.__version__,
        "torch": torch.__version__,
        # Code counts by what this version of Python makes of it.
        "python": ".".join(platform.python_version_tuple()[:2]),
        "model": {
            "name": name_of(model),
            "labels": list(labels_of(model)),
            "preparation": _preparation(model),
            **_network(model, first),
        },
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            # How many a stream has is known when it has been read.
            "images": images.limit if isinstance(images, ImageStream) else len(images),
        },
        "metrics": {key: to_json(metric) for key, metric in metrics.items()},
        "code": code_of(*metrics.values()),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": device or weights.device.type,
        "arithmetic": {
            "float32 products": torch.get_float32_matmul_precision(),
            "TF32": torch.backends.cudnn.allow_tf32,
            "benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "autocast": torch.is_autocast_enabled(device or weights.device.type),
        },
    }


def code_of(*values: Any) -> dict[str, str]:
    """Return the digests of the code of these methods or metrics, the package's own left out."""
    reader = CodeReader()
    for value in values:
        reader.read(type(value))
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            if not isinstance(part, nn.Module):  # the network is described by itself
                reader.text(part)
    return reader.code


def _preparation(model: nn.Module) -> dict[str, Any]:
    """Return how a picture is prepared for the network, and the layer explained."""
    classifier = classifier_of(model)
    if classifier is None:
        return {}
    return {**preparation_of(model), "layer": classifier.layer}


@torch.no_grad()
def _network(model: nn.Module, like: Tensor) -> dict[str, Any]:
    """Return what a network is (weights, modules, code) and what it computes.

    A network may count its calls or keep activations: what differs between two passes is none of
    its settings, and is left out, so that it is the same network before and after a run.
    """
    outputs, described = [], []
    with keeping_random_state(like.device):
        for image in _test_images(like):
            outputs.append(_outputs(model, image))
            described.append(_described(model))
    first, second = described
    same = {key: text for key, text in first.items() if second.get(key) == text}
    weights = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        weights.update(f"{name} {tensor_digest(parameter)} ".encode())
    modules: dict[str, list[str]] = {}
    for (kind, name, part), text in same.items():
        if kind == "module":
            modules.setdefault(name or "(the network)", []).append(f"{part} {text}")
    return {
        "weights": weights.hexdigest(),
        "modules": {
            name: hashlib.blake2b("\n".join(sorted(parts)).encode(), digest_size=8).hexdigest()
            for name, parts in modules.items()
        },
        "code": {name: text for (kind, name, _), text in sorted(same.items()) if kind == "code"},
        "outputs": {
            "tolerance": max(tolerance for tolerance, _ in outputs),
            "numbers": [number for _, numbers in outputs for number in numbers],
        },
    }


def _test_images(like: Tensor) -> list[Tensor]:
    """Return noise, and shades that change slowly: two images (1, C, *spatial) in [0, 1]."""
    generator = generator_of(0)
    noise = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu")
    coarse = torch.rand(
        (*like.shape[:2], *[3] * (like.dim() - 2)),
        generator=generator,
        dtype=torch.float64,
        device="cpu",
    )
    mode = INTERPOLATION[like.dim() - 2]
    smooth = nn.functional.interpolate(coarse, like.shape[2:], mode=mode, align_corners=True)
    return [noise.to(like), smooth.to(like)]


def _outputs(model: nn.Module, image: Tensor) -> tuple[float, list[float | str | None]]:
    """Return the relative tolerance of the network's outputs, and numbers that tell of them all.

    Numbers that JSON does not have are None. Where the network fails, the kind of error stands
    for the outputs.
    """
    try:
        logits = classify(model, image)
    except Exception as error:
        return 0.0, [type(error).__name__]
    values = logits.flatten().to("cpu", torch.float64)
    if len(values) > _MOST_OUTPUTS:
        generator = generator_of(0)
        shape = (_MOST_OUTPUTS, len(values))
        drawn = torch.randint(2, shape, generator=generator, dtype=torch.int64, device="cpu")
        values = (drawn * 2 - 1).to("cpu", torch.float64) @ values / math.sqrt(len(values))
    numbers = [value if math.isfinite(value) else None for value in values.tolist()]
    # Another processor, or another number of threads, adds in another order.
    return math.sqrt(torch.finfo(logits.dtype).eps), numbers


@functools.cache
def _machinery() -> frozenset[str]:
    """Attributes that every module has, those of forward hooks apart."""
    return frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}


def _described(model: nn.Module) -> dict[tuple[str, str, str], str]:
    """Return ("module", name, attribute) and ("code", name, "") with what each is."""
    reader = CodeReader()
    described: dict[tuple[str, str, str], str] = {}
    for name, module in model.named_modules():
        left_out = _machinery()
        if isinstance(module, Classifier):
            left_out |= {*_PREPARATION, "labels", "name"}
        reader.read(type(module))
        described["module", name, "class"] = type(module).__qualname__
        for attribute, value in vars(module).items():
            if attribute.endswith("forward_hooks") or attribute == "_forward_pre_hooks":
                value = list(value.values())
            if attribute not in left_out:
                described["module", name, attribute] = reader.text(value)
        for buffer, tensor in module.named_buffers(recurse=False):
            described["module", name, f"buffer {buffer}"] = tensor_digest(tensor)
    described |= {("code", name, ""): text for name, text in reader.code.items()}
    return described
