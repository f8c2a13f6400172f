"""Pictures that come one after the other, and are neither counted nor held before."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from afmi.data.classes import Classes
from afmi.data.fields import Fields
from afmi.data.items import feature_names
from afmi.data.labelled import (
    NO_CLASS,
    LabelledImages,
    check_limit,
    check_model,
    labelled_images,
    open_images,
    unlabelled_images,
)
from afmi.data.listing import Listing
from afmi.data.preparing import named_error, prepared
from afmi.data.remote import RemoteTars, open_remote
from afmi.data.tars import Sample
from afmi.data.unlabelled import UNLABELLED, picture_of
from afmi.errors import AfmiError, ImageError, SourceError, TargetError, UsageError, one_line
from afmi.network.classifier import classifier_of, classify, input_channels, labels_of
from afmi.network.memory import check_memory
from afmi.pictures.images import read_by, read_content
from afmi.stores import is_remote

__all__ = ["ImageStream", "Window", "open_data", "picture_digest"]

_UNREAD = "unread"
"""Stands for the digest of a picture that cannot be read."""
_MOST_FAILURES = 64
"""Items in a row that raise: an iterable that does nothing else would never end."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Window:
    """A run of pictures of the data: all of a listing, or a few of a stream, ready in memory.

    Attributes:
        start: the number of the first.
        images: the pictures.
        last: whether the data end with them.
    """

    start: int
    images: LabelledImages
    last: bool

    @property
    def size(self) -> int:
        """Bytes that a stream's pictures take in memory, about."""
        assert isinstance(self.images.source, _Held)
        return sum(_size(picture) for picture in self.images.source.pictures.values())

    def part(self, start: int, stop: int) -> LabelledImages:
        """Return some of a stream's pictures, to be sent to workers, which have the network.

        Args:
            start: the number of the first in the data.
            stop: of the one after the last.
        """
        held, here = self.images, slice(start - self.start, stop - self.start)
        assert isinstance(held.source, _Held)
        keys = held.keys[here]
        return replace(
            held,
            model=nn.Identity(),
            keys=keys,
            labels=held.labels[here],
            sizes=held.sizes[here],
            source=replace(held.source, pictures={key: held.source.pictures[key] for key in keys}),
        )


@dataclass(frozen=True)
class _Item:
    """A picture with its label as they come, or why there is none."""

    key: str
    where: str
    picture: Any
    label: str | int | Exception


@dataclass(frozen=True)
class _Held:
    """Pictures by their keys; errors stand for those that cannot be used.

    Attributes:
        pictures: by key.
        prepared: whether they are so already, (1, C, H, W).
    """

    pictures: Mapping[str, Any]
    prepared: bool

    def where(self, key: str) -> str:
        return key

    def picture(self, key: str) -> Any:
        picture = self.pictures[key]
        if isinstance(picture, Exception):
            raise picture
        return picture[0] if self.prepared else picture


class ImageStream:
    """Pictures that are read once, from first to last, a window at a time.

    A key ends in a digest of the picture, so data that come in another order, or hold other
    pictures, have other keys. It holds one window of prepared pictures at a time; without labels
    they are as they came, and are prepared when they are read. A path is read at once, so that the
    digest is the file's, and workers need none.

    Args:
        name: what was opened, for reports.
        data: gives the items.
        model: what the pictures are prepared for.
        fields: which parts of an item are picture and label.
        limit: how many of the items, the first ones, are taken; None: all.
        window: pictures that are ready at once.
        labelled: False: labels are not needed and not read, and pictures may come by themselves.

    Attributes:
        fingerprint: hex digest of the first picture's key and label: what is known of the data
            before they are read.

    Raises:
        ImageError: there are no items, or no picture of the first window can be read.
        TargetError: no label of the first window is a class of the model.
        SourceError: files that paths name are lost.
        MemoryError: memory ran out.
        UsageError: the first item is no picture with a label.
        ShapeError: the first picture is no fit for the model.
    """

    def __init__(
        self,
        name: str,
        data: Iterable[Any],
        model: nn.Module,
        *,
        fields: Fields,
        limit: int | None,
        window: int,
        labelled: bool = True,
    ) -> None:
        self.name = name
        self._labelled = labelled
        self.limit = limit
        self._model = model
        self._fields = fields
        self._window = window
        self._keys: set[str] = set()
        self._last_path: Path | None = None
        names = feature_names(data, _label_column(data, fields)) if labelled else ()
        self._items = itertools.starmap(
            self._item, enumerate(itertools.islice(_raw(data, name), limit))
        )
        taken = list(itertools.islice(self._items, window))
        if not taken:
            raise ImageError(
                f"{name} has no items; expected pictures{' with labels' if labelled else ''}"
            )
        if labelled:
            labels = labels_of(model)
            self._classes = Classes(labels, len(labels) or self._count_classes(taken))
            self._of_names = self._classes.of_names(names)
        self._first = self._images(taken)
        if set(self._first.labels) == {NO_CLASS}:
            self._first.read(0)  # which raises
        first = repr((self._first.keys[0], self._first.labels[0]))
        self.fingerprint = hashlib.blake2b(first.encode(), digest_size=16).hexdigest()

    @property
    def begin(self) -> LabelledImages:
        """The pictures of the first window."""
        return self._first

    @property
    def has_tensors(self) -> bool:
        """Whether a picture of the first window came as a tensor, which keeps its size."""
        source = self._first.source
        assert isinstance(source, _Held)
        return any(isinstance(picture, Tensor) for picture in source.pictures.values())

    @property
    def labels(self) -> tuple[int, ...]:
        """Classes of the pictures of the first window."""
        return self._first.labels

    def first(self) -> Tensor:
        """Return the first picture of the first window that can be read, (1, C, H, W).

        Raises:
            AfmiError: none can.
        """
        return self._first.first()

    def windows(self) -> Iterator[Window]:
        """Yield the data a window at a time; they are read on meanwhile, so this works once.

        Raises:
            SourceError: the data end in an error, so that these are not all, or files that paths
                name are lost.
            MemoryError: memory ran out.
        """
        window = Window(0, self._first, last=False)
        self._first = window.part(0, 0)  # its pictures are let go with the window
        while following := list(itertools.islice(self._items, 1)):
            start = window.start + len(window.images)
            yield window
            del window
            items = [*following, *itertools.islice(self._items, self._window - 1)]
            window = Window(start, self._images(items), last=False)
            del items
        yield replace(window, last=True)

    def _item(self, position: int, item: Any) -> _Item:
        key, parts = f"item/{position}", item
        if isinstance(item, Sample):
            key, parts = item.key, item.parts
            self._enter(key)
        where = f"{key} of {self.name}"
        if not self._labelled:
            return self._unlabelled(position, key, parts, where)
        label = _result(lambda: self._fields.label_value(_unless_failed(parts), where))
        raw = _result(lambda: self._content(self._fields.picture(_unless_failed(parts), where)))
        picture = raw if _failed(raw) else _result(lambda: prepared(self._model, raw))
        if position == 0:
            _check_first(label, picture)
        if isinstance(picture, Exception):
            picture = named_error(picture, where)
        if isinstance(label, Exception):
            label = TargetError(f"{where} has no label that can be used: {one_line(label)}")
        return _Item(f"{key}@{picture_digest(raw)}", where, picture, label)

    def _unlabelled(self, position: int, key: str, parts: Any, where: str) -> _Item:
        picture = _result(
            lambda: _held(self._content(picture_of(_unless_failed(parts), self._fields, where)))
        )
        if position == 0:
            _check_first(picture, _result(lambda: _prepared(self._model, picture)))
        if isinstance(picture, Exception):
            picture = named_error(picture, where)
        return _Item(f"{key}@{picture_digest(picture)}", where, picture, UNLABELLED)

    def _content(self, picture: Any) -> Any:
        """Return what a path names; other pictures as they are.

        Raises:
            ImageError: that cannot be read.
            SourceError: nor can the last one that could, so that the files are lost.
        """
        if not isinstance(picture, (str, os.PathLike)):
            return picture
        path = Path(picture)
        try:
            content = self._read_path(path)
        except Exception as error:
            check_memory(error)
            self._check_last(error)
            raise
        self._last_path = path
        return content

    def _read_path(self, path: Path) -> Any:
        classifier = classifier_of(self._model)
        if classifier is None or classifier.reader is None:
            return read_content(path)
        return read_by(classifier.reader, path, input_channels(self._model))

    def _check_last(self, failure: Exception) -> None:
        if self._last_path is None:
            return
        try:
            self._read_path(self._last_path)
        except Exception as error:
            check_memory(error)
            raise SourceError(
                f"{platform.node()} can read neither a picture of {self.name} "
                f"({one_line(failure)}) nor any more the last one before it ({one_line(error)}); "
                "see that the files are there; what was finished is kept: the same command resumes"
            ) from error

    def _enter(self, key: str) -> None:
        if key in self._keys:
            raise UsageError(
                f"expected each picture once in {self.name}, but {key!r} comes several times; "
                "leave all but one out"
            )
        self._keys.add(key)

    def _images(self, items: list[_Item]) -> LabelledImages:
        pictures: dict[str, Any] = {}
        labels: list[int] = []
        for item in items:
            label = self._class_of(item)
            unusable = isinstance(label, Exception)
            # A picture of no known class is measured as little as one that cannot be read.
            pictures[item.key] = label if unusable else item.picture
            labels.append(NO_CLASS if unusable else label)
        return LabelledImages(
            *(self.name, tuple(pictures), tuple(labels), (0,) * len(labels)),
            model=self._model,
            source=_Held(pictures, prepared=self._labelled),
        )

    def _class_of(self, item: _Item) -> int | Exception:
        label = item.label
        if isinstance(label, Exception) or not self._labelled:
            return label  # type: ignore[return-value]
        wanted = label
        if isinstance(label, int) and 0 <= label < len(self._of_names):
            wanted = self._of_names[label]
        try:
            return self._classes.find(wanted)
        except TargetError as error:
            return TargetError(
                f"{item.where} has the label {wanted!r}, which is none of the model's "
                f"{self._classes.count} classes: {error}"
            )

    def _count_classes(self, items: list[_Item]) -> int:
        """Return how many classes a model without labels has, by one forward pass."""
        for item in items:
            if isinstance(item.picture, Tensor):
                return classify(self._model, item.picture).shape[1]
        raise ImageError(
            f"none of the first {len(items)} pictures of {self.name} is fit: {items[0].picture}"
        )


def open_data(
    data: Any,
    model: nn.Module,
    *,
    limit: int | None,
    image_key: str | None = None,
    label_key: str | None = None,
    window: int,
    labelled: bool = True,
) -> LabelledImages | ImageStream:
    """Find pictures of any kind: those that can be listed, and those that only come.

    Args:
        data: see `afmi.evaluate`.
        model: see `open_images`.
        limit: take this many pictures only; of a stream the first.
        image_key: see `open_images`.
        label_key: see `open_images`.
        window: pictures of a stream that are ready at once.
        labelled: see `open_images`.

    Raises:
        AfmiError: see `open_images` and `ImageStream`.
    """
    fields = Fields(image_key, label_key)
    opened = data
    if isinstance(data, (str, os.PathLike)) and is_remote(os.fspath(data)):
        opened = open_remote(os.fspath(data), fields, labelled=labelled)
    elif not _is_iterable_only(data):
        keys = {"image_key": image_key, "label_key": label_key}
        return open_images(data, model, limit=limit, labelled=labelled, **keys)
    check_limit(limit)
    check_model(model)
    if isinstance(opened, Listing):
        return (labelled_images if labelled else unlabelled_images)(opened, model, limit)
    name = opened.name if isinstance(opened, RemoteTars) else type(data).__name__
    settings: dict[str, Any] = {"limit": limit, "window": window, "labelled": labelled}
    return ImageStream(name, opened, model, fields=fields, **settings)


def _is_iterable_only(data: Any) -> bool:
    """Tell whether data give one item after the other, but none by its position."""
    if isinstance(data, torch.utils.data.DataLoader):
        raise UsageError(
            "expected a data set, got a DataLoader, which gives batches; pass its dataset, and "
            "the number of pictures at once as batch_size="
        )
    if isinstance(data, (str, bytes, os.PathLike, Mapping, Tensor)):
        return False
    if isinstance(data, torch.utils.data.IterableDataset):
        return True
    return hasattr(data, "__iter__") and not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    )


def _label_column(data: Any, fields: Fields) -> str | None:
    """Return the column of the labels, where a data set knows its columns beforehand."""
    columns = getattr(data, "column_names", None)
    return fields.label_in(columns, f"the {type(data).__name__}") if columns else None


@dataclass(frozen=True)
class _FailedItem:
    """Stands for an item in whose place the data raised an error."""

    error: Exception


def _raw(data: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield the items; one that raises does not end the data, unless nothing comes after it."""
    iterator = iter(data)
    failures: list[Exception] = []
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            break
        except AfmiError:
            raise
        except Exception as error:
            check_memory(error)
            failures.append(error)
            if len(failures) == _MOST_FAILURES:
                break
            yield _FailedItem(error)
            continue
        failures.clear()
        yield item
    if failures:  # a generator ends with the error that it raises
        raise SourceError(
            f"{name} gave nothing more after an error ({one_line(failures[0])}), so the data may "
            "not be all; what was finished is kept: mend the data, and the same call resumes"
        ) from failures[0]


def _unless_failed(item: Any) -> Any:
    if isinstance(item, _FailedItem):
        raise ImageError(one_line(item.error))
    return item


def _result(get: Callable[[], _Value]) -> _Value | Exception:
    """Return what a call returns, or the error that it raises."""
    try:
        return get()
    except SourceError:
        raise
    except Exception as error:
        check_memory(error)  # this process ran out of it, for which no picture is to blame
        # They would keep the pictures of their tracebacks.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error


def _held(picture: Any) -> Any:
    """Return a picture that stays as it is when the data are read on: of a PIL image its pixels.

    It may also be sent to another process, which could not open the file that it comes from.
    """
    return picture.copy() if isinstance(picture, Image.Image) else picture


def _prepared(model: nn.Module, picture: Any) -> Tensor:
    if isinstance(picture, Exception):
        raise picture
    return prepared(model, picture)


def _failed(outcome: object) -> bool:
    return isinstance(outcome, Exception)


def _check_first(*outcomes: object) -> None:
    """Raise what is wrong with all items, such as the shape of the pictures, at once."""
    for outcome in outcomes:
        if isinstance(outcome, AfmiError) and not isinstance(outcome, (ImageError, TargetError)):
            raise outcome


def picture_digest(picture: Any) -> str:
    """Return a digest of a picture's pixels, or of its file's bytes where it comes so."""
    try:
        parts = _bytes_of(picture)
    except Exception as error:  # a PIL image is decoded here, and may be damaged
        check_memory(error)
        return _UNREAD
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _size(picture: Any) -> int:
    if isinstance(picture, (Tensor, np.ndarray)):
        return picture.nbytes
    if isinstance(picture, Image.Image):
        width, height = picture.size
        return width * height * (1 if picture.mode in ("1", "L", "P") else 4)
    return len(picture) if isinstance(picture, (bytes, bytearray)) else 0


def _bytes_of(picture: Any) -> tuple[bytes, ...]:
    if isinstance(picture, Tensor):
        flat = picture.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"{picture.dtype} {tuple(picture.shape)}".encode(), flat.numpy().tobytes()
    if isinstance(picture, np.ndarray):
        return f"{picture.dtype} {picture.shape}".encode(), picture.tobytes()
    if isinstance(picture, Image.Image):
        palette = bytes(picture.getpalette() or ()) if picture.mode == "P" else b""
        return f"{picture.mode} {picture.size}".encode(), palette, picture.tobytes()
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return (bytes(picture),)
    raise TypeError(f"no picture is {type(picture).__name__}")
