"""What opening a source of labelled pictures gives: a listing, whose classes are still names."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from afmi.data.fields import Fields, label_of
from afmi.errors import AfmiError, ImageError, SourceError, one_line
from afmi.files import file_size

__all__ = ["ADVICE", "Files", "Items", "Listing", "Source", "changed", "listed"]

ADVICE = (
    "see that each machine reads the same files under the same path, or give a URL; what was "
    "finished is kept: the same command resumes"
)
"""What to do where data are not those that were listed."""

_MOST_LISTED = 5
"""Parts that an error names."""


class Source(Protocol):
    """Where pictures come from; a key is what the source calls one of them."""

    def where(self, key: str) -> str:
        """Return what errors call the picture."""
        ...

    def picture(self, key: str) -> Any:
        """Return the picture: a PIL image, a tensor, or what `read_image` takes."""
        ...


@dataclass(frozen=True)
class Files:
    """Pictures in files; a key is a path relative to the root, or an absolute one."""

    root: Path

    def where(self, key: str) -> str:
        return repr(str(self.root / key))

    def picture(self, key: str) -> Any:
        return self.root / key  # read in the channels that the model takes

    def size(self, key: str) -> int:
        """Return the bytes of a file; -1: there is none."""
        return file_size(self.root / key)


@dataclass(frozen=True)
class Items:
    """Pictures of a data set; a key ends in the position."""

    name: str
    items: Any
    fields: Fields

    def where(self, key: str) -> str:
        return f"{key} of {self.name}"

    def picture(self, key: str) -> Any:
        item = self._item(key)
        try:
            return self.fields.picture(item, self.name)
        except ImageError as error:
            raise self._unreadable(key, error) from error

    def label(self, key: str) -> str | int:
        return self.fields.label_value(self._item(key), self.name)

    def label_of(self, label: Any) -> str | int:
        return label_of(label, f"the {self.name}")

    def _item(self, key: str) -> Any:
        try:
            return self.items[int(key.rpartition("/")[2])]
        except Exception as error:  # a data set may raise whatever it likes
            raise self._unreadable(key, error) from error

    def _unreadable(self, key: str, error: Exception) -> AfmiError:
        return ImageError(f"{self.where(key)} cannot be read: {one_line(error)}")


@dataclass(frozen=True)
class Listing:
    """Pictures whose classes are given by name, not yet by the model's indices.

    Attributes:
        name: what was opened.
        source: where the pictures come from.
        keys: one per picture.
        labels: of each picture the class's name, or its index as an int; None where the picture
            cannot be read, and so not its label either.
        noun: what the labels are, for messages.
        sizes: bytes of each file.
        classes: how many classes the model must have. None: any number.
        class_names: a data set's names for its classes, in the order of its indices.
        by_name: whether these names are sought among the model's labels, so that the order may be
            another one.
    """

    name: str
    source: Source
    keys: tuple[str, ...]
    labels: tuple[str | int | None, ...]
    noun: str
    sizes: tuple[int, ...]
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    by_name: bool = False


def listed(parts: Iterable[str]) -> str:
    """Return the first few parts, and how many more there are."""
    parts = list(parts)
    more = f" and {len(parts) - _MOST_LISTED} more" if len(parts) > _MOST_LISTED else ""
    return ", ".join(parts[:_MOST_LISTED]) + more


def changed(where: str, then: int, now: int) -> SourceError:
    """Return the error that a file is not the one that was listed.

    Args:
        where: what the file is called.
        then: its bytes when it was listed; -1: it was missing.
        now: its bytes; -1: it is missing.
    """
    here = "is missing" if now < 0 else f"has {now} bytes"
    before = "was missing" if then < 0 else f"had {then} bytes"
    return SourceError(
        f"{where} {here} on {platform.node()}, but {before} when the data were listed; {ADVICE}"
    )
