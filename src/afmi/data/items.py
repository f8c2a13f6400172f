"""Labelled pictures that are items of a data set: PyTorch's, Hugging Face's, MNIST, any list."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from afmi.data.fields import Fields
from afmi.data.listing import Items, Listing
from afmi.errors import ImageError
from afmi.network.labels import class_index

__all__ = ["feature_names", "mnist", "open_items", "open_mnist"]


def open_items(data: Any, fields: Fields) -> Listing:
    name = type(data).__name__
    if len(data) < 1:
        raise ImageError(f"the {name} has no items; expected pairs of picture and class index")
    source = Items(name, data, fields)
    keys = tuple(f"item/{i}" for i in range(len(data)))
    sizes = (0,) * len(keys)
    if hasattr(data, "column_names"):
        column = fields.label_in(data.column_names, f"the {name}")
        labels = [source.label_of(label) for label in data[column]]
        names = feature_names(data, column)
        return Listing(
            *(name, source, keys, tuple(labels), "label", sizes), class_names=names, by_name=True
        )
    labels = _known_targets(data)
    place, first = _first_label(source, keys)
    if labels is None or labels[place] != first:  # the items carry other labels
        labels = [_label(source, key) for key in keys]
        names = ()
    else:
        names = _known_names(data)
    return Listing(name, source, keys, tuple(labels), "label", sizes, class_names=names)


def _first_label(source: Items, keys: Sequence[str]) -> tuple[int, str | int]:
    """Return the first label that can be read, and whose it is."""
    reason: ImageError | None = None
    for place, key in enumerate(keys):
        try:
            return place, source.label(key)
        except ImageError as error:
            reason = reason or error
    raise reason or ImageError(f"the {source.name} has no items")


def _label(source: Items, key: str) -> str | int | None:
    """Return a label; None where the item cannot be read, as its row will say."""
    try:
        return source.label(key)
    except ImageError:
        return None


def feature_names(data: Any, column: str | None) -> tuple[str, ...]:
    """Return the names that a data set of Hugging Face has for the classes of a column."""
    features = getattr(data, "features", None)
    feature = features.get(column) if isinstance(features, Mapping) and column else None
    return tuple(getattr(feature, "names", ()))


def _known_targets(data: Any) -> list[int] | None:
    """Return the labels that a data set knows without reading its pictures, or None."""
    if isinstance(data, torch.utils.data.Subset):
        inner = _known_targets(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    targets = getattr(data, "targets", None)
    if getattr(data, "target_transform", None) is not None or targets is None:
        return None
    try:
        indices = [class_index(target) for target in targets]
    except TypeError:
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
    source = Items(name, digits, Fields())
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
