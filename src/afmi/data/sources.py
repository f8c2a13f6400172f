"""Labelled pictures for an evaluation: found at once, read one at a time when their turn comes.

A wrong label is the worst that can happen to an evaluation, for nothing shows it later. So names
of classes must match whole, and what matches no class, or several, is an error.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.resources
import operator
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from afmi.api import prepare
from afmi.errors import (
    AfmiError,
    ImageError,
    ModelError,
    ShapeError,
    TargetError,
    UsageError,
    near_matches,
)
from afmi.methods.base import classify
from afmi.network.classifier import Classifier
from afmi.pictures.finding import IMAGE_SUFFIXES, find_images
from afmi.pictures.images import read_image

__all__ = ["LabelledImages", "imagenet_wnids", "open_images"]

_SPLITS = ("val", "validation", "test", "train")  # the first that is there is taken
_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns RGB into grey
_LISTED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with their classes; none is in memory before `read` is called.

    Can be pickled, with the model in it, where the model and the data set can.

    Attributes:
        name: what was opened, for reports.
        keys: one unique id per picture: its path relative to the folder or CSV file, with "/"
            between folders, or a position such as ``"test/17"``.
        labels: for each picture, the index of its class among the model's.
        sizes: for each picture, the bytes of its file: -1 where there is none, 0 where the
            picture comes from a data set.
        model: what the pictures are prepared for.
        source: where the pictures come from.
        fingerprint: hex digest (BLAKE2b) of keys, labels and sizes. Neither the place of the
            folder nor the contents of the pictures go into it: a picture replaced by another of
            equal length goes unnoticed, as does any other picture at the same position of a data
            set.

    Raises:
        UsageError: two pictures have one key.
    """

    name: str
    keys: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    sizes: tuple[int, ...] = field(repr=False)
    model: nn.Module = field(repr=False, compare=False)
    source: _Files | _Items = field(repr=False, compare=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        twice = sorted({key for key in self.keys if key in seen or seen.add(key)})
        if twice:
            raise UsageError(
                f"expected each picture once in {self.name}, but {_list(map(repr, twice))} "
                f"{'comes' if len(twice) == 1 else 'come'} several times; leave all but one out"
            )
        digest = hashlib.blake2b(digest_size=16)
        for entry in zip(self.keys, self.labels, self.sizes, strict=True):
            # repr ends where it ends, so no two lists of entries run into the same bytes.
            digest.update(repr(entry).encode("utf-8", "backslashreplace"))
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Tensor:
        """Return a picture as the model is to see it.

        Files and PIL images are resized and cropped as by `Classifier.prepare`; tensors keep
        their size. Colour becomes grey for a model of one channel, and grey is repeated for a
        model of three.

        Args:
            index: which picture, from 0.

        Returns:
            The picture (1, C, H, W) in [0, 1], on the model's device.

        Raises:
            ImageError: it cannot be read; the message names the file.
        """
        key = self.keys[index]
        picture = self.source.picture(key)
        try:
            return _prepared(self.model, picture)
        except ImageError as error:
            where = self.source.where(key)
            if where in str(error):
                raise
            raise ImageError(f"{where} cannot be read: {error}") from error
        except AfmiError as error:
            where = self.source.where(key)
            raise ImageError(f"{where} cannot be prepared for the network: {error}") from error

    def limited(self, count: int) -> LabelledImages:
        """Return some of the pictures, as many of each class as may be.

        The classes take turns, in the order of their indices, each with its next picture; those
        that have none left are passed over. Nothing is random.

        Args:
            count: how many pictures, from 1. More than there are: all.

        Returns:
            The pictures chosen, in the order that they have here.

        Raises:
            UsageError: the count is no whole number from 1.
        """
        _check_limit(count)
        if count >= len(self):
            return self
        turn: dict[int, int] = {}
        turns: list[tuple[int, int, int]] = []
        for position, label in enumerate(self.labels):
            turn[label] = turn.get(label, -1) + 1
            turns.append((turn[label], label, position))
        chosen = sorted(position for _, _, position in sorted(turns)[:count])
        return self.only(chosen)

    def first(self) -> Tensor:
        """Return the first picture that can be read, (1, C, H, W).

        Raises:
            AfmiError: none can.
        """
        reason = ""
        for index in range(len(self)):
            try:
                return self.read(index)
            except AfmiError as error:
                reason = reason or str(error)
        raise AfmiError(f"none of the {len(self)} pictures can be read; the first: {reason}")

    def only(self, positions: Sequence[int]) -> LabelledImages:
        """Return the pictures at these positions, in their order."""
        return replace(
            self,
            name=f"{self.name}, {len(positions)} of {len(self)} pictures",
            keys=tuple(self.keys[i] for i in positions),
            labels=tuple(self.labels[i] for i in positions),
            sizes=tuple(self.sizes[i] for i in positions),
        )


def open_images(
    data: str | os.PathLike[str] | Any, model: nn.Module, *, limit: int | None = None
) -> LabelledImages:
    """Find labelled pictures and the class of each among the model's.

    A class is named by its label (but for case and punctuation, or by one of the synonyms between
    a label's commas), by its index, or by its ImageNet id ("wnid": n and eight digits). A wnid is
    an index for a model of 1000 classes, unless the model's labels show another order than
    ImageNet's; otherwise it stands for the label that torchvision gives it. A number is
    an index, unless the model's labels are numbers themselves and in another order.

    Args:
        data: one of:

            - a folder with one folder per class, with pictures at any depth. If no class folders
              lie in it but one called val, validation, test or train, the first of these is
              taken. Pictures beside the class folders are left out, as by torchvision;
            - a folder of pictures with wnids in their names, such as ``n01440764_10026.JPEG``;
            - a CSV file, UTF-8, with the columns ``image`` (a path, relative to the CSV file) and
              ``label``, separated by commas, semicolons or tabs;
            - ``"mnist:DIR"`` or ``"mnist-train:DIR"``: MNIST's test or training pictures, where
              torchvision keeps them (``DIR/MNIST/raw``); nothing is downloaded;
            - ``"imagenet:DIR"``: ImageNet's validation pictures in ``DIR/val/<wnid>``;
            - a data set of PyTorch, or any other object with a length whose items are pairs of
              picture and class index. The picture is a PIL image, or a tensor (C, H, W) in
              [0, 1] that the model sees as it is. Without ``targets`` it is read once for its
              labels.

            Hidden files and folders, linked folders, and files without an image suffix are left
            out; files are sorted by their path.
        model: a `Classifier`, or another ``nn.Module`` that takes images in [0, 1]. Without
            labels, the first picture goes through it, to count the classes.
        limit: take this many pictures only; see `LabelledImages.limited`.

    Returns:
        The pictures. CSV files may name files that do not exist: reading these raises.

    Raises:
        ImageError: there are no such pictures, or they carry no labels.
        TargetError: a label is no class of the model, or fits several.
        UsageError: the limit, the CSV file or the kind of data cannot be used, or a picture
            comes twice.
        ModelError: the model is no ``nn.Module``, or not for these pictures.

    Example:
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> pairs = [(torch.zeros(3, 4, 4), 1), (torch.ones(3, 4, 4), 0)]
        >>> images = open_images(pairs, model)
        >>> images.keys, images.labels, images.read(1).shape
        (('item/0', 'item/1'), (1, 0), torch.Size([1, 3, 4, 4]))
    """
    if limit is not None:
        _check_limit(limit)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a model that is an nn.Module, got {type(model).__name__}; "
            "use afmi.load_model(name) or afmi.Classifier(network)"
        )
    opened = _open(data)
    if isinstance(opened.source, _Items):
        _try_first(opened, model)
    labels = tuple(getattr(model, "labels", ()))
    classes = _Classes(labels, len(labels) or _count_classes(opened, model))
    if opened.classes not in (None, classes.count):
        raise ModelError(
            f"{opened.name} has {opened.classes} classes, but the model tells {classes.count} "
            "apart; use a model that was trained on these pictures"
        )
    if opened.class_names:
        _check_order(opened, classes)
    found = LabelledImages(
        opened.name, opened.keys, _indices(opened, classes), opened.sizes, model, opened.source
    )
    return found if limit is None else found.limited(limit)


def imagenet_wnids() -> tuple[str, ...]:
    """Return the ids of ImageNet's 1000 classes (ILSVRC 2012), in the order of their indices.

    Example:
        >>> imagenet_wnids()[0], len(imagenet_wnids())
        ('n01440764', 1000)
    """
    return tuple(_wnid_indices())


# --- what is opened -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Pictures in files; a key is a path relative to the root, or an absolute one."""

    root: Path

    def where(self, key: str) -> str:
        return repr(str(self.root / key))

    def picture(self, key: str) -> Any:
        return read_image(self.root / key)


@dataclass(frozen=True)
class _Items:
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
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ImageError(f"{self.where(key)} cannot be read: {told}") from error
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UsageError(
                f"expected pairs of picture and class index in {self.name}, got "
                f"{type(item).__name__}; wrap it so that its items are such pairs"
            )
        return item


@dataclass(frozen=True)
class _Opened:
    """Pictures whose classes are still to be found.

    Attributes:
        name: what was opened.
        source: where the pictures come from.
        keys: one per picture.
        labels: what was said of each picture's class: a name, or an int, which is an index.
        noun: what the labels are, for messages.
        sizes: bytes of each file.
        classes: how many classes the model must have. None: any number.
        class_names: what a data set calls its classes, in the order of its indices.
    """

    name: str
    source: _Files | _Items
    keys: tuple[str, ...]
    labels: tuple[str | int, ...]
    noun: str
    sizes: tuple[int, ...]
    classes: int | None = None
    class_names: tuple[str, ...] = ()


def _open(data: Any) -> _Opened:
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        prefix, colon, rest = text.partition(":")
        if colon and prefix.lower() in _NAMED:
            return _NAMED[prefix.lower()](_absolute(rest, prefix), text)
        path = _absolute(text, "data")
        if path.is_dir():
            return _open_folder(path, text)
        if path.is_file():
            return _open_csv(path, text)
        known = ", ".join(f"{name}:DIR" for name in _NAMED)
        raise ImageError(
            f"there is no {text!r}; expected a folder, a CSV file, or one of {known}: "
            "check the path"
        )
    takes_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not takes_items or isinstance(data, (Mapping, Tensor, bytes)):
        raise UsageError(
            f"expected a folder, a CSV file or a data set with a length, got "
            f"{type(data).__name__}; items must be pairs of picture and class index"
        )
    return _open_items(data)


def _absolute(text: str, what: str) -> Path:
    if not text:
        raise UsageError(f"expected a path as {what}, got nothing; name a folder")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _open_folder(folder: Path, name: str) -> _Opened:
    base, other = _split(folder)
    if base != folder:
        name += f" ({base.name}{f', not {other}' if other else ''})"
    found: dict[str, str | None] = {}  # each picture's class folder, or else its wnid
    in_folders = False
    for path in find_images(base):
        parts = path.relative_to(base).parts
        in_folders |= len(parts) > 1
        wnid = _WNID.search(parts[-1])
        label = parts[0] if len(parts) > 1 else wnid[0] if wnid else None
        found[path.relative_to(folder).as_posix()] = label
    unlabelled = sorted(key for key, label in found.items() if label is None)
    if unlabelled and not in_folders:
        raise ImageError(
            f"{len(unlabelled)} of {len(found)} pictures in {name} have no label: neither do they "
            f"lie in a folder per class, nor do their names hold an ImageNet id such as n01440764 "
            f"({_list(map(repr, unlabelled))}); sort them into folders, or list them in a CSV file"
        )
    keys = sorted(key for key, label in found.items() if label is not None)
    noun = "class folder" if in_folders else "ImageNet id"
    return _files(name, folder, keys, [found[key] or "" for key in keys], noun)


def _split(folder: Path) -> tuple[Path, str]:
    """Return where the class folders are, and which other half of the data was left out."""
    subfolders = sorted(entry for entry in _entries(folder) if entry.is_dir())
    splits = [split for split in _SPLITS if folder / split in subfolders]
    if not splits:
        return folder, ""
    for subfolder in subfolders:
        if subfolder.name not in _SPLITS and any(map(_is_picture, _entries(subfolder))):
            return folder, ""  # a class's, so the others are too
    return folder / splits[0], " or ".join(splits[1:])


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise ImageError(
            f"the folder {str(folder)!r} cannot be listed: {error.strerror}; "
            "change its rights, or leave it out"
        ) from error


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file()


def _files(name: str, root: Path, keys: Iterable[str], labels: Sequence[str], noun: str) -> _Opened:
    keys = tuple(keys)
    sizes = tuple(_size(root / key) for key in keys)
    return _Opened(name, _Files(root), keys, tuple(labels), noun, sizes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return -1


def _open_csv(path: Path, name: str) -> _Opened:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(
            f"{name!r} is a picture; expected a folder of pictures, or a CSV file that lists them "
            "with their labels"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _csv_rows(file, name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        told = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{name!r} cannot be read as a CSV file ({told}); expected text in UTF-8 with the "
            "columns image and label"
        ) from error
    if not rows:
        raise UsageError(f"{name!r} lists no pictures; add a line with image and label for each")
    keys = [PurePath(image).as_posix() for image, _ in rows]
    opened = _files(name, path.parent, keys, [label for _, label in rows], "label")
    if max(opened.sizes) < 0:
        raise ImageError(
            f"none of the {len(keys)} files listed in {name!r} exists, such as "
            f"{opened.source.where(keys[0])}; expected paths relative to the CSV file's folder"
        )
    return opened


def _csv_rows(file: Any, name: str) -> list[tuple[str, str]]:
    """Return image and label of each line of an open CSV file."""
    first = file.readline()
    file.seek(0)
    separator = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(file, delimiter=separator, strict=True)
    header = [cell.strip().casefold() for cell in next(reader, [])]
    if header.count("image") != 1 or header.count("label") != 1:
        came = ", ".join(map(repr, header)) or "nothing"
        raise UsageError(
            f"expected the columns 'image' and 'label' in the first line of {name!r}, got "
            f"{came[:200]}; name the columns so"
        )
    image, label = header.index("image"), header.index("label")
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header) or not cells[image].strip() or not cells[label].strip():
            raise UsageError(
                f"line {reader.line_num} of {name!r} does not have an image and a label in "
                f"{len(header)} columns: {separator.join(cells)[:80]!r}; mend it, with "
                "quotation marks around what holds a separator"
            )
        rows.append((cells[image].strip(), cells[label].strip()))
    return rows


def _open_mnist(folder: Path, name: str, train: bool = False) -> _Opened:
    datasets = importlib.import_module("torchvision.datasets")
    split = "train" if train else "test"
    try:
        digits = datasets.MNIST(str(folder), train=train, download=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        told = " ".join(str(error).split("You can")[0].split()) or type(error).__name__
        raise ImageError(
            f"no MNIST can be read in {str(folder)!r} ({told}); expected the four files "
            "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte there: fetch them with "
            f"torchvision.datasets.MNIST({str(folder)!r}, download=True)"
        ) from error
    keys = tuple(f"{split}/{i}" for i in range(len(digits)))
    labels = tuple(str(int(digit)) for digit in digits.targets)
    source = _Items(name, digits)
    return _Opened(name, source, keys, labels, "digit", (0,) * len(keys), classes=10)


def _open_mnist_train(folder: Path, name: str) -> _Opened:
    return _open_mnist(folder, name, train=True)


def _open_imagenet(folder: Path, name: str) -> _Opened:
    val = folder / "val"
    if not val.is_dir() or not any(_WNID.fullmatch(e.name) and e.is_dir() for e in _entries(val)):
        raise ImageError(
            f"no validation pictures of ImageNet in {str(folder)!r}; expected one folder for each "
            "class in it, such as val/n01440764: make them out of ImageNet's archives with "
            f"torchvision.datasets.ImageNet({str(folder)!r}, split='val')"
        )
    opened = _open_folder(val, name)
    keys = tuple(f"val/{key}" for key in opened.keys)
    return replace(opened, source=_Files(folder), keys=keys)


_NAMED: dict[str, Callable[[Path, str], _Opened]] = {
    "mnist": _open_mnist,
    "mnist-train": _open_mnist_train,
    "imagenet": _open_imagenet,
}


# --- data sets ------------------------------------------------------------------------------


def _open_items(data: Any) -> _Opened:
    name = type(data).__name__
    if len(data) < 1:
        raise ImageError(f"the {name} has no items; expected pairs of picture and class index")
    source = _Items(name, data)
    keys = tuple(f"item/{i}" for i in range(len(data)))
    labels = _known_targets(data)
    first = _index(source.pair(keys[0])[1], name)
    if labels is None or labels[0] != first:  # something changes the targets on their way
        labels = [first, *(_index(source.pair(key)[1], name) for key in keys[1:])]
        names = ()
    else:
        names = _known_names(data)
    sizes = (0,) * len(keys)
    return _Opened(name, source, keys, tuple(labels), "label", sizes, class_names=names)


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
        found = [operator.index(target) for target in targets]
    except (TypeError, ValueError, RuntimeError):
        return None
    return found if len(found) == len(data) else None


def _known_names(data: Any) -> tuple[str, ...]:
    if isinstance(data, torch.utils.data.Subset):
        return _known_names(data.dataset)
    names = getattr(data, "classes", ())
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else ()


def _try_first(opened: _Opened, model: nn.Module) -> None:
    """Raise what is wrong with all pictures of a data set, such as their shape, at once."""
    try:
        picture = opened.source.picture(opened.keys[0])
        _prepared(model, picture)
    except ImageError:
        return  # this picture's own trouble


def _check_order(opened: _Opened, classes: _Classes) -> None:
    """Raise when a data set numbers classes in another way than the model, by their names."""
    for index, name in enumerate(opened.class_names):
        if name.strip().isdecimal():
            continue
        try:
            found = classes.find(name)
        except TargetError:
            continue
        if found != index:
            raise TargetError(
                f"class {index} of the {opened.name} is {name!r}, which is the model's class "
                f"{found}; pass its folder instead, or a target_transform that gives the model's "
                "indices"
            )


# --- classes --------------------------------------------------------------------------------


def _words(label: str) -> str:
    """Return the words of a label in lower case, without punctuation."""
    plain = unicodedata.normalize("NFC", label).casefold().replace("_", " ")
    return " ".join(re.findall(r"\w+", plain))


@dataclass(frozen=True)
class _Classes:
    """Finds a model's classes by name; stricter than `find_class`, which takes parts of labels.

    Attributes:
        labels: of the model; empty where it has none.
        count: how many classes it tells apart.
    """

    labels: tuple[str, ...]
    count: int

    @cached_property
    def _known(self) -> tuple[dict[str, set[int]], ...]:
        """Which classes have a label, from the strictest reading of it to the loosest."""
        exact: dict[str, set[int]] = {}
        words: dict[str, set[int]] = {}
        synonyms: dict[str, set[int]] = {}
        for index, label in enumerate(self.labels):
            exact.setdefault(label.strip(), set()).add(index)
            words.setdefault(_words(label), set()).add(index)
            for part in label.split(","):
                synonyms.setdefault(_words(part), set()).add(index)
        return exact, words, synonyms

    @cached_property
    def _numbers_are_labels(self) -> bool:
        return any(
            label.strip().isdecimal() and int(label) != index
            for index, label in enumerate(self.labels)
        )

    @cached_property
    def _in_imagenet_order(self) -> bool:
        """Whether a model of 1000 classes has ImageNet's, as far as its labels can tell."""
        if self.count != 1000:
            return False
        places = [(i, self._labelled(name)) for i, name in enumerate(_imagenet_labels())]
        at_home = sum(i in found for i, found in places)
        return at_home >= sum(bool(found) and i not in found for i, found in places)

    def _labelled(self, text: str) -> set[int]:
        exact, words, synonyms = self._known
        plain = _words(text)
        found = exact.get(text)
        if not found and plain:
            found = words.get(plain) or synonyms.get(plain)
        return found or set()

    def find(self, wanted: str | int) -> int:
        """Return the index of a class.

        Raises:
            TargetError: no class or several match; the message is the reason alone.
        """
        if isinstance(wanted, int):
            return self._in_range(wanted)
        text = wanted.strip()
        if text not in self._known[0]:
            if _WNID.fullmatch(text):
                return self._by_wnid(text)
            if re.fullmatch(r"[+-]?\d+", text) and not self._numbers_are_labels:
                return self._in_range(int(text))
        return self._one_of(self._labelled(text), text)

    def _in_range(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise TargetError(f"indices go from 0 to {self.count - 1}")
        return index

    def _by_wnid(self, wnid: str) -> int:
        index = _wnid_indices().get(wnid)
        if index is None:
            raise TargetError("not one of ImageNet's 1000 classes")
        if self.count == 1000 and (not self.labels or self._in_imagenet_order):
            return index
        name = _imagenet_labels()[index]
        try:
            return self._one_of(self._labelled(name), name)
        except TargetError as error:
            raise TargetError(f"in ImageNet {name!r}: {error}") from None

    def _one_of(self, found: set[int], text: str) -> int:
        if len(found) == 1:
            return next(iter(found))
        if found:
            fits = (f"{self.labels[i]!r} ({i})" for i in sorted(found))
            raise TargetError(f"fits {_list(fits)}")
        if not self.labels:
            raise TargetError("the model has no labels, only indices")
        raise TargetError(near_matches(text, self.labels)[2:] or "no label is like it")


@cache
def _wnid_indices() -> dict[str, int]:
    path = importlib.resources.files("afmi.data").joinpath("imagenet_wnids.txt")
    return {wnid: index for index, wnid in enumerate(path.read_text(encoding="ascii").split())}


@cache
def _imagenet_labels() -> tuple[str, ...]:
    models = importlib.import_module("torchvision.models")  # takes a second that others save
    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _indices(opened: _Opened, classes: _Classes) -> tuple[int, ...]:
    """Return the class of each picture; raise one error for all that have none."""
    indices: dict[str | int, int] = {}
    reasons: list[str] = []
    names = sorted(set(opened.labels), key=lambda name: (isinstance(name, str), name))
    for name in names:
        try:
            indices[name] = classes.find(name)
        except TargetError as error:
            reasons.append(f"{name!r} ({error})")
    if reasons:
        which = f"{opened.noun}s in {opened.name}"
        match = "matches" if len(reasons) == 1 else "match"
        raise TargetError(
            f"{len(reasons)} of {len(names)} {which} {match} none of the model's {classes.count} "
            f"classes: {_list(reasons)}; name classes by label, index or ImageNet id, and leave "
            "out what the model does not know"
        )
    return tuple(indices[name] for name in opened.labels)


def _count_classes(opened: _Opened, model: nn.Module) -> int:
    """Return how many classes a model without labels tells apart, by one forward pass."""
    reason = ""
    for key in opened.keys:
        try:
            seen = _prepared(model, opened.source.picture(key))
        except ImageError as error:
            reason = reason or str(error)
            continue
        return classify(model, seen).shape[1]
    raise ImageError(f"none of the {len(opened.keys)} pictures of {opened.name} is fit: {reason}")


# --- pictures -------------------------------------------------------------------------------


def _prepared(model: nn.Module, picture: Any) -> Tensor:
    """Return a picture as the model is to see it, in as many channels as it takes."""
    channels = _channels(model)
    if not isinstance(picture, Tensor) and channels == 1:
        # Grey before it is resized; of the three equal channels that come out, one is kept.
        grey: Image.Image = read_image(picture).convert("L")
        return prepare(model, grey)[:, :1]
    seen = prepare(model, picture)
    if seen.shape[1] == channels:
        return seen
    if seen.shape[1] == 1:
        return seen.expand(-1, channels, -1, -1).contiguous()
    if channels == 1 and seen.shape[1] == 3:
        luma = torch.tensor(_LUMA, dtype=seen.dtype, device=seen.device).view(3, 1, 1)
        return (seen * luma).sum(1, keepdim=True)
    raise ShapeError(
        f"the model takes {channels} channels, but the picture has {seen.shape[1]}; "
        "pass a data set of tensors that fit"
    )


def _channels(model: nn.Module) -> int:
    if isinstance(model, Classifier):
        return model.mean.shape[0]
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if convolution is not None and convolution.in_channels == 1 else 3


# --- shared ---------------------------------------------------------------------------------


def _check_limit(limit: object) -> None:
    if type(limit) is not int or limit < 1:
        raise UsageError(f"expected a whole number of pictures from 1 as limit, got {limit!r}")


def _list(parts: Iterable[str]) -> str:
    """Return the first few parts, and how many more there are."""
    parts = list(parts)
    more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return ", ".join(parts[:_LISTED]) + more
