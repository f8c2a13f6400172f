"""Pictures without labels, for what is explained whatever a picture shows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from afmi.data.fields import Fields
from afmi.data.listing import Files, Items, Listing
from afmi.data.parquet import PARQUET, parquet_columns
from afmi.data.remote import open_remote
from afmi.data.tars import is_tar, local_tars, open_tars
from afmi.errors import ImageError, UsageError, first_line
from afmi.files import regular_file_size
from afmi.pictures.finding import find_images
from afmi.stores import is_remote

__all__ = ["UNLABELLED", "Unlabelled", "may_lack_labels", "open_unlabelled", "picture_of"]

UNLABELLED = -2
"""The label of a picture that needs none."""


@dataclass(frozen=True)
class Unlabelled(Items):
    """Pictures of a data set, by themselves, first in a tuple, or under their name in a mapping."""

    def picture(self, key: str) -> Any:
        return picture_of(self._item(key), self.fields, f"the items of {self.name}")


def picture_of(item: Any, fields: Fields, where: str) -> Any:
    """Return the picture of an item: itself, the first in a tuple, or its part of a mapping."""
    if isinstance(item, Mapping):
        return fields.picture(item, where)
    return item[0] if isinstance(item, (tuple, list)) else item


def may_lack_labels(data: Any) -> bool:
    """Tell whether an evaluation opens such data without labels, where it needs none."""
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        named = text.partition(":")[0].lower() in ("mnist", "mnist-train", "imagenet")
        return not (named or is_remote(text) or is_tar(text))
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def open_unlabelled(data: Any, image_key: str | None = None) -> Listing:
    """List pictures, whose labels are None.

    Args:
        data: a folder with pictures at any depth, a glob, a CSV or Parquet file with the column
            ``image``, tar files, a folder behind a URL, or a data set.
        image_key: what the picture is called in items that are mappings, or the column, or the
            suffix; None: the usual name.

    Raises:
        ImageError: there are no pictures.
        UsageError: the list or the kind of data cannot be used.
    """
    if not isinstance(data, (str, os.PathLike)):
        return _in_items(data, image_key)
    text = os.fspath(data)
    if is_remote(text):
        opened = open_remote(text, Fields(image_key), labelled=False)
        if isinstance(opened, Listing):
            return opened
        raise UsageError(
            f"the samples of {opened.name!r} come one after the other, and none can be had by its "
            "position; copy the files to a disk"
        )
    if is_tar(text) and not Path(text).is_dir():
        return open_tars(local_tars(text), text, Fields(image_key), labelled=False)
    return _in_files(text, image_key)


def _in_files(text: str, image_key: str | None) -> Listing:
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".txt", *PARQUET):
        root = path.parent
        listed = _in_parquet if path.suffix.lower() in PARQUET else _in_csv
        keys = [PurePath(key).as_posix() for key in listed(path, text, image_key or "image")]
    else:
        found = find_images(path)
        root = path if path.is_dir() else Path(os.path.commonpath([one.parent for one in found]))
        absolute = (Path(os.path.abspath(one)) for one in found)
        keys = [one.relative_to(root).as_posix() for one in absolute]
    source = Files(root)
    sizes = tuple(map(source.size, keys))
    return Listing(text, source, tuple(keys), (None,) * len(keys), "label", sizes)


def _in_parquet(path: Path, name: str, wanted: str) -> list[str]:
    (keys,) = parquet_columns(path, name, [wanted])
    if not keys or not all(keys):
        raise UsageError(f"expected a path in each row of the column {wanted!r} of {name!r}")
    return keys


def _in_csv(path: Path, name: str, wanted: str) -> list[str]:
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
    return keys


def _in_items(data: Any, image_key: str | None) -> Listing:
    takes_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not takes_items or isinstance(data, (Mapping, bytes)):
        raise UsageError(
            f"expected a folder, a CSV file or a data set with a length, got {type(data).__name__}"
        )
    name, count = type(data).__name__, len(data)
    if not count:
        raise ImageError(f"the {name} has no items; expected pictures")
    source = Unlabelled(name, data, Fields(image_key))
    keys = tuple(f"item/{i}" for i in range(count))
    return Listing(name, source, keys, (None,) * count, "label", (0,) * count)
