"""Read the names of classes: a list, a dictionary, or a file of either."""

from __future__ import annotations

import importlib
import operator
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from afmi.errors import ModelError, first_line
from afmi.files import parse_json, read_text_file

__all__ = ["Labels", "class_index", "imagenet_labels", "is_truth_value", "read_labels"]

Labels: TypeAlias = Iterable[str] | Mapping[Any, Any] | str | os.PathLike[str]
"""What `read_labels` takes."""

_EXPECTED = (
    "expected a list with one name for each class, in the order of the logits, or a dictionary "
    "from each index, 0 to the last, to its name"
)


def is_truth_value(value: object) -> bool:
    """Tell whether this is True or False, of Python or of a tensor or an array."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def class_index(value: Any) -> int:
    """Return a class's index as Python's number, whatever kind of whole number it is.

    Raises:
        TypeError: it is no whole number, or a truth value, which Python counts as 0 or 1.
    """
    if is_truth_value(value):
        raise TypeError(f"a truth value is no class, got {value!r}")
    try:
        return operator.index(value)
    except (ValueError, RuntimeError) as error:  # of tensors
        raise TypeError(first_line(error)) from error


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return what torchvision calls the thousand classes of ImageNet, in their usual order."""
    zoo = importlib.import_module("torchvision.models")  # which takes seconds
    return tuple(zoo.get_model_weights("resnet50").DEFAULT.meta["categories"])


def read_labels(labels: Labels) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the logits.

    Args:
        labels: a list of names; a dictionary from each index to its name, or from each name to its
            index; or the name of a file of such: one name per line, or JSON.

    Raises:
        ModelError: these are no names, their order is not known, or the file cannot be read.
    """
    if isinstance(labels, (str, os.PathLike)):
        return _labels_in_file(Path(labels).expanduser())
    try:
        return _names(labels)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{_EXPECTED}; got labels of type {type(labels).__name__} ({first_line(error)})"
        ) from error


def _labels_in_file(path: Path) -> tuple[str, ...]:
    try:
        text = read_text_file(path)
    except (OSError, ValueError) as error:  # ValueError: no text, or a null byte in the path
        why = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(
            f"the labels {str(path)!r} cannot be read ({why}); expected a text file with one label "
            "per line, or JSON (labels themselves are passed as a list)"
        ) from error
    if text.lstrip()[:1] not in ("[", "{"):
        return tuple(line.strip() for line in text.rstrip().splitlines())
    try:
        names = _names(parse_json(text))
        if not names:
            raise ValueError("it is empty")
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the labels {str(path)!r} are no JSON list of names, nor an object from each index, "
            f"0 to the last, to its name ({first_line(error)})"
        ) from error
    return names


def _names(labels: Any) -> tuple[str, ...]:
    if isinstance(labels, Mapping):
        labels = _in_order(labels)
    if isinstance(labels, (set, frozenset)):
        raise TypeError("a set has no order")
    # ImageNet's usual file gives [WordNet id, name] for each class.
    names = [entry[-1] if isinstance(entry, (list, tuple)) else entry for entry in labels]
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise TypeError(f"not every name is text, such as {strange[0]!r}")
    return tuple(str(name) for name in names)


def _in_order(labels: Mapping[Any, Any]) -> list[Any]:
    if "id2label" in labels:  # a Hugging Face config.json
        labels = labels["id2label"]
    if all(type(value) is int for value in labels.values()):
        by_index = {value: label for label, value in labels.items()}
        if len(by_index) < len(labels):
            raise ValueError("an index comes twice")
    else:
        by_index = {int(index): label for index, label in labels.items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError("indices are missing")
    return [by_index[index] for index in range(len(by_index))]
