"""Labelled pictures that are items of a data set: PyTorch's, MNIST, or any list of pairs."""

from __future__ import annotations

import importlib
import operator
from pathlib import Path
from typing import Any

import torch

from afmi.data.listing import Items, Listing
from afmi.errors import ImageError, TargetError

__all__ = ["mnist", "open_items", "open_mnist"]


def open_items(data: Any) -> Listing:
    name = type(data).__name__
    if len(data) < 1:
        raise ImageError(f"the {name} has no items; expected pairs of picture and class index")
    source = Items(name, data)
    keys = tuple(f"item/{i}" for i in range(len(data)))
    labels = _known_targets(data)
    first = _index(source.pair(keys[0])[1], name)
    if labels is None or labels[0] != first:  # the items carry other labels
        labels = [first, *(_index(source.pair(key)[1], name) for key in keys[1:])]
        names = ()
    else:
        names = _known_names(data)
    sizes = (0,) * len(keys)
    return Listing(name, source, keys, tuple(labels), "label", sizes, class_names=names)


def _index(label: Any, name: str) -> int:
    try:
        return operator.index(label)
    except (TypeError, ValueError, RuntimeError):  # of tensors
        raise TargetError(
            f"expected class indices as labels in the {name}, got {type(label).__name__} "
            f"{' '.join(str(label).split())[:80]!r}; turn them into whole numbers from 0"
        ) from None


def _known_targets(data: Any) -> list[int] | None:
    """Return the labels that a data set knows without reading its pictures, or None."""
    if isinstance(data, torch.utils.data.Subset):
        inner = _known_targets(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    targets = getattr(data, "targets", None)
    if getattr(data, "target_transform", None) is not None or targets is None:
        return None
    try:
        indices = [operator.index(target) for target in targets]
    except (TypeError, ValueError, RuntimeError):
        return None
    return indices if len(indices) == len(data) else None


def _known_names(data: Any) -> tuple[str, ...]:
    if isinstance(data, torch.utils.data.Subset):
        return _known_names(data.dataset)
    names = getattr(data, "classes", ())
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else ()


def open_mnist(folder: Path, name: str, train: bool = False) -> Listing:
    split = "train" if train else "test"
    digits = mnist(folder, train=train)
    keys = tuple(f"{split}/{i}" for i in range(len(digits)))
    labels = tuple(str(int(digit)) for digit in digits.targets)
    source = Items(name, digits)
    return Listing(name, source, keys, labels, "digit", (0,) * len(keys), classes=10)


def mnist(folder: Path, *, train: bool) -> Any:
    """Return torchvision's data set of MNIST's training or test digits.

    Raises:
        ImageError: when it is not there; says how to fetch it.
    """
    datasets = importlib.import_module("torchvision.datasets")
    try:
        return datasets.MNIST(str(folder), train=train, download=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split("You can")[0].split()) or type(error).__name__
        raise ImageError(
            f"no MNIST can be read in {str(folder)!r} ({reason}); expected the four files "
            "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte there: fetch them with "
            f"torchvision.datasets.MNIST({str(folder)!r}, download=True)"
        ) from error
