"""Pictures without labels, for what is explained whatever a picture shows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from afmi.data.fields import Fields
from afmi.data.listing import Files, Items
from afmi.data.tars import is_tar
from afmi.errors import ImageError, UsageError, first_line
from afmi.files import regular_file_size
from afmi.pictures.finding import find_images
from afmi.stores import is_remote

__all__ = ["UNLABELLED", "Unlabelled", "may_lack_labels", "open_unlabelled"]

UNLABELLED = -2
"""The label of a picture that needs none."""


@dataclass(frozen=True)
class Unlabelled(Items):
    """Pictures of a data set, by themselves, first in a tuple, or under their name in a mapping."""

    def picture(self, key: str) -> Any:
        item = self._item(key)
        if isinstance(item, Mapping):
            return item[self.fields.image_in(item, f"the items of {self.name}")]
        return item[0] if isinstance(item, (tuple, list)) else item


def may_lack_labels(data: Any) -> bool:
    """Tell whether `open_unlabelled` takes such data; others are read with their labels."""
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        named = text.partition(":")[0].lower() in ("mnist", "mnist-train", "imagenet")
        return not (named or is_remote(text) or is_tar(text))
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def open_unlabelled(
    data: Any, limit: int | None = None, image_key: str | None = None
) -> tuple[str, Files | Items, list[str], list[int]]:
    """Find pictures: name, source, keys and the sizes of their files, in bytes.

    Args:
        data: a folder with pictures at any depth, a glob, a CSV file with the column ``image``, or
            a data set.
        limit: take this many, evenly spread.
        image_key: what the picture is called in items that are mappings, or the column; None: the
            usual name.

    Raises:
        ImageError: there are no pictures.
        UsageError: the CSV file or the kind of data cannot be used.
    """
    if isinstance(data, (str, os.PathLike)):
        name, source, keys = _in_files(os.fspath(data), image_key)
    else:
        name, source, keys = _in_items(data, image_key)
    if limit is not None and limit < len(keys):
        keys = [keys[i * len(keys) // limit] for i in range(limit)]
        name += f", {limit} pictures"
    sizes = [_size(source.root / key) if isinstance(source, Files) else 0 for key in keys]
    return name, source, keys, sizes


def _in_files(text: str, image_key: str | None) -> tuple[str, Files, list[str]]:
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return text, Files(path.parent), _listed_in(path, text, image_key or "image")
    found = find_images(path)
    root = path if path.is_dir() else Path(os.path.commonpath([one.parent for one in found]))
    absolute = (Path(os.path.abspath(one)) for one in found)
    return text, Files(root), [one.relative_to(root).as_posix() for one in absolute]


def _listed_in(path: Path, name: str, wanted: str) -> list[str]:
    try:
        regular_file_size(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = next((sign for sign in ",;\t" if sign in first), ",")
            rows = list(csv.DictReader(file, delimiter=separator, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{name!r} cannot be read as a CSV file ({first_line(error)}); expected text in UTF-8 "
            "with the column image"
        ) from error
    columns = rows[0] if rows else {}
    column = next((key for key in columns if str(key).strip().casefold() == wanted.casefold()), "")
    keys = [str(row[column] or "").strip() for row in rows if column]
    if not keys or not all(keys):
        raise UsageError(
            f"expected the column {wanted!r} with a path in each line of {name!r}; add it"
        )
    return [PurePath(key).as_posix() for key in keys]


def _in_items(data: Any, image_key: str | None) -> tuple[str, Items, list[str]]:
    takes_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not takes_items or isinstance(data, (Mapping, bytes)):
        raise UsageError(
            f"expected a folder, a CSV file or a data set with a length, got {type(data).__name__}"
        )
    name = type(data).__name__
    if not len(data):
        raise ImageError(f"the {name} has no items; expected pictures")
    return name, Unlabelled(name, data, Fields(image_key)), [f"item/{i}" for i in range(len(data))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return -1
