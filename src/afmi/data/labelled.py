"""Labelled pictures for an evaluation: all listed first, each read when its turn comes."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afmi.data.classes import Classes
from afmi.data.fields import Fields
from afmi.data.folders import open_folder, open_imagenet, open_list
from afmi.data.items import open_items, open_mnist
from afmi.data.listing import Files, Items, Listing, Source, changed, listed
from afmi.data.preparing import prepared, prepared_or_named
from afmi.data.remote import RemoteFiles, open_remote
from afmi.data.tars import is_tar, local_tars, open_tars
from afmi.data.unlabelled import UNLABELLED, open_unlabelled
from afmi.errors import AfmiError, ImageError, ModelError, SourceError, TargetError, UsageError
from afmi.network.classifier import classify, labels_of
from afmi.network.wrappers import runnable
from afmi.stores import is_remote

__all__ = [
    "NO_CLASS",
    "LabelledImages",
    "check_limit",
    "check_model",
    "labelled_images",
    "open_images",
    "unlabelled_images",
]


NO_CLASS = -1
"""The label of a picture whose class is not known; reading it raises."""


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with their classes; none is in memory before `read` is called.

    Can be pickled, with the model in it, where the model and the data set can.

    Attributes:
        name: what was opened, for reports.
        keys: one unique id per picture: its path relative to the folder or CSV file, with "/"
            between folders, or a position such as ``"test/17"``.
        labels: for each picture, the index of its class among the model's; -1 where the picture
            cannot be read, and so not its label either.
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
    source: Source = field(repr=False, compare=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        repeated = sorted(key for key, times in Counter(self.keys).items() if times > 1)
        if repeated:
            raise UsageError(
                f"expected each picture once in {self.name}, but {listed(map(repr, repeated))} "
                f"{'comes' if len(repeated) == 1 else 'come'} several times; leave all but one out"
            )
        digest = hashlib.blake2b(digest_size=16)
        for entry in zip(self.keys, self.labels, self.sizes, strict=True):
            # repr marks where an entry ends, so different lists never give the same bytes.
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
            SourceError: its file is not as large as when it was listed, or cannot be reached.
        """
        key, source = self.keys[index], self.source
        if isinstance(source, Files):
            self.check_size(index, source.size(key))
        picture = source.picture(key)
        if isinstance(source, RemoteFiles):
            self.check_size(index, len(picture))
        if self.labels[index] == NO_CLASS:
            raise ImageError(f"{source.where(key)} could not be read for its label before")
        return prepared_or_named(self.model, picture, source.where(key))

    def check_size(self, index: int, size: int) -> None:
        """See that a picture's file is as large as when it was listed.

        Args:
            index: which picture, from 0.
            size: the bytes that it has; -1: it is missing.

        Raises:
            SourceError: it is not, so that it is another file, or lost.
        """
        then = self.sizes[index]
        unknown = then == 0 and isinstance(self.source, RemoteFiles)
        if size != then and not (unknown and size >= 0):
            raise changed(self.source.where(self.keys[index]), then, size)

    def limited(self, count: int) -> LabelledImages:
        """Return some of the pictures, spread over the classes as evenly as possible.

        The classes take turns, in the order of their indices, each with its next picture; those
        that have none left are passed over. Nothing is random.

        Args:
            count: how many pictures, from 1. More than there are: all.

        Returns:
            The pictures chosen, in the order that they have here.

        Raises:
            UsageError: the count is no whole number from 1.
        """
        check_limit(count)
        if count >= len(self):
            return self
        turns = defaultdict(itertools.count)
        queue = sorted((next(turns[label]), label, i) for i, label in enumerate(self.labels))
        return self.only(sorted(position for _, _, position in queue[:count]))

    def first(self) -> Tensor:
        """Return the first picture that can be read, (1, C, H, W).

        Raises:
            AfmiError: none can.
        """
        reason = ""
        for index in range(len(self)):
            try:
                return self.read(index)
            except SourceError:  # then none can
                raise
            except Exception as error:
                reason = reason or str(error) or type(error).__name__
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
    data: str | os.PathLike[str] | Any,
    model: nn.Module,
    *,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    labelled: bool = True,
) -> LabelledImages:
    """Find labelled pictures and the class of each among the model's.

    A class is named by its label (case and punctuation do not count; one of the synonyms between a
    label's commas is enough), by its index, or by its ImageNet id ("wnid": n and eight digits). A
    wnid is an index for a model of 1000 classes, unless the model's labels show another order than
    ImageNet's; otherwise it stands for the label that torchvision gives it. A number is
    an index, unless the model's labels are numbers themselves and in another order.

    Args:
        data: one of:

            - a folder with one folder per class, with pictures at any depth. If no class folders
              lie in it but one called val, validation, test or train, the first of these is
              taken. Pictures beside the class folders are left out, as by torchvision;
            - a folder of pictures with wnids in their names, such as ``n01440764_10026.JPEG``;
            - a CSV file, UTF-8, with the columns ``image`` (a path, relative to the CSV file) and
              ``label``, separated by commas, semicolons or tabs; or a Parquet file with these
              columns;
            - ``"mnist:DIR"`` or ``"mnist-train:DIR"``: MNIST's test or training pictures, where
              torchvision keeps them (``DIR/MNIST/raw``); nothing is downloaded;
            - ``"imagenet:DIR"``: ImageNet's validation pictures in ``DIR/val/<wnid>``;
            - tar files of WebDataset on a disk, by their path, a glob, or a pattern such as
              ``"shard-{000..010}.tar"``: samples of a picture (jpg, jpeg, png, webp) and a label
              (``cls``, or a field of ``json``). Nothing of them is unpacked to a disk;
            - a folder of pictures behind a URL of fsspec, laid out as above:
              ``"s3://bucket/val"``, ``"zip://val::pictures.zip"``;
            - a data set of PyTorch or of Hugging Face's ``datasets``, or any other object with a
              length whose items are pairs of picture and label, or mappings that hold both. The
              picture is a PIL image, an encoded one, or a tensor (C, H, W) in [0, 1] that the
              model sees as it is; the label is a class's index or name. Without ``targets`` it is
              read once for its labels. Names that the data set has for its classes are sought
              among the model's labels;
            - `LabelledImages`, which are taken as they are.

            Hidden files and folders, linked folders, and files without an image suffix are left
            out; files are sorted by their path.
        model: a `Classifier`, or another ``nn.Module`` that takes images in [0, 1]. Without
            labels, the first picture goes through it, to count the classes.
        limit: take this many pictures only; see `LabelledImages.limited`.
        image_key: what the picture is called in items that are mappings, the suffix of the pictures
            in tar files, the column in a CSV file; None: the usual name (``image``, ``img``,
            ``pixel_values``, ``inputs``, a suffix), of which there must be one only.
        label_key: likewise the label (``label``, ``labels``, ``target``, ``cls``).
        labelled: False: labels are not needed and not read; pictures may lie in a folder as they
            like, be those of a glob, or a data set's items by themselves. A limit then takes
            pictures that are evenly spread.

    Returns:
        The pictures. CSV files may name files that do not exist: reading these raises.

    Raises:
        ImageError: there are no such pictures, or they carry no labels.
        TargetError: a label is no class of the model, or fits several.
        UsageError: the limit, the CSV file or the kind of data cannot be used, or a picture
            comes twice.
        ModelError: the model is no ``nn.Module``, or not for these pictures.

    Example:
        >>> import torch
        >>> from afmi import Classifier
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> pairs = [(torch.zeros(3, 4, 4), 1), (torch.ones(3, 4, 4), 0)]
        >>> images = open_images(pairs, model)
        >>> images.keys, images.labels, images.read(1).shape
        (('item/0', 'item/1'), (1, 0), torch.Size([1, 3, 4, 4]))
    """
    check_limit(limit)
    model = runnable(model)
    check_model(model)
    if isinstance(data, LabelledImages):
        return replace(data if limit is None else data.limited(limit), model=model)
    if not labelled:
        return unlabelled_images(_open_unlabelled(data, image_key), model, limit)
    return labelled_images(_open(data, Fields(image_key, label_key)), model, limit)


def labelled_images(opened: Listing, model: nn.Module, limit: int | None) -> LabelledImages:
    """Return the pictures of a listing with their classes among the model's.

    Raises:
        AfmiError: see `open_images`.
    """
    if isinstance(opened.source, Items):
        _try_first(opened, model)
    labels = labels_of(model)
    classes = Classes(labels, len(labels) or _count_classes(opened, model))
    if opened.classes not in (None, classes.count):
        raise ModelError(
            f"{opened.name} has {opened.classes} classes, but the model has {classes.count}; "
            "use a model that was trained on these pictures"
        )
    if opened.by_name:
        opened = _named(opened, classes)
    elif opened.class_names:
        _check_order(opened, classes)
    images = LabelledImages(
        opened.name, opened.keys, _indices(opened, classes), opened.sizes, model, opened.source
    )
    return images if limit is None else images.limited(limit)


def unlabelled_images(opened: Listing, model: nn.Module, limit: int | None) -> LabelledImages:
    """Return the pictures of a listing without their classes.

    Args:
        opened: the listing.
        model: what the pictures are prepared for.
        limit: take this many, evenly spread; None: all.
    """
    count = len(opened.keys)
    labels = (UNLABELLED,) * count
    images = LabelledImages(
        opened.name, opened.keys, labels, opened.sizes, runnable(model), opened.source
    )
    if limit is None or limit >= count:
        return images
    return images.only([i * count // limit for i in range(limit)])


_PREFIXES: dict[str, Callable[[Path, str], Listing]] = {
    "mnist": open_mnist,
    "mnist-train": partial(open_mnist, train=True),
    "imagenet": open_imagenet,
}


def _open(data: Any, fields: Fields) -> Listing:
    if isinstance(data, (str, os.PathLike)):
        return _open_text(os.fspath(data), fields)
    takes_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not takes_items or isinstance(data, (Mapping, Tensor, bytes)):
        splits = ", ".join(map(repr, data)) if isinstance(data, Mapping) else ""
        raise UsageError(
            f"expected a folder, a CSV file or a data set with a length, got "
            f"{type(data).__name__}{f' of {splits}'[:200] if splits else ''}; items must be pairs "
            "of picture and label, or mappings that hold both"
        )
    return open_items(data, fields)


def _open_unlabelled(data: Any, image_key: str | None) -> Listing:
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        if text.partition(":")[0].lower() in _PREFIXES and not is_remote(text):
            return _open_local(text, Fields(image_key))
    return open_unlabelled(data, image_key)


def _open_text(text: str, fields: Fields) -> Listing:
    if not is_remote(text):
        return _open_local(text, fields)
    opened = open_remote(text, fields)
    if isinstance(opened, Listing):
        return opened
    raise UsageError(
        f"the samples of {opened.name!r} come one after the other, and none can be had by its "
        "position; give them to afmi.evaluate, or copy the files to a disk"
    )


def _open_local(text: str, fields: Fields) -> Listing:
    prefix, colon, rest = text.partition(":")
    if colon and prefix.lower() in _PREFIXES:
        fields.refuse(repr(text))
        return _PREFIXES[prefix.lower()](_absolute(rest, prefix), text)
    path = _absolute(text, "data")
    if path.is_dir():
        fields.refuse(repr(text))
        return open_folder(path, text)
    if is_tar(text):
        return open_tars(local_tars(str(path)), text, fields)
    if path.is_file():
        return open_list(path, text, fields)
    known = ", ".join(f"{name}:DIR" for name in _PREFIXES)
    raise ImageError(
        f"there is no {text!r}; expected a folder, a CSV file, tar files, a URL, or one of "
        f"{known}: check the path"
    )


def _absolute(text: str, what: str) -> Path:
    if not text:
        raise UsageError(f"expected a path as {what}, got nothing; name a folder")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _try_first(opened: Listing, model: nn.Module) -> None:
    """Raise what is wrong with all pictures of a data set, such as their shape, at once."""
    try:
        picture = opened.source.picture(opened.keys[0])
        prepared(model, picture)
    except ImageError:
        return  # a problem of this picture alone


def _check_order(opened: Listing, classes: Classes) -> None:
    """Raise when a data set numbers classes in another way than the model, by their names."""
    for index, name in enumerate(opened.class_names):
        if name.strip().isdecimal():
            continue
        try:
            position = classes.find(name)
        except TargetError:
            continue
        if position != index:
            raise TargetError(
                f"class {index} of the {opened.name} is {name!r}, which is the model's class "
                f"{position}; pass its folder instead, or a target_transform that gives the "
                "model's indices"
            )


def _named(opened: Listing, classes: Classes) -> Listing:
    """Return a listing whose labels are the model's classes, or the names of those it lacks."""
    of_names = classes.of_names(opened.class_names)
    labels = (
        of_names[label] if isinstance(label, int) and 0 <= label < len(of_names) else label
        for label in opened.labels
    )
    return replace(opened, labels=tuple(labels))


def _indices(opened: Listing, classes: Classes) -> tuple[int, ...]:
    """Return the class of each picture; raise one error for all that have none."""
    indices: dict[str | int, int] = {}
    reasons: list[str] = []
    given = {name for name in opened.labels if name is not None}
    names = sorted(given, key=lambda name: (isinstance(name, str), name))
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
            f"classes: {listed(reasons)}; name classes by label, index or ImageNet id, and leave "
            "out what the model does not know"
        )
    return tuple(NO_CLASS if name is None else indices[name] for name in opened.labels)


def _count_classes(opened: Listing, model: nn.Module) -> int:
    """Return how many classes a model without labels has, by one forward pass."""
    reason = ""
    for key in opened.keys:
        try:
            image = prepared(model, opened.source.picture(key))
        except ImageError as error:
            reason = reason or str(error)
            continue
        return classify(model, image).shape[1]
    raise ImageError(f"none of the {len(opened.keys)} pictures of {opened.name} is fit: {reason}")


def check_limit(limit: object) -> None:
    """Raise unless a limit is None or a whole number from 1."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UsageError(f"expected a whole number of pictures from 1 as limit, got {limit!r}")


def check_model(model: object) -> None:
    """Raise unless a model is one of PyTorch."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a model that is an nn.Module, got {type(model).__name__}; "
            "use afmi.load_model(name) or afmi.Classifier(network)"
        )
