"""Choose the photographs that figures show, the same ones each time, and the classes to explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from afmi.batching import prepare
from afmi.errors import AfmiError, ImageError, TargetError, UsageError
from afmi.evaluation import LabelledImages, open_images
from afmi.experiments.shared.base import Request
from afmi.network.classifier import Classifier, class_label, classify, find_class
from afmi.pictures.images import read_image

__all__ = ["Photo", "choose_photos", "side_by_side"]

TRIED = 20
"""The most pictures of a class, and the most replacement classes, that are tried."""


@dataclass(frozen=True)
class Photo:
    """A photograph and the class to explain.

    Attributes:
        image: what `afmi.explain` takes: a file, or a tensor that the network sees as it is.
        name: for titles and files.
        source: the file, or the files that it was put together from.
        target: the class's index.
    """

    image: Any
    name: str
    source: str
    target: int


def choose_photos(request: Request, model: Classifier, wanted: Sequence[str]) -> list[Photo]:
    """Choose the pictures of a figure, and say which they are.

    Given files are explained for the classes asked for, or else for the predicted ones. Otherwise a
    folder of labelled pictures provides one picture for each class wanted: among its first 20 by
    name, the first that the network classifies correctly, or else the very first. A class that the
    network or the folder lacks is replaced by the next one with a correctly classified picture.

    Args:
        request: the files or the folder, and the classes to explain; ``limit`` shortens the list.
        model: explains the pictures, and should classify them correctly.
        wanted: labels of the paper's classes, such as ``"dogsled"``.

    Raises:
        UsageError: when there are not as many classes as files.
        TargetError: when a class does not exist.
        ImageError: when a file or the folder cannot be read.
    """
    targets = request.targets
    if request.images:
        files = request.images[: request.limit]
        if len(targets) > 1 and len(targets) != len(files):
            raise UsageError(
                f"expected one --target for all pictures or one for each of {len(files)}, got "
                f"{len(targets)}"
            )
        photos = []
        for file in map(Path, files):
            logits = classify(model, prepare(model, read_image(file)))
            photos.append(Photo(file, file.stem, str(file), int(logits[0].argmax())))
    else:
        photos = _out_of_folder(request, model, wanted)
    if targets:
        several = targets if len(targets) == len(photos) else [targets[0]] * len(photos)
        photos = [
            replace(photo, target=find_class(model, target))
            for photo, target in zip(photos, several, strict=True)
        ]
    for photo in photos:
        request.report(f"picture {photo.source}")
    return photos


def side_by_side(model: Classifier, left: Photo, right: Photo) -> Photo:
    """Put two photographs side by side in one image, as an image of two classes.

    Each keeps its scale, because a network trained on whole objects misses shrunk ones.
    A network that takes images of one size only gets half of each photograph's width. The image's
    class is that of the left photograph.
    """
    pair = [prepare(model, photo.image) for photo in (left, right)]
    whole = torch.cat(pair, 3)
    try:
        classify(model, whole)
    except (RuntimeError, AfmiError):
        width = pair[0].shape[3]
        whole = torch.cat([image[..., width // 4 : width // 4 + width // 2] for image in pair], 3)
    name, source = f"{left.name}+{right.name}", f"{left.source} | {right.source}"
    return Photo(whole, name, source, left.target)


def _out_of_folder(request: Request, model: Classifier, wanted: Sequence[str]) -> list[Photo]:
    folder = request.imagenet
    assert folder is not None  # `Experiment.run` has checked that pictures were given
    images = open_images(folder, model)
    root = folder if folder.is_dir() else folder.parent
    present = sorted(set(images.labels))
    known = {label: index for label in wanted if (index := _index(model, label)) in present}
    spare = [index for index in present if index not in known.values()]
    photos = []
    for label in wanted[: request.limit]:
        chosen = [known[label]] if label in known else spare
        photo = _first_right(model, images, root, chosen)
        if photo is None:
            break
        if label not in known:
            spare.remove(photo.target)
            request.report(
                f"{str(folder)!r} has no {label!r}, so {class_label(model, photo.target)!r} "
                "stands in"
            )
        photos.append(photo)
    return photos


def _index(model: Classifier, label: str) -> int | None:
    try:
        return find_class(model, label) if model.labels else None
    except TargetError:
        return None


def _first_right(
    model: Classifier, images: LabelledImages, folder: Path, classes: Sequence[int]
) -> Photo | None:
    """Return the first picture of these classes that is classified correctly, or else the first.

    Returns:
        None where there is no class.

    Raises:
        ImageError: when none of the pictures tried can be read.
    """
    first: Photo | None = None
    for target in classes[:TRIED]:
        positions = [i for i, label in enumerate(images.labels) if label == target]
        for position in positions[:TRIED]:
            try:
                logits = classify(model, images.read(position))
            except ImageError:
                continue
            file = folder / images.keys[position]
            photo = Photo(file, file.stem, str(file), target)
            if int(logits[0].argmax()) == target:
                return photo
            first = first or photo
    if classes and first is None:
        raise ImageError(f"none of the pictures tried in {str(folder)!r} can be read")
    return first
