"""Read the names of classes from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afmi.errors import ModelError, first_line

__all__ = ["read_labels"]


def read_labels(labels: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names given, or those in a file: one per line, or JSON.

    Raises:
        ModelError: the file cannot be read, or its JSON is no list of names.
    """
    if not isinstance(labels, (str, os.PathLike)):
        return tuple(str(label) for label in labels)
    path = Path(labels).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the labels {str(path)!r} cannot be read ({first_line(error)}); "
            "expected a text file with one label per line, or JSON"
        ) from error
    if text.lstrip()[:1] not in ("[", "{"):
        return tuple(line.strip() for line in text.rstrip().splitlines())
    try:
        return _json_labels(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the labels {str(path)!r} are no JSON list of names, nor an object from each index, "
            f"0 to the last, to its name ({first_line(error)})"
        ) from error


def _json_labels(data: Any) -> tuple[str, ...]:
    if isinstance(data, dict) and "id2label" in data:  # a Hugging Face config.json
        data = data["id2label"]
    if isinstance(data, dict) and all(type(value) is int for value in data.values()):
        data = {index: label for label, index in data.items()}
    if isinstance(data, dict):
        by_index = {int(index): label for index, label in data.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("indices are missing")
        data = [by_index[index] for index in range(len(by_index))]
    # ImageNet's usual file gives [WordNet id, name] for each class.
    names = [entry[-1] if isinstance(entry, list) else entry for entry in data]
    if not names or not all(isinstance(entry, str) for entry in names):
        raise ValueError("not every name is text")
    return tuple(names)
