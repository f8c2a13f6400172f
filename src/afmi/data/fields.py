"""Which part of an item is the picture, and which its label: items are pairs or mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from afmi.errors import ImageError, TargetError, UsageError
from afmi.files import parse_json
from afmi.network.labels import class_index
from afmi.pictures import images

__all__ = ["ENCODED", "IMAGE_FIELDS", "LABEL_FIELDS", "Fields", "label_of"]

ENCODED = ("jpg", "jpeg", "png", "webp")
"""Suffixes of the pictures in WebDataset's samples."""

IMAGE_FIELDS = ("image", "img", "pixel_values", "inputs", *ENCODED)
"""Names of the picture in an item that is a mapping."""

LABEL_FIELDS = ("label", "labels", "target", "cls")
"""Names of the label in an item that is a mapping."""


@dataclass(frozen=True)
class Fields:
    """What picture and label are called in items that are mappings.

    Attributes:
        image: the picture's name; None: the one of `IMAGE_FIELDS` that is there.
        label: the label's; None: the one of `LABEL_FIELDS`, or else one of them in ``json``, as
            in WebDataset's samples.
    """

    image: str | None = None
    label: str | None = None

    def refuse(self, where: str) -> None:
        """Raise a `UsageError` where names are given to data that have none."""
        if (self.image, self.label) != (None, None):
            raise UsageError(
                "image_key and label_key are for items that are mappings, tar files and CSV files, "
                f"but {where} has no such names; leave them out"
            )

    def image_in(self, names: Iterable[str], where: str) -> str:
        """Return which of these names is the picture's.

        Raises:
            UsageError: none is, or several are.
        """
        return _only(self.image, IMAGE_FIELDS, list(names), "image", where)

    def label_in(self, names: Iterable[str], where: str) -> str:
        """Return which of these names is the label's.

        Raises:
            UsageError: none is, or several are.
        """
        return _only(self.label, LABEL_FIELDS, list(names), "label", where)

    def picture(self, item: Any, where: str) -> Any:
        """Return the picture of an item.

        Raises:
            UsageError: the item is neither a pair nor such a mapping.
        """
        if isinstance(item, Mapping):
            return _decodable(_part(item, self.image_in(item, where)))
        return _decodable(self._pair(item, where)[0])

    def label_value(self, item: Any, where: str) -> str | int:
        """Return the label of an item: an index, or a name.

        Raises:
            UsageError: as `picture`.
            TargetError: the label is neither a whole number nor text.
        """
        if not isinstance(item, Mapping):
            return label_of(self._pair(item, where)[1], where)
        if "json" in item and not any(name in item for name in self._label_names):
            item = _json(_part(item, "json"), where)
        return label_of(_part(item, self.label_in(item, where)), where)

    @property
    def _label_names(self) -> tuple[str, ...]:
        return LABEL_FIELDS if self.label is None else (self.label,)

    def _pair(self, item: Any, where: str) -> Any:
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UsageError(
                f"expected pairs of picture and label, or mappings that hold both, in {where}, got "
                f"{type(item).__name__}; wrap the data so that its items are such"
            )
        self.refuse(where)
        return item


def _part(item: Mapping[str, Any], name: str) -> Any:
    """Return a part of an item; one that could not be read is the error that says why."""
    if isinstance(item[name], Exception):
        raise item[name]
    return item[name]


def _only(
    named: str | None, usual: tuple[str, ...], names: list[str], what: str, where: str
) -> str:
    """Return the one name of a part among these."""
    choices = [name for name in names if name == named or (named is None and name in usual)]
    if len(choices) == 1:
        return choices[0]
    listed = ", ".join(repr(str(name)) for name in names)[:200] or "nothing"
    if not choices:
        expected = repr(named) if named is not None else "one of " + ", ".join(usual)
        raise UsageError(
            f"expected {expected} as the {what} in {where}, got {listed}; name it with "
            f"{what}_key= (--{what}-key)"
        )
    raise UsageError(
        f"{where} has several that may be the {what}: {', '.join(map(repr, choices))}; choose one "
        f"with {what}_key= (--{what}-key)"
    )


def _json(value: Any, where: str) -> Mapping[str, Any]:
    """Return the object in the JSON of a sample."""
    if isinstance(value, (bytes, str)):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise TargetError(f"the JSON of {where} cannot be read: {error}") from error
    if not isinstance(value, Mapping):
        raise TargetError(f"expected an object in the JSON of {where}, got {type(value).__name__}")
    return value


def _decodable(picture: Any) -> Any:
    """Return a picture without what wraps it: an undecoded one of Hugging Face, an open file."""
    if isinstance(picture, Mapping):
        known = {"bytes", "path"} <= set(picture)
        return _decodable(picture["bytes"] or picture["path"]) if known else picture
    if hasattr(picture, "read"):
        return picture.read(images.MAX_BYTES + 1)
    if picture is None:
        raise ImageError("it has no picture")
    return picture


def label_of(label: Any, where: str) -> str | int:
    """Return a label as an index or a name.

    Raises:
        TargetError: it is neither a whole number nor text.
    """
    if isinstance(label, (bytes, bytearray)):
        label = bytes(label).decode("utf-8", "replace")
    if isinstance(label, str):
        return label.strip()
    try:
        return class_index(label)
    except TypeError:
        raise TargetError(
            f"expected class indices or names as labels in {where}, got {type(label).__name__} "
            f"{' '.join(str(label).split())[:80]!r}; turn them into whole numbers from 0"
        ) from None
