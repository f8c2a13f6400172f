"""Explain images batch by batch: one that fails is named, and the others are explained."""

from __future__ import annotations

import math
import os
import traceback
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import (
    AfmiError,
    ImageError,
    LayerError,
    ModelError,
    OperationError,
    PreprocessingWarning,
    ShapeError,
    TargetError,
    UsageError,
    first_line,
)
from afmi.explanation import Explanation, explanation_of, shown_image, tile
from afmi.methods import Attribution, Method
from afmi.network.arguments import ForwardArguments
from afmi.network.checking import check_dense, first_convolution
from afmi.network.classifier import (
    classifier_of,
    classify,
    device_of,
    input_channels,
    shown_bands_of,
    with_arguments,
)
from afmi.network.devices import check_device
from afmi.network.fingerprint import remembered_fingerprint
from afmi.network.memory import TOO_LITTLE_MEMORY, is_out_of_memory
from afmi.network.outputs import Outputs, check_outputs
from afmi.network.trial import meaning_of
from afmi.network.wrappers import within
from afmi.pictures.batches import neighbours
from afmi.pictures.dimensions import FORMS
from afmi.pictures.images import ImageSource, read_channels
from afmi.pictures.transforms import to_tensor
from afmi.targets import OneTarget

if TYPE_CHECKING:
    from afmi.methods.feature_maps.afmi import AFMI
    from afmi.metrics.fmi_prototypes import FMIPrototypes, PrototypeMatches

__all__ = [
    "AnyImage",
    "Item",
    "Unexplained",
    "attributed_batch",
    "explain_batch",
    "explain_items",
    "items_of",
    "prepare",
]

AnyImage: TypeAlias = ImageSource | Tensor

# They speak of the network, the method, the options or a reference's file. Where an image has been
# explained, these can be used, so the error is about the image all the same.
_ABOUT_ALL = (ImageError, LayerError, ModelError, OperationError, TargetError, UsageError)


@dataclass(frozen=True)
class Unexplained:
    """An image of several that could not be read or explained.

    Attributes:
        index: its place among the images, from 0.
        source: its file; None for images from memory.
        reason: one line that names the image and says what is wrong.
    """

    index: int
    source: str | None
    reason: str

    def tile(self) -> str:
        """Return it as HTML for an `afmi.Gallery`."""
        return tile("", self.reason)


@dataclass(frozen=True)
class Item:
    """An image on its way into the network.

    Attributes:
        inputs: (1, C, *spatial).
        source: its file; None for images from memory.
        targets: to explain; None: the predicted class, or the most probable ones.
        index: its place among the images, from 0.
        arguments: what else the network takes with this image; None: nothing.
    """

    inputs: Tensor
    source: str | None
    targets: tuple[OneTarget, ...] | None
    index: int = 0
    arguments: ForwardArguments | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        image: AnyImage,
        targets: tuple[OneTarget, ...] | None,
        index: int = 0,
    ) -> Item:
        """Read and prepare an image."""
        return cls(prepare(model, image), _source(image), targets, index)


def _source(image: object) -> str | None:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def items_of(
    model: nn.Module, images: Iterable[tuple[AnyImage, tuple[OneTarget, ...] | None]]
) -> Iterator[Item | Unexplained]:
    """Yield images with their targets as they are read and prepared, each in its turn."""
    for index, (image, targets) in enumerate(images):
        try:
            yield Item.of(model, image, targets, index)
        except Exception as error:  # one bad image must not stop the rest
            source = _source(image)
            _check_device(model, index, source, "prepared for the network", error)
            if isinstance(error, ImageError) and source is not None:
                yield Unexplained(index, source, str(error))  # which names the file
            else:
                yield _unexplained(index, source, "prepared for the network", error)


def _check_device(
    model: nn.Module, index: int, source: str | None, what: str, error: Exception
) -> None:
    check_device(device_of(model), f"{_name(index, source)} was {what}", error)


def _name(index: int, source: str | None) -> str:
    return f"image {index}" if source is None else repr(source)


def _unexplained(index: int, source: str | None, what: str, error: Exception) -> Unexplained:
    name = _name(index, source)
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        text = TOO_LITTLE_MEMORY
    elif not isinstance(error, AfmiError):
        text = f"{type(error).__name__}: {first_line(error)}"
    return Unexplained(index, source, f"{name} cannot be {what}: {text}")


def prepare(model: nn.Module, image: Any) -> Tensor:
    """Return what the network is to see, (1, C, *spatial), on the model's device.

    Args:
        model: as in `afmi.explain`.
        image: as in `afmi.explain`.
    """
    if isinstance(image, Tensor):
        return _prepare_tensor(model, image)
    if isinstance(image, (list, tuple)):
        raise UsageError(f"expected one image, got {len(image)}; explain_many takes several")
    first = first_convolution(model)
    if first is not None and first[0] != 2:
        return _prepare_tensor(model, _tensor_of(image, first[0]))
    classifier = classifier_of(model)
    if classifier is not None:
        return classifier.prepare(image)
    _warn_of_unknown_preprocessing(model)
    return _like_model(model, to_tensor(read_channels(image, input_channels(model)))[None])


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _warn_of_unknown_preprocessing(model: nn.Module) -> None:
    """Warn once of a network that nobody said how to prepare pictures for."""
    network = within(model)
    if network in _warned:
        return
    _warned.add(network)
    name = type(network).__name__
    warnings.warn(
        f"{name} sees pictures in their own size with pixels in [0, 1], because how they are "
        "prepared for it is not known, and most trained networks then answer wrongly; pass "
        "afmi.Classifier.of(network), which asks timm, transformers or torchvision, or "
        "afmi.Classifier(network, mean=…, std=…, resize=…, crop=…)",
        PreprocessingWarning,
        stacklevel=2,
    )


def _like_model(model: nn.Module, images: Tensor) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images if like is None else images.to(like)


def _tensor_of(image: object, sides: int) -> Tensor:
    """Return the array of a signal or a volume as a tensor."""
    what = {1: "signal (C, L)", 3: "volume (C, D, H, W)"}[sides]
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "fiu":
        raise UsageError(
            f"expected one {what}, as a tensor or an array of numbers, since the network takes "
            f"{FORMS[sides]}, got {image!r:.80}; afmi.volumes reads files of NIfTI and DICOM"
        )
    return torch.from_numpy(image.astype(np.promote_types(image.dtype.newbyteorder("="), "f4")))


def _one_image(model: nn.Module, image: Tensor) -> Tensor:
    """Return one image as a batch (1, C, *spatial), as far as the network tells what it takes."""
    sides, channels = first_convolution(model) or (None, None)
    single = {
        2: sides != 2 or image.shape[0] == channels,
        3: sides != 1,
        4: sides == 3,
    }
    return image[None] if single.get(image.dim(), False) else image


def _prepare_tensor(model: nn.Module, image: Tensor) -> Tensor:
    check_dense(image)
    batch = _one_image(model, image)
    classifier = classifier_of(model)
    channels = "C" if classifier is None else classifier.mean.shape[0]
    fits = batch.dim() in (3, 4, 5) and batch.shape[0] == 1
    fits = fits and channels in ("C", batch.shape[1])
    if not fits or 0 in batch.shape or not batch.is_floating_point():
        advice = "convert it with image.float()"
        if image.dtype == torch.uint8:
            advice = "divide bytes by 255"
        elif batch.dim() == 4 and batch.shape[0] == channels and first_convolution(model) is None:
            advice = "no first convolution says that it is a volume, so pass image[None]"
        elif batch.dim() == 1:
            advice = "one channel of a signal is image[None]"
        elif batch.dim() == 4 and batch.shape[0] != 1:
            advice = "explain_many takes several"
        elif not fits:
            advice = "the channels come first, as many as the network takes"
        raise ShapeError(
            f"expected one image as a floating-point tensor ({channels}, H, W) or "
            f"(1, {channels}, H, W), a signal ({channels}, L) or a volume ({channels}, D, H, W), "
            f"got {tuple(image.shape)} {image.dtype}; {advice}"
        )
    low, high = (float(value) for value in batch.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError("expected finite pixels, got NaN or infinity in the image")
    picture = batch.dim() == 4
    if picture and classifier is not None and not (low >= -1e-3 and high <= 1 + 1e-3):
        raise UsageError(
            f"expected pixels in [0, 1], got {low:g} to {high:g}; a Classifier normalises "
            "inside, so pass images that are not normalised yet"
        )
    return _like_model(model, batch.detach())


def explain_items(
    method: Method,
    items: Iterable[Item | Unexplained],
    batch_size: int,
    top_k: int | None = None,
    prototypes: FMIPrototypes | None = None,
) -> Iterator[list[Explanation] | Unexplained]:
    """Explain items as they come, in batches; what could not be prepared stays in its place.

    Raises:
        AfmiError: the network, the method or an option cannot be used, so that no image has been
            explained.
        DeviceError: the device works no longer.
    """

    def shape(item: Item | Unexplained) -> tuple[object, ...] | None:
        if isinstance(item, Unexplained):
            return None
        # Images that have arguments of their own each run by themselves.
        alone = None if item.arguments is None else item.index
        return item.inputs.shape, None if item.targets is None else len(item.targets), alone

    usable = False
    for batch in neighbours(items, batch_size, shape):
        usable_items = [item for item in batch if isinstance(item, Item)]
        outcomes = _outcomes(method, usable_items, top_k, prototypes)
        usable = usable or any(isinstance(outcome, list) for outcome in outcomes)
        for outcome in outcomes:
            if isinstance(outcome, _ABOUT_ALL) and not usable:
                raise outcome
        remaining = iter(outcomes)
        for item in batch:
            if isinstance(item, Unexplained):
                yield item
            elif isinstance(outcome := next(remaining), list):
                yield outcome
            else:
                _check_device(method.model, item.index, item.source, "explained", outcome)
                yield _unexplained(item.index, item.source, "explained", outcome)


def _outcomes(
    method: Method,
    items: Sequence[Item],
    top_k: int | None,
    prototypes: FMIPrototypes | None,
) -> list[list[Explanation] | Exception]:
    """Explain images of one shape at once, or, where that fails, one by one."""
    try:
        return [*explain_batch(method, items, top_k, prototypes)]
    except Exception as error:
        # Else the frames of the failed run would keep its tensors.
        traceback.clear_frames(error.__traceback__)
        if len(items) == 1:
            return [error]
    alone = (_outcomes(method, [item], top_k, prototypes) for item in items)
    return [outcome for outcomes in alone for outcome in outcomes]


def explain_batch(
    method: Method,
    items: Sequence[Item],
    top_k: int | None = None,
    prototypes: FMIPrototypes | None = None,
) -> list[list[Explanation]]:
    """Explain images of one shape, each for as many targets, with as few passes as possible."""
    return attributed_batch(method, items, top_k, prototypes)[1] if items else []


def attributed_batch(
    method: Method,
    items: Sequence[Item],
    top_k: int | None = None,
    prototypes: FMIPrototypes | None = None,
) -> tuple[list[Attribution], list[list[Explanation]]]:
    """Do as `explain_batch` for at least one image, and return the attributions as well.

    Returns:
        An attribution for each target, with a row for each image; and for each image its
        explanations.
    """
    if items[0].arguments is not None:
        method = method.on(with_arguments(method.model, items[0].arguments))
    inputs = torch.cat([item.inputs for item in items])
    attributions, outputs = _attributions(method, items, inputs, top_k)
    if outputs is not None:
        check_outputs(outputs.scores)
    matches = [_matches(method, inputs, each, prototypes) for each in attributions]
    fingerprint = remembered_fingerprint(method.model)
    explained = []
    for row, item in enumerate(items):
        image = shown_image(item.inputs[0], shown_bands_of(method.model))  # one for all targets
        explained.append(
            [
                explanation_of(
                    method, attribution, row, image, outputs, item.source, fingerprint, match
                )
                for attribution, match in zip(attributions, matches, strict=True)
            ]
        )
    return attributions, explained


def _matches(
    method: Method, inputs: Tensor, attribution: Attribution, prototypes: FMIPrototypes | None
) -> PrototypeMatches | None:
    if prototypes is None:
        return None
    if attribution.target is None:
        raise UsageError(
            "expected a class where prototypes are given, since each is of a class, got "
            f"{specs.text(attribution.targets[0]) if attribution.targets else 'another target'}; "
            "leave them out, or explain a class"
        )
    importance = attribution.vectors["importance"]
    return prototypes.matches(cast("AFMI", method), inputs, attribution.target, importance)


def _attributions(
    method: Method, items: Sequence[Item], inputs: Tensor, top_k: int | None
) -> tuple[list[Attribution], Outputs | None]:
    """Return an attribution for each target, and the network's outputs, where it has rows."""
    model = method.model
    if top_k is not None:
        scores = classify(model, inputs)
        outputs = Outputs(scores, meaning_of(model, inputs))
        if outputs.meaning == "value":
            raise UsageError("the network returns values, of which none is the most probable")
        if top_k > scores.shape[1]:
            raise UsageError(f"expected top_k up to the {scores.shape[1]} classes, got {top_k}")
        # Stable, so that among equals the first comes first, as with arg-max.
        ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :top_k].T
        return method.attributions(inputs, ranked), outputs
    if items[0].targets is None:
        attributions = [method.attribution(inputs)]
    elif all(item.targets == items[0].targets for item in items):
        attributions = method.attributions(inputs, items[0].targets)
    else:
        columns = [*zip(*(item.targets or () for item in items), strict=True)]
        if all(type(target) is int for column in columns for target in column):
            # They share their passes.
            rows = torch.tensor(columns, dtype=torch.int64, device=inputs.device)
            attributions = method.attributions(inputs, rows)
        else:
            attributions = [method.attribution(inputs, column) for column in columns]
    scores = next((a.logits for a in attributions if a.logits is not None), None)
    if scores is None:
        scores = _rows(model, inputs)
    return attributions, None if scores is None else Outputs(scores, meaning_of(model, inputs))


def _rows(model: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return the network's scores (N, K); None: it has none, such as one that segments."""
    try:
        return classify(model, inputs)
    except ModelError:
        return None
