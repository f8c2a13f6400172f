"""Explain images in one call: files, arrays or tensors in, `Explanation` records out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import Tensor, nn

from afmi import specs
from afmi.batching import AnyImage, Item, Unexplained, explain_batch, explain_items, items_of
from afmi.errors import TargetError, UsageError
from afmi.explanation import Explanation, Gallery
from afmi.methods import Method
from afmi.models import load_model
from afmi.network.arguments import ForwardArguments, rows_of
from afmi.network.checking import check_model
from afmi.network.classifier import find_class, with_arguments
from afmi.network.labels import class_index
from afmi.network.wrappers import runnable
from afmi.pictures.references import ReferenceLike
from afmi.progress import counted
from afmi.stores import RemotePath
from afmi.targets import Class, OneTarget, Target, target_in_text

if TYPE_CHECKING:
    from afmi.metrics.fmi_prototypes import FMIPrototypes

__all__ = [
    "AnyImage",
    "Explanation",
    "MethodLike",
    "PrototypesLike",
    "Unexplained",
    "checked_target",
    "explain",
    "explain_classes",
    "explain_files",
    "explain_many",
    "method_of",
]

MethodLike: TypeAlias = str | type[Method] | Method
PrototypesLike: TypeAlias = "str | os.PathLike[str] | RemotePath | FMIPrototypes"
T = TypeVar("T")
U = TypeVar("U")


def explain(
    model: nn.Module | AnyImage | None = None,
    image: AnyImage | None = None,
    target: OneTarget | None = None,
    *,
    method: MethodLike = "AFMI",
    layer: Any = None,
    reference: ReferenceLike | None = None,
    forward_arguments: ForwardArguments | None = None,
    prototypes: PrototypesLike | None = None,
    **parameters: Any,
) -> Explanation:
    """Explain why the network gave an image its class, or any other score.

    Args:
        model: a `Classifier`, which resizes and normalises images as the network's training
            did and knows the labels; `Classifier.of` makes one of a network in hand. Any other
            ``nn.Module`` works too, but sees files as they are, in [0, 1] and in their own size:
            most trained networks then answer wrongly, and a warning says so.
            None, or left out: the model of the method given, or else the one that
            `afmi.load_model` gives without a name, which every such call loads anew.
        image: a file, PIL image, array (H, W, C), or what else `afmi.images.read_pixels` takes,
            read in as many channels as the model has; or a tensor (C, H, W) or (1, C, H, W), which
            the model sees as it is. Where no model is given it may come first:
            ``explain("dog.jpg")``.
        target: a class, as its index or label (``"collie"``); a target out of `afmi.targets`, such
            as ``Difference("collie", "kelpie")``, or its text (``"output:index=3"``); or a function
            of the model's outputs. None: the class that the model predicts.
        method: a name (``"grad-cam"``), class or instance out of `afmi.methods`.
        layer: see `afmi.methods.LayerMethod`; for methods that take one.
        reference: a `Reference`, its name (``"white"``, a file), a picture, a tensor, …, as in
            `afmi.references.reference_of`; for methods that take one.
        forward_arguments: what else the network takes, as in `Classifier`.
        prototypes: with A-FMI: what `afmi.fmi_prototypes` made of the same network, layer and
            reference, or its file. `Explanation.prototypes` then says for which class the image's
            feature map importance is usual.
        **parameters: other hyperparameters of the method.

    Raises:
        ImageError: when the image cannot be read.
        TargetError: when there is no such class.
        UsageError: when the method does not take a parameter, there is no image, or the prototypes
            do not fit.

    Example:
        >>> import torch
        >>> from afmi import Classifier
        >>> network = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ... )
        >>> model = Classifier(network, labels=["cat", "dog", "newt", "owl"])
        >>> explain(model, torch.rand(3, 8, 8), "newt", method="grad-cam").label
        'newt'
    """
    network, image = _model_and_image(model, image)
    parameters |= {"layer": layer, "reference": reference}
    chosen = method_of(network, method, forward_arguments, **parameters)
    item = Item.of(chosen.model, image, _target(chosen.model, target))
    return explain_batch(chosen, [item], prototypes=_prototypes(chosen, prototypes))[0][0]


def explain_classes(
    model: nn.Module | None,
    image: AnyImage,
    classes: Sequence[OneTarget] | None = None,
    *,
    top_k: int | None = None,
    method: MethodLike = "AFMI",
    prototypes: PrototypesLike | None = None,
    **parameters: Any,
) -> Gallery[Explanation]:
    """Explain several classes of one image, with as few forward passes as possible.

    Args:
        model: as in `explain`.
        image: as in `explain`.
        classes: the classes, as indices or labels, or other targets as in `explain`.
        top_k: in place of classes, explain this many of the most probable ones.
        method: as in `explain`.
        prototypes: as in `explain`.
        **parameters: as in `explain`, ``layer`` and ``forward_arguments`` among them.

    Returns:
        One explanation for each class, in the order given, or from the most probable class down: a
        list that shows itself in a notebook.

    Raises:
        UsageError: when neither classes nor ``top_k`` is given, or both are; otherwise as for
            `explain`.

    Example:
        >>> import torch
        >>> from afmi import Classifier
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> image = torch.rand(3, 4, 4)
        >>> [one.label for one in explain_classes(model, image, ["dog", "cat"], method="gradient")]
        ['dog', 'cat']
    """
    chosen = method_of(model, method, **parameters)
    if classes is None and top_k is None:
        raise UsageError(
            "expected classes or top_k, got neither; explain takes the predicted class"
        )
    indices = _targets(chosen.model, classes, top_k)
    items = [Item.of(chosen.model, image, indices)]
    return Gallery(explain_batch(chosen, items, top_k, _prototypes(chosen, prototypes))[0])


def explain_many(
    model: nn.Module | None,
    images: Iterable[AnyImage],
    targets: Sequence[OneTarget | None] | OneTarget | None = None,
    *,
    method: MethodLike = "AFMI",
    batch_size: int = 8,
    forward_arguments: ForwardArguments | None = None,
    prototypes: PrototypesLike | None = None,
    progress: bool | None = None,
    **parameters: Any,
) -> Iterator[Explanation | Unexplained]:
    """Explain images one batch at a time, each read when its turn comes; a bad one does not stop
    the rest.

    Args:
        model: as in `explain`.
        images: each as in `explain`.
        targets: the target of each image as in `explain`, or one for all. None, for all or for one:
            the class that the model predicts.
        method: as in `explain`.
        batch_size: how many images go through the network at once. Only neighbours of one shape
            do, which behind a `Classifier`'s crop all have.
        forward_arguments: what else the network takes, as in `Classifier`. Where a tensor has
            several rows, these are the images', which are explained one by one, each with its own.
        prototypes: as in `explain`.
        progress: whether to show how far it has come. None: in a terminal and in a notebook.
        **parameters: as in `explain`, ``layer`` and ``forward_arguments`` among them.

    Yields:
        For each image in order its explanation, or what is wrong with it: an image that cannot be
        read, or on which the network or the method fails, is an `Unexplained`.

    Raises:
        TargetError: when there is no such class, or not one for each image.
        AfmiError: when the network, the method or an option cannot be used at all: none of the
            images up to there could be explained.
        DeviceError: when a device, such as a GPU, works no longer.

    Example:
        >>> import torch
        >>> from afmi import Classifier
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), labels=["cat", "dog"])
        >>> explanations = explain_many(model, torch.rand(3, 3, 4, 4), "dog", method="gradient")
        >>> [explanation.label for explanation in explanations]
        ['dog', 'dog', 'dog']
    """
    count = len(images) if isinstance(images, Sized) else None
    rows = None if forward_arguments is None else rows_of(forward_arguments, count)
    shared = forward_arguments if rows is None else None
    chosen = method_of(model, method, shared, **parameters)
    _check_count("batch_size", batch_size)
    known = _prototypes(chosen, prototypes)
    pairs: Iterator[tuple[AnyImage, tuple[OneTarget, ...] | None]]
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        if isinstance(images, Sized) and len(images) != len(targets):
            raise TargetError(
                f"expected one class for each of {len(images)} images, got {len(targets)}; None "
                "stands for the predicted class"
            )
        classes = [_target(chosen.model, target) for target in targets]
        pairs = _paired(images, classes)
    else:
        target = _target(chosen.model, targets)
        pairs = ((image, target) for image in images)
    items = items_of(chosen.model, pairs)
    if rows is not None:
        items = (
            item if isinstance(item, Unexplained) else replace(item, arguments=row)
            for item, row in _paired(items, rows, "rows of forward_arguments")
        )
    results = explain_items(chosen, items, batch_size, prototypes=known)
    return (
        result if isinstance(result, Unexplained) else result[0]
        for result in counted(results, "images explained", count, progress)
    )


def explain_files(
    model: nn.Module | None,
    paths: Iterable[str | os.PathLike[str]],
    classes: Sequence[OneTarget] | None = None,
    *,
    top_k: int | None = None,
    method: MethodLike = "AFMI",
    batch_size: int = 8,
    prototypes: PrototypesLike | None = None,
    **parameters: Any,
) -> Iterator[list[Explanation] | Unexplained]:
    """Explain many files, one batch in memory at a time; a bad file does not stop the rest.

    Args:
        model: as in `explain`.
        paths: the files, e.g. from `afmi.find_images`; read when their turn comes.
        classes: the targets to explain for every file. None: the predicted class.
        top_k: in place of classes, explain this many of the most probable ones.
        method: as in `explain`.
        batch_size: as in `explain_many`.
        prototypes: as in `explain`.
        **parameters: as in `explain`, ``layer`` and ``forward_arguments`` among them.

    Yields:
        For each path in order the explanations, one for each class, or what is wrong with it.

    Raises:
        AfmiError: as for `explain_many`.
    """
    chosen = method_of(model, method, **parameters)
    _check_count("batch_size", batch_size)
    indices = _targets(chosen.model, classes, top_k)
    items = items_of(chosen.model, ((Path(path), indices) for path in paths))
    return explain_items(chosen, items, batch_size, top_k, _prototypes(chosen, prototypes))


def _paired(
    images: Iterable[T], classes: Iterable[U], what: str = "classes"
) -> Iterator[tuple[T, U]]:
    """Pair images, which may be read one by one, with as many classes, or what else they have."""
    end: Any = object()
    for count, (image, target) in enumerate(zip_longest(images, classes, fillvalue=end)):
        if image is end or target is end:
            shorter, longer = ("images", what) if image is end else (what, "images")
            raise TargetError(
                f"expected {what} for as many images, got {count} {shorter} and more {longer}"
            )
        yield image, target


def _prototypes(method: Method, given: PrototypesLike | None) -> FMIPrototypes | None:
    if given is None:
        return None
    # Only now: without prototypes no metric is loaded, and no method but the one that is asked for.
    from afmi.methods.feature_maps.afmi import AFMI
    from afmi.metrics.fmi_prototypes import FMIPrototypes

    if not isinstance(method, AFMI):
        raise UsageError(
            "expected the method A-FMI where prototypes are given, since they compare feature map "
            f"importance, got {method.name}; leave them out, or choose A-FMI"
        )
    return given if isinstance(given, FMIPrototypes) else FMIPrototypes.load(given)


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise UsageError(f"expected a whole number from 1 as {name}, got {value!r}")


def _target(model: nn.Module, target: OneTarget | None) -> tuple[OneTarget, ...] | None:
    return None if target is None else (checked_target(model, target),)


def _targets(
    model: nn.Module, classes: Sequence[OneTarget] | None, top_k: int | None
) -> tuple[OneTarget, ...] | None:
    _check_count("top_k", top_k)
    if classes is None:
        return None
    if top_k is not None:
        raise UsageError("expected classes or top_k, got both; leave one out")
    if isinstance(classes, str) or not len(classes):
        raise UsageError(f"expected a list of classes, got {classes!r}")
    return tuple(checked_target(model, one) for one in classes)


def method_of(
    model: nn.Module | None,
    method: MethodLike,
    forward_arguments: ForwardArguments | None = None,
    **parameters: Any,
) -> Method:
    """Return the method that was meant, with the parameters that were given."""
    chosen = _plain_method(model, method, **parameters)
    if forward_arguments is None:
        return chosen
    return chosen.on(with_arguments(chosen.model, forward_arguments))


def _model_and_image(
    model: nn.Module | AnyImage | None, image: AnyImage | None
) -> tuple[Any, AnyImage]:
    """Return the model, or None where what came first is the image."""
    if isinstance(model, (str, os.PathLike)) and os.path.isfile(model) and isinstance(image, str):
        raise UsageError(
            f"expected a model before the image, got the file {os.fspath(model)!r}; to explain it "
            f"by the network that load_model() gives, pass the class as target={image!r}"
        )
    if image is not None:
        return model, image
    if model is None or isinstance(model, nn.Module):
        raise UsageError(
            "expected an image, got none; pass explain(model, image), or explain(image) for the "
            "network that load_model() gives"
        )
    return None, model


def _plain_method(model: nn.Module | None, method: MethodLike, **parameters: Any) -> Method:
    given = {name: value for name, value in parameters.items() if value is not None}
    cls: Any = method
    if model is None and not isinstance(method, Method):
        model = load_model()
    if isinstance(method, str):
        cls, in_text = specs.read(method, Method, model=model)
        given = in_text | given
    if isinstance(cls, Method):
        if model is not None and runnable(model) is not cls.model:
            raise UsageError(
                f"the {cls.name} given explains another model; pass None as model, or the class "
                f"{type(cls).__name__} as method"
            )
    elif not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UsageError(f"expected a method's name, class or instance, got {method!r}")
    else:
        check_model(runnable(model))
    for name in given:
        specs.check_parameter(cls if isinstance(cls, type) else type(cls), name)
    if isinstance(cls, Method):
        return replace(cls, **given) if given else cls
    return cls(model, **given)  # type: ignore[arg-type]


def checked_target(model: nn.Module, wanted: Any) -> OneTarget:
    """Return a target, a class by its index."""
    if isinstance(wanted, str):
        wanted = target_in_text(model, wanted)
    if isinstance(wanted, Class):
        return wanted.index(model)
    if isinstance(wanted, Target) or (callable(wanted) and not isinstance(wanted, Tensor)):
        return wanted  # type: ignore[return-value]
    try:
        return find_class(model, class_index(wanted))
    except TypeError:
        raise TargetError(
            f"expected a class's index or label, a target or a function of the outputs, got "
            f"{wanted!r}; explain_classes takes several"
        ) from None
