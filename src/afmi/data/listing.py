"""What opening a source of labelled pictures gives: a listing, whose classes are still names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afmi.errors import ImageError, UsageError

__all__ = ["Files", "Items", "Listing", "listed"]

_MOST_LISTED = 5
"""Parts that an error names."""


@dataclass(frozen=True)
class Files:
    """Pictures in files; a key is a path relative to the root, or an absolute one."""

    root: Path

    def where(self, key: str) -> str:
        return repr(str(self.root / key))

    def picture(self, key: str) -> Any:
        return self.root / key  # read in the channels that the model takes


@dataclass(frozen=True)
class Items:
    """Pictures of a data set; a key ends in the position."""

    name: str
    items: Any

    def where(self, key: str) -> str:
        return f"{key} of {self.name}"

    def picture(self, key: str) -> Any:
        return self.pair(key)[0]

    def pair(self, key: str) -> Sequence[Any]:
        try:
            item = self.items[int(key.rpartition("/")[2])]
        except Exception as error:  # a data set may raise whatever it likes
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ImageError(f"{self.where(key)} cannot be read: {reason}") from error
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UsageError(
                f"expected pairs of picture and class index in {self.name}, got "
                f"{type(item).__name__}; wrap it so that its items are such pairs"
            )
        return item


@dataclass(frozen=True)
class Listing:
    """Pictures whose classes are given by name, not yet by the model's indices.

    Attributes:
        name: what was opened.
        source: where the pictures come from.
        keys: one per picture.
        labels: of each picture the class's name, or its index as an int.
        noun: what the labels are, for messages.
        sizes: bytes of each file.
        classes: how many classes the model must have. None: any number.
        class_names: a data set's names for its classes, in the order of its indices.
    """

    name: str
    source: Files | Items
    keys: tuple[str, ...]
    labels: tuple[str | int, ...]
    noun: str
    sizes: tuple[int, ...]
    classes: int | None = None
    class_names: tuple[str, ...] = ()


def listed(parts: Iterable[str]) -> str:
    """Return the first few parts, and how many more there are."""
    parts = list(parts)
    more = f" and {len(parts) - _MOST_LISTED} more" if len(parts) > _MOST_LISTED else ""
    return ", ".join(parts[:_MOST_LISTED]) + more
