"""Classifier: a network with its normalisation, labels and preprocessing."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from afmi.errors import ModelError, ShapeError, TargetError, near_matches
from afmi.network.arguments import ForwardArguments, bound
from afmi.network.channels import first_channels
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_model, check_run, named_failures
from afmi.network.guards import evaluation_mode
from afmi.network.in_hand import found_in
from afmi.network.labels import Labels, is_truth_value, read_labels
from afmi.network.outputs import Declaration, Meaning, selected
from afmi.network.trial import try_once
from afmi.network.watch import run_watched
from afmi.network.wrappers import Wrapper, runnable, within, wrappings
from afmi.pictures.images import Reader, read_by, read_channels
from afmi.pictures.transforms import resize_and_crop, to_tensor

__all__ = [
    "Classifier",
    "class_label",
    "classifier_of",
    "classify",
    "device_of",
    "find_class",
    "input_channels",
    "labels_of",
    "name_of",
    "network_zero",
    "preparation_of",
    "preparing",
    "shown_bands_of",
    "with_arguments",
]

_RGB = 3


class Classifier(Wrapper):
    """Wrap a network so that it takes images in [0, 1], and say what its outputs mean.

    The normalisation happens inside, so black is black: references, masks and insertion all live
    in pixel space, where the zero of a bare network would be the mean grey of its training data.

    Args:
        network: maps normalised images (N, 3, H, W), or signals (N, C, L) or volumes
            (N, C, D, H, W), to logits (N, C), or to anything that a target makes a score of
            (`afmi.targets`). Kept as it is; its mode is not changed.
        mean: the mean that the network's training subtracted, one number per channel, in [0, 1];
            as many as there are channels. None: 0 for each channel that the first convolution
            takes, or for three where there is none to tell.
        std: the standard deviation that it divided by, per channel. None: 1 for each.
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
        reader: reads files for the network, where they are of a kind or a range of its own: a
            function from a path (or whatever else than a picture, an array or a tensor stands for
            an image) to an array (H, W, C), uint8, uint16, bool, or float in [0, 1].
        shown_bands: which channels pictures show as red, green and blue, e.g. ``(3, 2, 1)``. None:
            the first three; of one or two channels the first, as grey.
        forward_arguments: what else the network takes: a tuple of what comes besides the images,
            or a dictionary of keywords. Tensors have one row, (1, …), which goes along with every
            image; everything else goes as it is. None of it is normalised.
        input: which argument the images are, by its position or keyword. None: the first.

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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        labels: Labels = (),
        resize: int | tuple[int, int] | None = None,
        crop: int | tuple[int, int] | None = None,
        interpolation: Image.Resampling = Image.Resampling.BILINEAR,
        layer: str | None = None,
        name: str | None = None,
        output: Meaning | None = None,
        output_key: str | int | None = None,
        reader: Reader | None = None,
        shown_bands: tuple[int, int, int] | None = None,
        forward_arguments: ForwardArguments | None = None,
        input: int | str | None = None,
    ) -> None:
        super().__init__()
        network = runnable(network)
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"expected a network that is an nn.Module, got {type(network).__name__}; "
                "wrap your function in an nn.Module"
            )
        channels = len(mean or std or ()) or first_channels(network) or _RGB
        mean = (0.0,) * channels if mean is None else mean
        std = (1.0,) * channels if std is None else std
        if max(map(abs, (*mean, *std)), default=0) > _MOST:
            raise ModelError(
                "expected the mean and standard deviation of pixels from 0 to 1, got "
                f"mean={tuple(mean)} and std={tuple(std)}, as for pixels from 0 to 255; divide "
                "both by 255 (a std of 1 becomes 1/255), or by what else white was"
            )
        if len(mean) != len(std) or not len(std) or not min(std) > 0:
            raise ModelError(
                "expected as many means as standard deviations, all of the latter above zero, "
                f"got mean={tuple(mean)} and std={tuple(std)}"
            )
        self.network = bound(network, forward_arguments, input)
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
        self.name = name or type(within(network)).__name__
        self.output: Meaning | None = output
        self.output_key = output_key
        _ = self.declaration  # which checks them
        self.reader = reader
        self.shown_bands = _checked_bands(shown_bands, len(mean))
        self.training = getattr(network, "training", False)

    @classmethod
    def of(
        cls, model: Any, *, processor: Any = None, weights: Any = None, **settings: Any
    ) -> Classifier:
        """Make a classifier of a network in hand, with the preprocessing and labels that it has.

        They come from timm's ``pretrained_cfg``; from the image processor of transformers; or from
        an entry of torchvision's weights. What is not known must be given: nothing is guessed.

        Args:
            model: a network of timm's, transformers' or torchvision's, or a LightningModule around
                one of the former two; a ``pipeline("image-classification")``; a Classifier; any
                other network, such as MONAI's, whose mean and std are given. It may be compiled,
                parallel or averaged.
            processor: the image processor of a network of transformers'. None: the one that was
                saved beside its weights.
            weights: torchvision's entry for the weights that the network has, such as
                ``ResNet50_Weights.IMAGENET1K_V2``, or that name. They are not loaded.
            **settings: of a Classifier, in place of what was found: ``labels``, ``crop``, …

        Raises:
            ModelError: when something is not known and not given either.

        Example:
            >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
            >>> model = Classifier.of(nn.DataParallel(network), mean=[0.5] * 3, std=[0.5] * 3)
            >>> model(torch.rand(1, 3, 4, 4)).shape
            torch.Size([1, 2])
        """
        known = classifier_of(model)
        if known is not None and processor is None and weights is None:
            return known.with_settings(**settings)
        inside = model if known is None else known.network
        network, preprocessing, name = found_in(inside, processor, weights)
        if "labels" in settings:
            settings["labels"] = read_labels(settings["labels"])
        named = {"name": name, **settings}
        return cls(network, **preprocessing.settings(named, name or type(network).__name__))

    def with_settings(self, **settings: Any) -> Classifier:
        """Return a classifier of the same network, with some settings in place of its own."""
        if not settings:
            return self
        own = {
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            **{key: getattr(self, key) for key in _KEPT},
        }
        return Classifier(self.network, **{**own, **settings})

    @property
    def wrapped(self) -> nn.Module:
        """The network, which takes normalised images."""
        return self.network

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
                advice = (
                    f"the network takes {channels} channels, and these have {images.shape[1]}; "
                    "Classifier(…, mean=…, std=…) takes one number for each channel"
                )
            raise ShapeError(
                f"expected images of shape (N, {channels}, H, W) in [0, 1], got "
                f"{tuple(images.shape)}; {advice}"
            )
        mean, std = (_along_channels(values, images) for values in (self.mean, self.std))
        return selected(self.network((images - mean) / std), self.output_key)

    def prepare(self, image: Any) -> Tensor:
        """Read, resize and crop an image as the network's training did: (1, C, H, W) in [0, 1].

        Args:
            image: a file, PIL image, array (H, W, C) or what else `afmi.images.read_pixels` takes,
                or the ``reader``. Colours become grey for a network of one channel, and grey is
                repeated for one of three; any other number of bands must be there.
        """
        channels = self.mean.shape[0]
        if self.reader is None or isinstance(image, (Image.Image, np.ndarray)):
            pixels = read_channels(image, channels)
        else:
            pixels = read_by(self.reader, image, channels)
        cropped = resize_and_crop(pixels, self.resize, self.crop, self.interpolation)
        return to_tensor(cropped)[None].to(self.mean)


_MOST = 2.0
"""Pixels in [0, 1] have smaller means and deviations, those in 0 to 255 larger ones."""

_PREPARING = ("resize", "crop", "interpolation", "shown_bands")

_KEPT = (
    *("labels", "resize", "crop", "interpolation", "layer", "name"),
    *("output", "output_key", "reader", "shown_bands"),
)


def classifier_of(model: object) -> Classifier | None:
    """Return the Classifier that a model is, or that a wrapper holds; None: there is none.

    Whatever asks a model for its labels, its preprocessing or its layer asks this one, so that
    neither ``torch.compile`` nor ``DataParallel`` nor an average of weights hides them.

    Example:
        >>> model = Classifier(nn.Flatten(), labels=["cat", "dog"])
        >>> classifier_of(nn.DataParallel(model)) is model
        True
    """
    return next((one for one in wrappings(model) if isinstance(one, Classifier)), None)


def labels_of(model: object) -> tuple[str, ...]:
    """Return the names of a model's classes; none where no Classifier knows them."""
    classifier = classifier_of(model)
    return () if classifier is None else classifier.labels


def name_of(model: object) -> str:
    """Return what a model is called in records: the Classifier's name, or the network's class."""
    classifier = classifier_of(model)
    return type(within(model)).__name__ if classifier is None else classifier.name


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network's parameters lie on; the CPU where it has none."""
    return next((weights.device for weights in model.parameters()), torch.device("cpu"))


def preparation_of(model: object) -> dict[str, Any]:
    """Return how a picture is prepared for a network, as JSON holds it.

    Nothing is done to one where no Classifier says what; `preparing` takes it back.
    """
    classifier = classifier_of(model)
    if classifier is None:
        channels = input_channels(model)
        return {"mean": [0.0] * channels, "std": [1.0] * channels, **dict.fromkeys(_PREPARING)}
    sizes = {name: getattr(classifier, name) for name in _PREPARING}
    return {
        "mean": classifier.mean.flatten().tolist(),
        "std": classifier.std.flatten().tolist(),
        **{name: list(size) if isinstance(size, tuple) else size for name, size in sizes.items()},
        "interpolation": Image.Resampling(classifier.interpolation).name.lower(),
    }


def preparing(preparation: Mapping[str, Any]) -> Classifier:
    """Return a Classifier that prepares pictures so, and has no network.

    Args:
        preparation: of `preparation_of`.

    Example:
        >>> model = Classifier(nn.Flatten(), mean=[0.5], std=[0.5], crop=4)
        >>> preparing(preparation_of(model)).crop
        4
    """
    settings = dict(preparation)
    for name in _PREPARING:
        if isinstance(settings[name], list):
            settings[name] = tuple(settings[name])
    name = settings["interpolation"] or "bilinear"
    return Classifier(
        nn.Identity(), **{**settings, "interpolation": Image.Resampling[name.upper()]}
    )


def with_arguments(model: nn.Module, arguments: ForwardArguments) -> nn.Module:
    """Return a model like this one that hands its network these arguments; see `Classifier`.

    The network itself is shared; arguments that the model had are replaced.
    """
    classifier = classifier_of(model)
    if classifier is None:
        return bound(model, arguments)
    made = copy.copy(classifier)
    made._modules = {**classifier._modules, "network": bound(classifier.network, arguments)}
    return made


def _checked_bands(bands: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    if bands is None:
        return None
    bands = tuple(bands)
    if len(bands) != _RGB or not all(type(b) is int and 0 <= b < channels for b in bands):
        raise ModelError(
            "expected shown_bands to name the channels shown as red, green and blue, three numbers "
            f"from 0 to {channels - 1}, got {bands}"
        )
    return bands


def input_channels(model: Any) -> int:
    """Return how many channels a model's images have; three where that cannot be told."""
    classifier = classifier_of(model)
    if classifier is not None:
        return classifier.mean.shape[0]
    return first_channels(model) or _RGB


def shown_bands_of(model: nn.Module) -> tuple[int, ...] | None:
    """Return which channels pictures of a model's images show as red, green and blue, if said."""
    classifier = classifier_of(model)
    return None if classifier is None else classifier.shown_bands


def _along_channels(values: Tensor, images: Tensor) -> Tensor:
    """Return one value a channel, (C, 1, 1), in the shape that broadcasts to these images."""
    return values if images.dim() == 4 else values.view(-1, *[1] * (images.dim() - 2))


def classify(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits (N, C) of images (N, C, *spatial), without gradients."""
    model = runnable(model)
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
    classifier = classifier_of(model)
    if classifier is not None:
        return _along_channels(classifier.mean, images).to(images)[None]
    return images.new_zeros(1, images.shape[1], *[1] * (images.dim() - 2))


def class_label(model: nn.Module, index: int) -> str:
    """Return the name of a class, or ``class 7`` where the model has no labels."""
    labels = labels_of(model)
    return labels[index] if labels else f"class {index}"


def _plain(label: str) -> str:
    """Return the words of a label in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", label.casefold().replace("_", " ")))


def _fitting(text: str, labels: Sequence[str]) -> list[int]:
    """Return which labels fit a text, by the strictest comparison by which any does."""
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
    return matches


def find_class(model: nn.Module, wanted: str | int) -> int:
    """Return the index of a class that the user named by index or label.

    A label matches when it is equal but for case and punctuation, or has such a synonym between
    commas, or else when it contains the words typed and no other label does.

    Raises:
        TargetError: when no class or several match; near matches are listed.
    """
    if is_truth_value(wanted):
        raise TargetError(f"expected a class's index or label, got the truth value {wanted!r}")
    labels = labels_of(model)
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
    matches = _fitting(text, labels)
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(f"{labels[i]!r} ({i})" for i in matches[:8])
        more = f" and {len(matches) - 8} more" if len(matches) > 8 else ""
        raise TargetError(f"label {text!r} fits several classes: {listed}{more}; give the index")
    raise TargetError(f"no class is called {text!r}{near_matches(text, labels)}")
