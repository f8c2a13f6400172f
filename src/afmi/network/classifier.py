"""Classifier: a network with its normalisation, labels and preprocessing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from afmi.errors import ModelError, ShapeError, TargetError, near_matches
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_model, check_run, named_failures
from afmi.network.guards import evaluation_mode
from afmi.network.labels import Labels, read_labels
from afmi.network.outputs import Declaration, Meaning, selected
from afmi.network.scored import anchor
from afmi.network.trial import try_once
from afmi.network.watch import run_watched
from afmi.pictures.transforms import resize_and_crop, to_tensor

__all__ = ["Classifier", "class_label", "classify", "find_class", "network_zero"]


class Classifier(nn.Module):
    """Wrap a network so that it takes images in [0, 1], and say what its outputs mean.

    The normalisation happens inside, so black is black: references, masks and insertion all live
    in pixel space, where the zero of a bare network would be the mean grey of its training data.

    Args:
        network: maps normalised images (N, 3, H, W), or signals (N, C, L) or volumes
            (N, C, D, H, W), to logits (N, C), or to anything that a target makes a score of
            (`afmi.targets`). Kept as it is; its mode is not changed.
        mean: the mean that the network's training subtracted, one number per channel, in [0, 1].
        std: the standard deviation that it divided by, per channel.
        labels: one name per class, in the order of the logits; or a dictionary from each index to
            its name; or a file of them (see `afmi.load_model`). Empty: classes have no names.
        resize: what the short side of a picture is resized to before the crop, in pixels (or
            (height, width) exactly). None: pictures keep their size.
        crop: side of the central square that the network sees, in pixels. None: no crop.
        layer: dotted name of the feature-map layer, inside ``network``, that methods use unless
            told otherwise. None: the last convolutional stage, found on first use.
        name: what to call the model in records and pictures.
        output: what the outputs (N, C) mean: ``"logits"`` of classes of which one holds,
            ``"sigmoid"`` for logits of labels that hold or not, each by itself,
            ``"probabilities"``, or ``"value"`` for numbers that are no classes' scores. One output
            of ``"sigmoid"`` or ``"probabilities"`` belongs to the second of two classes. None: as
            it looks; what is then assumed, a warning says. A softmax or sigmoid at the network's
            end is undone but for ``"probabilities"`` and ``"value"``, so that logits are explained.
        output_key: which of several outputs is meant, by its name in a dictionary or its place in a
            tuple. None: the one called ``logits`` or ``out``, or the only one that fits.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = Classifier(network, mean=[0.5] * 3, std=[0.25] * 3, labels=list("abcd"))
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        labels: Labels = (),
        resize: int | tuple[int, int] | None = None,
        crop: int | tuple[int, int] | None = None,
        interpolation: Image.Resampling = Image.Resampling.BILINEAR,
        layer: str | None = None,
        name: str | None = None,
        output: Meaning | None = None,
        output_key: str | int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"expected a network that is an nn.Module, got {type(network).__name__}; "
                "wrap your function in an nn.Module"
            )
        if len(mean) != len(std) or not len(std) or not min(std) > 0:
            raise ModelError(
                "expected as many means as standard deviations, all of the latter above zero, "
                f"got mean={tuple(mean)} and std={tuple(std)}"
            )
        self.network = network
        # The normalisation joins the network where it is, on its device and in its precision.
        like = next(
            (p for p in network.parameters() if p.is_floating_point()),
            torch.empty(0, dtype=torch.float32, device="cpu"),
        )
        for key, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(list(values), dtype=like.dtype, device=like.device)
            self.register_buffer(key, tensor.view(-1, 1, 1), persistent=False)
        self.labels = read_labels(labels)
        self.resize = resize
        self.crop = crop
        self.interpolation = interpolation
        self.layer = layer
        self.name = name or type(network).__name__
        self.output: Meaning | None = output
        self.output_key = output_key
        _ = self.declaration  # which checks them
        self.training = getattr(network, "training", False)

    @property
    def declaration(self) -> Declaration:
        """What is known of the network's outputs."""
        return Declaration(self.output, self.output_key, len(self.labels))

    def forward(self, images: Tensor) -> Any:
        """Return the network's output for images (N, 3, H, W) in [0, 1], or signals or volumes.

        That is the tensor that is meant; all that the network returned where none is singled out.
        """
        channels = self.mean.shape[0]
        if images.dim() not in (3, 4, 5) or images.shape[1] != channels:
            advice = "add a batch dimension with images[None]"
            if images.dim() > 3 and images.shape[0] != channels:
                advice = f"the network takes {channels} channels, and these have {images.shape[1]}"
            raise ShapeError(
                f"expected images of shape (N, {channels}, H, W) in [0, 1], got "
                f"{tuple(images.shape)}; {advice}"
            )
        mean, std = (_along_channels(values, images) for values in (self.mean, self.std))
        return selected(self.network((images - mean) / std), self.output_key)

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize and crop a picture as the network's training did: (1, 3, H, W) in [0, 1]."""
        cropped = resize_and_crop(image, self.resize, self.crop, self.interpolation)
        return to_tensor(cropped)[None].to(self.mean)


def _along_channels(values: Tensor, images: Tensor) -> Tensor:
    """Return one value a channel, (C, 1, 1), in the shape that broadcasts to these images."""
    return values if images.dim() == 4 else values.view(-1, *[1] * (images.dim() - 2))


def classify(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits (N, C) of images (N, C, *spatial), without gradients."""
    check_model(model)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluation_mode(model),
        named_failures(model, inputs),
    ):
        try_once(model, inputs)
        logits = in_fast_layout(model, partial(run_watched, model), inputs.detach())
    return check_run(logits, inputs)


def network_zero(model: nn.Module, images: Tensor) -> Tensor:
    """Return the colour that a network takes as 0, (1, C, 1, …), for images (N, C, *spatial).

    Inside a `Classifier` that is the mean colour, which its normalisation makes 0; any other
    network takes images as they are, and 0 is 0.
    """
    model, _ = anchor(model)
    if isinstance(model, Classifier):
        return _along_channels(model.mean, images).to(images)[None]
    return images.new_zeros(1, images.shape[1], *[1] * (images.dim() - 2))


def class_label(model: nn.Module, index: int) -> str:
    """Return the name of a class, or ``class 7`` where the model has no labels."""
    labels = getattr(model, "labels", ())
    return labels[index] if labels else f"class {index}"


def _plain(label: str) -> str:
    """Return the words of a label in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", label.casefold().replace("_", " ")))


def find_class(model: nn.Module, wanted: str | int) -> int:
    """Return the index of a class that the user named by index or label.

    A label matches when it is equal but for case and punctuation, or has such a synonym between
    commas, or else when it contains the words typed and no other label does.

    Raises:
        TargetError: when no class or several match; near matches are listed.
    """
    labels: tuple[str, ...] = tuple(getattr(model, "labels", ()))
    text = str(wanted).strip()
    if re.fullmatch(r"-?\d+", text):
        index, last = int(text), len(labels) - 1 if labels else 2**63 - 1
        if not 0 <= index <= last:
            classes = f"a class from 0 to {last}" if labels else "the index of a class"
            raise TargetError(
                f"expected {classes}, got {index}; `afmi models` shows how to list the labels"
            )
        return index
    if not labels:
        raise TargetError(f"this model has no labels, so class {text!r} must be given by its index")
    plain = _plain(text)
    names = [_plain(label) for label in labels]
    matches = [i for i, label in enumerate(labels) if label.casefold() == text.casefold()]
    if not matches and plain:
        matches = [i for i, name in enumerate(names) if name == plain]
    if not matches and plain:
        synonyms = [[_plain(part) for part in label.split(",")] for label in labels]
        matches = [i for i, parts in enumerate(synonyms) if plain in parts]
    if not matches and plain:
        matches = [i for i, name in enumerate(names) if f" {plain} " in f" {name} "]
    if not matches and plain:
        matches = [i for i, name in enumerate(names) if plain in name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(f"{labels[i]!r} ({i})" for i in matches[:8])
        more = f" and {len(matches) - 8} more" if len(matches) > 8 else ""
        raise TargetError(f"label {text!r} fits several classes: {listed}{more}; give the index")
    raise TargetError(f"no class is called {text!r}{near_matches(text, labels)}")
