"""What the library of a network in hand knows of it: preprocessing, labels and a name.

Nothing is imported that has not been: a network of a library's is recognised by its class, and its
library is there already.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from afmi.errors import ModelError, first_line
from afmi.network.image_processors import preprocessing_of
from afmi.network.labels import imagenet_labels
from afmi.network.preprocessing import Preprocessing, with_classes
from afmi.network.wrappers import runnable, within

__all__ = [
    "BlueFirst",
    "found_in",
    "of_processor",
    "of_timm",
    "of_timm_config",
    "of_torchvision",
    "with_config_labels",
]

_ALL = ("mean", "std", "resize", "crop")

Found = tuple[nn.Module, Preprocessing, str | None]
"""A network that takes normalised images, how these are prepared, and its name, if it has one."""


class BlueFirst(nn.Module):
    """Hand images (N, 3, H, W) to a network that was trained on blue, green, red."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> object:
        """Return what the network gives for images in red, green, blue."""
        return self.network(images.flip(1))


def found_in(model: Any, processor: Any = None, weights: Any = None) -> Found:
    """Return the network in a model, and what is known of it.

    Args:
        model: a network of timm's, transformers' or torchvision's, a wrapper around one, a
            LightningModule, a pipeline of transformers', or any other network, which is unknown.
        processor: the image processor of a network of transformers'.
        weights: the entry of torchvision's weights that the network has, or its full name.

    Raises:
        ModelError: the model, the processor or the weights are none of these.
    """
    if _is(model, "transformers.", "Pipeline"):
        model, processor = _unpacked(model, processor)
    network = runnable(model)
    if not isinstance(network, nn.Module):
        raise ModelError(
            "expected a network, or a pipeline of transformers for image classification, got "
            f"{type(network).__name__}; afmi.load_model builds networks by name"
        )
    preprocessing, blue_first, name = _known(within(network), processor, weights)
    channels = _channels(within(network))
    if channels not in (None, len(preprocessing.mean)) and not preprocessing.unknown:
        why = (
            f"the first layer of {type(within(network)).__name__} takes {channels} channels, but "
            f"its preprocessing is for {len(preprocessing.mean)}"
        )
        preprocessing = replace(preprocessing, unknown=("mean", "std"), why=why)
    return BlueFirst(network) if blue_first else network, preprocessing, name


def _known(network: Any, processor: Any, weights: Any) -> tuple[Preprocessing, bool, str | None]:
    """Return the preprocessing, whether blue comes first, and the name."""
    title = type(network).__name__
    if _is(network, ("lightning.", "pytorch_lightning."), "LightningModule"):
        inside = [child for child in network.children() if _is_of_library(child)]
        if len(inside) == 1:
            return (*_known(inside[0], processor, weights)[:2], title)
    if weights is not None:
        preprocessing, name = _of_weights(weights)
        return _fitting(preprocessing, network), False, name
    if processor is not None or _is_of_transformers(network):
        return _of_transformers(network, processor)
    if _is_of_timm(network):
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        return (
            of_timm(network, size),
            False,
            str(network.pretrained_cfg.get("architecture") or title),
        )
    if _module(network).startswith("torchvision.models."):
        why = (
            f"torchvision's networks do not know their preprocessing, and this {title} may have "
            "other weights than torchvision's; pass weights=, such as "
            "weights=torchvision.models.ResNet50_Weights.IMAGENET1K_V2, or else"
        )
        return Preprocessing(unknown=_ALL, why=why), False, None
    why = (
        f"the preprocessing of {title} is not known; say which mean was subtracted from pixels in "
        "[0, 1] and what they were divided by (0 and 1 where it takes them as they are), and with "
        "resize= and crop= what its training did besides"
    )
    return Preprocessing(unknown=("mean", "std"), why=why), False, None


def _module(value: object) -> str:
    return type(value).__module__


def _is(value: object, modules: str | tuple[str, ...], name: str) -> bool:
    """Tell whether a value's class is one of this name out of a library, or derives from it."""
    kinds: Iterable[type] = type(value).__mro__
    return any(kind.__name__ == name and kind.__module__.startswith(modules) for kind in kinds)


def _is_of_transformers(network: object) -> bool:
    return _is(network, "transformers.", "PreTrainedModel")


def _is_of_timm(network: Any) -> bool:
    return "timm" in sys.modules and isinstance(getattr(network, "pretrained_cfg", None), Mapping)


def _is_of_library(network: nn.Module) -> bool:
    return _is_of_transformers(network) or _is_of_timm(network)


def _channels(network: nn.Module) -> int | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((m.in_channels for m in network.modules() if isinstance(m, kinds)), None)


def _fitting(preprocessing: Preprocessing, network: nn.Module) -> Preprocessing:
    """Drop the labels where the network has another number of classes; detectors' do not tell."""
    if _module(network).startswith("torchvision.models.detection"):
        return preprocessing
    return with_classes(preprocessing, network)


def _of_weights(weights: Any) -> tuple[Preprocessing, str]:
    """Return the preprocessing of an entry of torchvision's weights, and the network's name."""
    entry = weights
    if isinstance(weights, str):
        zoo = sys.modules.get("torchvision.models")
        try:
            entry = zoo and zoo.get_weight(weights)  # type: ignore[attr-defined]
        except (ValueError, AttributeError, KeyError):
            entry = None
    if entry is None or not callable(getattr(entry, "transforms", None)):
        raise ModelError(
            "expected weights of torchvision's, such as ResNet50_Weights.IMAGENET1K_V2 or its name "
            f"'ResNet50_Weights.IMAGENET1K_V2', got {weights!r}; they say how a network is used, "
            "and are not loaded"
        )
    name = type(entry).__name__.removesuffix("_Weights").lower()
    return of_torchvision(entry), name


def of_torchvision(weights: Any) -> Preprocessing:
    """Return the preprocessing and the labels that an entry of torchvision's weights has."""
    preset = weights.transforms()

    def side(name: str) -> int | None:
        sizes = getattr(preset, name, None)
        return sizes[0] if sizes else None

    plain = Preprocessing()
    mode = getattr(preset, "interpolation", plain.interpolation)
    return Preprocessing(
        tuple(getattr(preset, "mean", plain.mean)),  # detectors normalise inside
        tuple(getattr(preset, "std", plain.std)),
        tuple(weights.meta.get("categories", ())),
        side("resize_size"),
        side("crop_size"),
        Image.Resampling[mode.name],
    )


def of_timm(network: Any, size: int | tuple[int, ...] | None = None) -> Preprocessing:
    """Return the preprocessing of a network of timm's, and labels where timm has them.

    Args:
        network: has ``pretrained_cfg``.
        size: side or (height, width) of the images; None: as its weights were trained.
    """
    data: Any = sys.modules["timm"].data
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    given = {"input_size": (3, *sides)} if sides else {}
    config = data.resolve_data_config(given, pretrained_cfg=network.pretrained_cfg)
    classes = int(getattr(network, "num_classes", 0))
    preprocessing = replace(of_timm_config(config), classes=classes)
    if classes != network.pretrained_cfg.get("num_classes"):
        return preprocessing
    subset = data.infer_imagenet_subset(network)
    if classes == 1000:
        return replace(preprocessing, labels=imagenet_labels())
    if subset is not None:
        return replace(preprocessing, labels=data.ImageNetInfo(subset).label_descriptions())
    return preprocessing


def of_timm_config(config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a data configuration of timm's (``resolve_data_config``).

    Args:
        config: with input_size, crop_pct, crop_mode, interpolation, mean and std.
    """
    size = tuple(config["input_size"][1:])
    height, width = (math.floor(side / config["crop_pct"]) for side in size)
    preprocessing = Preprocessing(
        tuple(config["mean"]),
        tuple(config["std"]),
        resize=height if config["crop_mode"] == "center" else (height, width),
        crop=size[0] if size[0] == size[1] else size,
        interpolation=Image.Resampling[config["interpolation"].upper()],
    )
    if config["crop_mode"] == "squash" or (config["crop_mode"] == "center" and height == width):
        return preprocessing
    why = (
        "afmi cannot prepare pictures as this model asks for "
        f"(crop mode {config['crop_mode']!r} to {size[0]} x {size[1]})"
    )
    return replace(preprocessing, unknown=("resize", "crop"), why=why)


def _unpacked(pipeline: Any, processor: Any) -> tuple[Any, Any]:
    """Return the network and the image processor of a pipeline of transformers'."""
    if pipeline.task != "image-classification":
        raise ModelError(
            f"expected a pipeline for 'image-classification', got one for {pipeline.task!r}; "
            "pass pipeline.model with processor=pipeline.image_processor, where it takes images"
        )
    return pipeline.model, pipeline.image_processor if processor is None else processor


def _of_transformers(network: Any, processor: Any) -> tuple[Preprocessing, bool, str | None]:
    config = getattr(network, "config", None)
    if config is None:
        raise ModelError(
            "expected a processor with a network of transformers, got one with "
            f"{type(network).__name__}, which has no config; pass mean=, std=, resize= and crop="
        )
    place = str(getattr(network, "name_or_path", "") or "")
    name = place.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or type(network).__name__
    if processor is None:
        processor = _saved_processor(place)
    if processor is None:
        why = (
            f"the network {name} has no image processor in {place!r}, so its preprocessing is not "
            "known; pass processor=, the one it was trained with, or else"
            if place
            else f"the {name} was made without an image processor, so its preprocessing is not "
            "known; pass processor=, the one it was trained with, or else"
        )
        preprocessing, blue_first = Preprocessing(unknown=_ALL, why=why), False
    else:
        preprocessing, blue_first = of_processor(processor)
    return with_config_labels(preprocessing, config), blue_first, name


def _saved_processor(place: str) -> Any:
    """Return the image processor that lies beside the weights, without asking the Hub."""
    if not place:
        return None
    files = ("processor_config.json", "preprocessor_config.json")
    folder = Path(place)
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        return None
    library: Any = sys.modules["transformers"]
    try:
        return library.AutoImageProcessor.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        if not folder.is_dir():
            return None  # which is not in the cache
        raise ModelError(
            f"the image processor in {place!r} cannot be read ({first_line(error)}); pass "
            "processor="
        ) from error


def of_processor(processor: Any) -> tuple[Preprocessing, bool]:
    """Return the preprocessing of an image processor of transformers', and whether blue is first.

    Args:
        processor: of images, or one that has such a one among others.
    """
    processor = getattr(processor, "image_processor", processor)
    if hasattr(processor, "data_config"):  # a network of timm's in this library's clothes
        return of_timm_config(processor.data_config), False
    if not callable(getattr(processor, "to_dict", None)):
        raise ModelError(
            f"expected an image processor of transformers, got {type(processor).__name__}; "
            "AutoImageProcessor.from_pretrained reads one"
        )
    settings = processor.to_dict()
    preprocessing = preprocessing_of(type(processor).__name__, settings)
    return preprocessing, bool(settings.get("do_flip_channel_order"))


def with_config_labels(preprocessing: Preprocessing, config: Any) -> Preprocessing:
    """Add the classes and what the outputs mean, from a configuration of transformers'."""
    given = config.id2label or {}
    names = [str(given.get(index, f"LABEL_{index}")) for index in range(config.num_labels)]
    generic = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    several = config.problem_type == "multi_label_classification"
    return replace(
        preprocessing,
        labels=() if generic else tuple(names),
        classes=config.num_labels,
        output="sigmoid" if several else None,
    )
