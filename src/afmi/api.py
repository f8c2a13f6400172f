"""Explain pictures in one call: files, arrays or tensors in, `Explanation` records out."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from afmi.errors import (
    AfmiError,
    ImageError,
    ModelError,
    ShapeError,
    TargetError,
    UsageError,
    near_matches,
)
from afmi.explanation import Explanation
from afmi.methods import Attribution, Method, method_named
from afmi.methods.base import classify
from afmi.network.classifier import Classifier, class_label, find_class
from afmi.pictures.finding import Unreadable, read_images
from afmi.pictures.images import ImageSource, read_image
from afmi.pictures.references import Reference, reference_named
from afmi.pictures.transforms import to_tensor

__all__ = ["AnyImage", "ClassLike", "Explanation", "explain", "explain_files", "prepare"]

AnyImage: TypeAlias = ImageSource | Tensor
ClassLike: TypeAlias = int | str
MethodLike: TypeAlias = str | type[Method] | Method


@overload
def explain(
    model: nn.Module | None,
    image: AnyImage,
    target: ClassLike | None = None,
    *,
    method: MethodLike = "AFMI",
    top_k: None = None,
    layer: Any = None,
    reference: Reference | str | None = None,
    batch_size: int = 8,
    **parameters: Any,
) -> Explanation: ...


@overload
def explain(
    model: nn.Module | None,
    image: AnyImage | Sequence[AnyImage],
    target: ClassLike | Sequence[ClassLike] | None = None,
    *,
    method: MethodLike = "AFMI",
    top_k: int | None = None,
    layer: Any = None,
    reference: Reference | str | None = None,
    batch_size: int = 8,
    **parameters: Any,
) -> Any: ...


def explain(
    model: nn.Module | None,
    image: AnyImage | Sequence[AnyImage],
    target: ClassLike | Sequence[ClassLike] | None = None,
    *,
    method: MethodLike = "AFMI",
    top_k: int | None = None,
    layer: Any = None,
    reference: Reference | str | None = None,
    batch_size: int = 8,
    **parameters: Any,
) -> Any:
    """Explain why the network gave a picture its class.

    Args:
        model: a `Classifier`, which resizes and normalises pictures as the network's training
            did and knows the labels. Any other ``nn.Module`` works too, but sees files as they
            are, in [0, 1] and in their own size: most trained networks then answer wrongly.
            None: the model of the method given.
        image: a file, PIL image, array (H, W, 3), or what else `afmi.images.read_image` takes; or
            a tensor (3, H, W) or (1, 3, H, W), which the model sees as it is. A list of these
            gives a list of results.
        target: the class, as its index or label (``"collie"``); for a list of pictures also a
            list of classes, one for each. None: the class that the model predicts.
        method: a name (``"grad-cam"``), class or instance out of `afmi.methods`.
        top_k: explain this many of the most probable classes instead, the likeliest first.
        layer: see `afmi.methods.LayerMethod`; for methods that take one.
        reference: a `Reference` or its name (``"white"``, a file); for methods that take one.
        batch_size: how many of a list's pictures go through the network at once.
        **parameters: other hyperparameters of the method.

    Returns:
        One `Explanation`; with ``top_k`` a list of them; for a list of pictures a list of these.

    Raises:
        ImageError: when a picture cannot be read.
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
    _check_counts(target, top_k, batch_size)
    several = isinstance(image, (list, tuple))
    images: Sequence[Any] = image if isinstance(image, (list, tuple)) else [image]
    if not isinstance(target, (list, tuple)):
        classes = [target] * len(images)
    elif several and len(target) == len(images):
        classes = list(target)
    else:
        raise TargetError(
            f"expected one class for each of {len(images)} pictures, got {len(target)}; "
            "top_k explains several classes of one picture"
        )
    wanted = [None if one is None else [_class_index(chosen.model, one)] for one in classes]
    items = (
        _Item(prepare(chosen.model, i), _source(i), w) for i, w in zip(images, wanted, strict=True)
    )
    results: list[Any] = list(_explained(chosen, items, top_k, batch_size))
    if top_k is None:
        results = [found[0] for found in results]
    return results if several else results[0]


def explain_files(
    model: nn.Module | None,
    paths: Iterable[str | os.PathLike[str]],
    *,
    targets: Sequence[ClassLike] | None = None,
    top_k: int | None = None,
    method: MethodLike = "AFMI",
    batch_size: int = 8,
    **parameters: Any,
) -> Iterator[list[Explanation] | Unreadable]:
    """Explain many files, one batch in memory at a time; a bad file does not stop the rest.

    Args:
        model: as in `explain`.
        paths: the files, e.g. from `afmi.find_images`; read when their turn comes.
        targets: classes to explain for every file; None: the predicted one.
        top_k: explain this many of the most probable classes instead.
        method: as in `explain`.
        batch_size: how many pictures go through the network at once. Only neighbours of equal
            size do, which behind a `Classifier`'s crop all are.
        **parameters: as in `explain`, ``layer`` and ``reference`` among them.

    Yields:
        For each path in order the explanations, one for each class, or what is wrong with it.
    """
    chosen = _method(model, method, **parameters)
    _check_counts(targets, top_k, batch_size)
    if targets is not None and (isinstance(targets, str) or not len(targets)):
        raise UsageError(f"expected a list of classes as targets, got {targets!r}")
    wanted = None if targets is None else [_class_index(chosen.model, one) for one in targets]
    return _explained(chosen, _file_items(chosen.model, paths, wanted), top_k, batch_size)


@dataclass(frozen=True)
class _Item:
    """A picture on its way into the network: tensor (1, 3, H, W), file, classes to explain."""

    prepared: Tensor
    source: str | None
    classes: list[int] | None


def _check_counts(target: object, top_k: int | None, batch_size: int) -> None:
    if target is not None and top_k is not None:
        raise UsageError("expected a target or top_k, got both; leave one out")
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise UsageError(f"expected a whole number from 1 as {name}, got {value!r}")


def _method(model: nn.Module | None, method: MethodLike, **parameters: Any) -> Method:
    """Return the method that was meant, with the parameters that were given."""
    given = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(given.get("reference"), str):
        given["reference"] = reference_named(given["reference"])
    cls = method_named(method) if isinstance(method, str) else method
    if isinstance(cls, Method):
        if model is not None and model is not cls.model:
            raise UsageError(
                f"the {cls.name} given explains another model; pass None as model, or the class "
                f"{type(cls).__name__} as method"
            )
    elif not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UsageError(f"expected a method's name, class or instance, got {method!r}")
    elif not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a model that is an nn.Module, got {model!r}; "
            "use afmi.load_model(name) or afmi.Classifier(network)"
        )
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "model"]
    for name in given:
        if name not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise UsageError(
                f"{cls.name} takes no parameter {name!r}{near_matches(name, names) or '; ' + takes}"
            )
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
    except TypeError:
        raise TargetError(f"expected a class's index or label, got {wanted!r}") from None


def _source(image: Any) -> str | None:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def prepare(model: nn.Module, image: Any) -> Tensor:
    """Return what the network is to see, (1, C, H, W), on the model's device.

    Args:
        model: as in `explain`.
        image: one picture, as in `explain`.
    """
    if isinstance(image, Tensor):
        return _prepare_tensor(model, image)
    picture = read_image(image)
    if isinstance(model, Classifier):
        return model.prepare(picture)
    return _like_model(model, to_tensor(picture)[None])


def _like_model(model: nn.Module, images: Tensor) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images if like is None else images.to(like)


def _prepare_tensor(model: nn.Module, image: Tensor) -> Tensor:
    batch = image[None] if image.dim() == 3 else image
    fits = batch.dim() == 4 and batch.shape[0] == 1 and batch.shape[1] in (1, 3)
    if not fits or 0 in batch.shape or not batch.is_floating_point():
        raise ShapeError(
            "expected one picture as a floating-point tensor (3, H, W) or (1, 3, H, W), got "
            f"{tuple(image.shape)} {image.dtype}; pass several as a list, divide bytes by 255"
        )
    if isinstance(model, Classifier):
        low, high = (float(value) for value in batch.detach().aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
            raise UsageError(
                f"expected pixels in [0, 1], got {low:g} to {high:g}; a Classifier normalises "
                "inside, so pass pictures that are not normalised yet"
            )
    return _like_model(model, batch.detach())


def _file_items(
    model: nn.Module, paths: Iterable[str | os.PathLike[str]], classes: list[int] | None
) -> Iterator[_Item | Unreadable]:
    for path, picture in read_images(paths):
        if isinstance(picture, ImageError):
            yield Unreadable(path, str(picture))
            continue
        try:
            prepared = prepare(model, picture)
        except AfmiError as error:
            # A shape so extreme that the resized picture would be huge, for one.
            yield Unreadable(path, f"{str(path)!r} cannot be prepared for the network: {error}")
            continue
        yield _Item(prepared, str(path), classes)


def _explained(
    method: Method, items: Iterable[_Item | Unreadable], top_k: int | None, batch_size: int
) -> Iterator[Any]:
    """Explain items as they come, in batches of neighbours of one shape; keep their order."""
    waiting: list[_Item | Unreadable] = []
    shape: object = None
    for item in items:
        fits = isinstance(item, Unreadable) or shape in (None, item.prepared.shape)
        if waiting and (len(waiting) == batch_size or not fits):
            yield from _batch(method, waiting, top_k)
            waiting, shape = [], None
        waiting.append(item)
        if isinstance(item, _Item):
            shape = item.prepared.shape
    yield from _batch(method, waiting, top_k)


def _batch(method: Method, waiting: list[_Item | Unreadable], top_k: int | None) -> list[Any]:
    items = [item for item in waiting if isinstance(item, _Item)]
    found: Iterator[list[Explanation]] = iter(())
    if items:
        inputs = torch.cat([item.prepared for item in items])
        classes = None
        if items[0].classes is not None:
            # Either each item has classes or none, and all have as many.
            classes = torch.tensor([item.classes for item in items], device=inputs.device).T
        attributions = _attributions(method, inputs, classes, top_k)
        found = iter([_record(method, item, n, attributions) for n, item in enumerate(items)])
    return [item if isinstance(item, Unreadable) else next(found) for item in waiting]


def _attributions(
    method: Method, inputs: Tensor, classes: Tensor | None, top_k: int | None
) -> list[Attribution]:
    """Explain several classes of the same pictures, with as few forward passes as may be.

    Args:
        method: what to explain with.
        inputs: images (N, C, H, W).
        classes: int64 (T, N), or None for the predicted ones.
        top_k: how many of the most probable classes, or None.

    Returns:
        T attributions of N images, with logits.
    """
    if classes is not None:
        found = method.explain_classes(inputs, classes)
    elif top_k is None:
        found = [method.explain(inputs)]
    else:
        logits = classify(method.model, inputs)
        if top_k > logits.shape[1]:
            raise UsageError(f"expected top_k up to the {logits.shape[1]} classes, got {top_k}")
        # Stable, so that among equals the first comes first, as with arg-max.
        ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :top_k].T
        found = method.explain_classes(inputs, ranked)
    logits = found[0].logits
    if logits is None:
        logits = classify(method.model, inputs)
    return [dataclasses.replace(one, logits=logits) for one in found]


def _record(
    method: Method, item: _Item, row: int, attributions: list[Attribution]
) -> list[Explanation]:
    """Return the explanations of one picture, which is row ``row`` of the batch."""
    model, logits = method.model, attributions[0].logits
    assert logits is not None
    probabilities = logits[row].detach().double().softmax(0)
    predicted = int(logits[row].argmax())
    # The layer apart: the record's own `layer` says which it was.
    names = [f.name for f in dataclasses.fields(method) if f.name not in ("model", "layer")]
    reference = getattr(method, "reference", None)
    records = []
    for attribution in attributions:
        target = int(attribution.target[row])
        residual = attribution.residual
        records.append(
            Explanation(
                image=_for_display(item.prepared[0]),
                map=attribution.maps[row, 0].detach().cpu().clone(),
                target=target,
                label=class_label(model, target),
                probability=float(probabilities[target]),
                predicted=predicted,
                predicted_label=class_label(model, predicted),
                predicted_probability=float(probabilities[predicted]),
                method=method.name,
                parameters={name: _plain(getattr(method, name)) for name in names},
                layer=None if attribution.layer is None else str(attribution.layer),
                reference=None if reference is None else str(reference),
                residual=None if residual is None else float(residual[row]),
                model=str(getattr(model, "name", type(model).__name__)),
                source=item.source,
            )
        )
    return records


def _for_display(image: Tensor) -> Tensor:
    """Return an image (3, H, W) in [0, 1]; a bare network's own range is stretched to that."""
    shown = image.detach().to("cpu", torch.float32, copy=True)
    low, high = float(shown.min()), float(shown.max())
    if low < -1e-3 or high > 1 + 1e-3:
        shown = (shown - low) / (high - low)
    return shown.clamp(0, 1).expand(3, -1, -1).contiguous()


def _plain(value: Any) -> Any:
    """Return a hyperparameter as JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Method):
        return {"kind": type(value).__name__} | {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name != "model"
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"kind": type(value).__name__, **own}
    return str(value) if not isinstance(value, nn.Module) else type(value).__name__
