"""Explain images in one call: files, arrays or tensors in, `Explanation` records out."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import (
    AfmiError,
    ImageError,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.explanation import Explanation, explanation_of
from afmi.methods import Method
from afmi.network.checking import check_dense, check_model
from afmi.network.classifier import Classifier, classify, find_class
from afmi.pictures.batches import neighbours
from afmi.pictures.finding import Unreadable
from afmi.pictures.images import ImageSource, read_image
from afmi.pictures.references import ReferenceLike
from afmi.pictures.transforms import to_tensor

__all__ = [
    "AnyImage",
    "ClassLike",
    "Explanation",
    "explain",
    "explain_classes",
    "explain_files",
    "explain_many",
    "prepare",
]

AnyImage: TypeAlias = ImageSource | Tensor
ClassLike: TypeAlias = int | str
MethodLike: TypeAlias = str | type[Method] | Method
T = TypeVar("T")
U = TypeVar("U")


def explain(
    model: nn.Module | None,
    image: AnyImage,
    target: ClassLike | None = None,
    *,
    method: MethodLike = "AFMI",
    layer: Any = None,
    reference: ReferenceLike | None = None,
    **parameters: Any,
) -> Explanation:
    """Explain why the network gave an image its class.

    Args:
        model: a `Classifier`, which resizes and normalises images as the network's training
            did and knows the labels. Any other ``nn.Module`` works too, but sees files as they
            are, in [0, 1] and in their own size: most trained networks then answer wrongly.
            None: the model of the method given.
        image: a file, PIL image, array (H, W, 3), or what else `afmi.images.read_image` takes; or
            a tensor (3, H, W) or (1, 3, H, W), which the model sees as it is.
        target: the class, as its index or label (``"collie"``). None: the class that the model
            predicts.
        method: a name (``"grad-cam"``), class or instance out of `afmi.methods`.
        layer: see `afmi.methods.LayerMethod`; for methods that take one.
        reference: a `Reference`, its name (``"white"``, a file), a picture, a tensor, …, as in
            `afmi.references.reference_of`; for methods that take one.
        **parameters: other hyperparameters of the method.

    Raises:
        ImageError: when the image cannot be read.
        TargetError: when there is no such class.
        UsageError: when the method does not take a parameter.

    Example:
        >>> network = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ... )
        >>> model = Classifier(network, labels=["cat", "dog", "newt", "owl"])
        >>> explain(model, torch.rand(3, 8, 8), "newt", method="grad-cam").label
        'newt'
    """
    chosen = _method(model, method, layer=layer, reference=reference, **parameters)
    item = _item(chosen.model, image, _target(chosen.model, target))
    return _explain_batch(chosen, [item])[0][0]


def explain_classes(
    model: nn.Module | None,
    image: AnyImage,
    classes: Sequence[ClassLike] | None = None,
    *,
    top_k: int | None = None,
    method: MethodLike = "AFMI",
    **parameters: Any,
) -> list[Explanation]:
    """Explain several classes of one image, with as few forward passes as possible.

    Args:
        model: as in `explain`.
        image: as in `explain`.
        classes: the classes, as indices or labels.
        top_k: in place of classes, explain this many of the most probable ones.
        method: as in `explain`.
        **parameters: as in `explain`, ``layer`` and ``reference`` among them.

    Returns:
        One explanation for each class, in the order given, or from the most probable class down.

    Raises:
        UsageError: when neither classes nor ``top_k`` is given, or both are; otherwise as for
            `explain`.

    Example:
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> image = torch.rand(3, 4, 4)
        >>> [one.label for one in explain_classes(model, image, ["dog", "cat"], method="gradient")]
        ['dog', 'cat']
    """
    chosen = _method(model, method, **parameters)
    if classes is None and top_k is None:
        raise UsageError(
            "expected classes or top_k, got neither; explain takes the predicted class"
        )
    indices = _class_indices(chosen.model, classes, top_k)
    return _explain_batch(chosen, [_item(chosen.model, image, indices)], top_k)[0]


def explain_many(
    model: nn.Module | None,
    images: Iterable[AnyImage],
    targets: Sequence[ClassLike | None] | ClassLike | None = None,
    *,
    method: MethodLike = "AFMI",
    batch_size: int = 8,
    **parameters: Any,
) -> Iterator[Explanation]:
    """Explain images one batch at a time, each read when its turn comes.

    Args:
        model: as in `explain`.
        images: each as in `explain`.
        targets: the class of each image, or one for all. None, for all or for one: the class that
            the model predicts.
        method: as in `explain`.
        batch_size: how many images go through the network at once. Only neighbours of one shape
            do, which behind a `Classifier`'s crop all have.
        **parameters: as in `explain`, ``layer`` and ``reference`` among them.

    Yields:
        The explanation of each image, in order.

    Raises:
        TargetError: when there is no such class, or not one for each image; otherwise as for
            `explain`.

    Example:
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> explanations = explain_many(model, torch.rand(3, 3, 4, 4), "dog", method="gradient")
        >>> [explanation.label for explanation in explanations]
        ['dog', 'dog', 'dog']
    """
    chosen = _method(model, method, **parameters)
    _check_count("batch_size", batch_size)
    items: Iterator[_Item]
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        if isinstance(images, Sized) and len(images) != len(targets):
            raise TargetError(
                f"expected one class for each of {len(images)} images, got {len(targets)}; None "
                "stands for the predicted class"
            )
        classes = [_target(chosen.model, target) for target in targets]
        items = (_item(chosen.model, *pair) for pair in _paired(images, classes))
    else:
        target = _target(chosen.model, targets)
        items = (_item(chosen.model, image, target) for image in images)
    return (explanations[0] for explanations in _explain_items(chosen, items, batch_size))


def explain_files(
    model: nn.Module | None,
    paths: Iterable[str | os.PathLike[str]],
    classes: Sequence[ClassLike] | None = None,
    *,
    top_k: int | None = None,
    method: MethodLike = "AFMI",
    batch_size: int = 8,
    **parameters: Any,
) -> Iterator[list[Explanation] | Unreadable]:
    """Explain many files, one batch in memory at a time; a bad file does not stop the rest.

    Args:
        model: as in `explain`.
        paths: the files, e.g. from `afmi.find_images`; read when their turn comes.
        classes: the classes to explain for every file. None: the predicted one.
        top_k: in place of classes, explain this many of the most probable ones.
        method: as in `explain`.
        batch_size: as in `explain_many`.
        **parameters: as in `explain`, ``layer`` and ``reference`` among them.

    Yields:
        For each path in order the explanations, one for each class, or what is wrong with it.
    """
    chosen = _method(model, method, **parameters)
    _check_count("batch_size", batch_size)
    indices = _class_indices(chosen.model, classes, top_k)
    items = (_file_item(chosen.model, Path(path), indices) for path in paths)
    return _explain_items(chosen, items, batch_size, top_k)


@dataclass(frozen=True)
class _Item:
    """An image on its way into the network: (1, C, H, W), its file, the classes to explain."""

    inputs: Tensor
    source: str | None
    classes: tuple[int, ...] | None


def _item(model: nn.Module, image: AnyImage, classes: tuple[int, ...] | None) -> _Item:
    source = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
    return _Item(prepare(model, image), source, classes)


def _file_item(model: nn.Module, path: Path, classes: tuple[int, ...] | None) -> _Item | Unreadable:
    try:
        image = read_image(path)
    except ImageError as error:
        return Unreadable(path, str(error))
    try:
        return _Item(prepare(model, image), str(path), classes)
    except AfmiError as error:
        # A shape so extreme that the resized image would be huge, for one.
        return Unreadable(path, f"{str(path)!r} cannot be prepared for the network: {error}")


def _paired(images: Iterable[T], classes: Iterable[U]) -> Iterator[tuple[T, U]]:
    """Pair images, which may be read one by one, with as many classes."""
    end: Any = object()
    for count, (image, target) in enumerate(zip_longest(images, classes, fillvalue=end)):
        if image is end or target is end:
            shorter, longer = ("images", "classes") if image is end else ("classes", "images")
            raise TargetError(
                f"expected one class for each image, got {count} {shorter} and more {longer}"
            )
        yield image, target


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise UsageError(f"expected a whole number from 1 as {name}, got {value!r}")


def _target(model: nn.Module, target: ClassLike | None) -> tuple[int, ...] | None:
    return None if target is None else (_class_index(model, target),)


def _class_indices(
    model: nn.Module, classes: Sequence[ClassLike] | None, top_k: int | None
) -> tuple[int, ...] | None:
    _check_count("top_k", top_k)
    if classes is None:
        return None
    if top_k is not None:
        raise UsageError("expected classes or top_k, got both; leave one out")
    if isinstance(classes, str) or not len(classes):
        raise UsageError(f"expected a list of classes, got {classes!r}")
    return tuple(_class_index(model, one) for one in classes)


def _method(model: nn.Module | None, method: MethodLike, **parameters: Any) -> Method:
    """Return the method that was meant, with the parameters that were given."""
    given = {name: value for name, value in parameters.items() if value is not None}
    cls: Any = method
    if isinstance(method, str):
        cls, in_text = specs.read(method, Method, model=model)
        given = in_text | given
    if isinstance(cls, Method):
        if model is not None and model is not cls.model:
            raise UsageError(
                f"the {cls.name} given explains another model; pass None as model, or the class "
                f"{type(cls).__name__} as method"
            )
    elif not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UsageError(f"expected a method's name, class or instance, got {method!r}")
    else:
        check_model(model)
    for name in given:
        specs.check_parameter(cls if isinstance(cls, type) else type(cls), name)
    if isinstance(cls, Method):
        return dataclasses.replace(cls, **given) if given else cls
    return cls(model, **given)  # type: ignore[arg-type]


def _class_index(model: nn.Module, wanted: Any) -> int:
    if isinstance(wanted, str):
        return find_class(model, wanted)
    try:
        if isinstance(wanted, (bool, np.bool_)):
            raise TypeError
        return find_class(model, operator.index(wanted))
    except (TypeError, RuntimeError):  # the latter from tensors without numbers
        raise TargetError(
            f"expected a class's index or label, got {wanted!r}; explain_classes takes several"
        ) from None


def prepare(model: nn.Module, image: Any) -> Tensor:
    """Return what the network is to see, (1, C, H, W), on the model's device.

    Args:
        model: as in `explain`.
        image: as in `explain`.
    """
    if isinstance(image, Tensor):
        return _prepare_tensor(model, image)
    if isinstance(image, (list, tuple)):
        raise UsageError(f"expected one image, got {len(image)}; explain_many takes several")
    picture = read_image(image)
    if isinstance(model, Classifier):
        return model.prepare(picture)
    return _like_model(model, to_tensor(picture)[None])


def _like_model(model: nn.Module, images: Tensor) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images if like is None else images.to(like)


def _prepare_tensor(model: nn.Module, image: Tensor) -> Tensor:
    check_dense(image)
    batch = image[None] if image.dim() == 3 else image
    fits = batch.dim() == 4 and batch.shape[0] == 1 and batch.shape[1] in (1, 3)
    if not fits or 0 in batch.shape or not batch.is_floating_point():
        advice = "convert it with image.float()"
        if image.dtype == torch.uint8:
            advice = "divide bytes by 255"
        elif batch.dim() == 4 and batch.shape[0] != 1:
            advice = "explain_many takes several"
        elif not fits:
            advice = "Method.attribute takes any number of channels, as (N, C, H, W)"
        raise ShapeError(
            "expected one image as a floating-point tensor (3, H, W) or (1, 3, H, W), got "
            f"{tuple(image.shape)} {image.dtype}; {advice}"
        )
    if isinstance(model, Classifier):
        low, high = (float(value) for value in batch.detach().aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
            raise UsageError(
                f"expected pixels in [0, 1], got {low:g} to {high:g}; a Classifier normalises "
                "inside, so pass images that are not normalised yet"
            )
    return _like_model(model, batch.detach())


def _explain_items(
    method: Method,
    items: Iterable[_Item | T],
    batch_size: int,
    top_k: int | None = None,
) -> Iterator[list[Explanation] | T]:
    """Explain items as they come, in batches; what is no item is passed on in its place."""

    def shape(item: _Item | T) -> tuple[object, ...] | None:
        if not isinstance(item, _Item):
            return None
        return item.inputs.shape, None if item.classes is None else len(item.classes)

    for batch in neighbours(items, batch_size, shape):
        results = iter(_explain_batch(method, [i for i in batch if isinstance(i, _Item)], top_k))
        for item in batch:
            yield next(results) if isinstance(item, _Item) else item


def _explain_batch(
    method: Method, items: Sequence[_Item], top_k: int | None = None
) -> list[list[Explanation]]:
    """Explain images of one shape, each for as many classes, with as few passes as possible."""
    if not items:
        return []
    model, inputs = method.model, torch.cat([item.inputs for item in items])
    if items[0].classes is not None:
        classes = torch.tensor(
            [item.classes for item in items], dtype=torch.int64, device=inputs.device
        ).T
        attributions = method.attributions(inputs, classes)
    elif top_k is None:
        attributions = [method.attribution(inputs)]
    else:
        logits = classify(model, inputs)
        if top_k > logits.shape[1]:
            raise UsageError(f"expected top_k up to the {logits.shape[1]} classes, got {top_k}")
        # Stable, so that among equals the first comes first, as with arg-max.
        ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :top_k].T
        attributions = method.attributions(inputs, ranked)
    logits = attributions[0].logits
    if logits is None:
        logits = classify(model, inputs)
    return [
        [
            explanation_of(method, one, row, item.inputs[0], logits[row], item.source)
            for one in attributions
        ]
        for row, item in enumerate(items)
    ]
