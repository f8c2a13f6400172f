"""`load_model`: find the source of a name, and wrap its network in a Classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from afmi.errors import ModelError, UsageError, first_line, near_matches
from afmi.models import factory, imagenet, photos, timm, torchvision, transformers
from afmi.models.weights import WEIGHT_SUFFIXES
from afmi.network.classifier import Classifier, classifier_of
from afmi.network.labels import Labels, read_labels
from afmi.network.layers import Layer, resolve_layer
from afmi.network.outputs import Meaning
from afmi.network.preprocessing import Preprocessing

__all__ = ["load_model"]


def load_model(
    name: str = imagenet.NAME,
    *,
    weights: str | os.PathLike[str] | Any | None = "default",
    labels: Labels | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None,
    layer: str | Layer | None = None,
    output: Meaning | None = None,
    output_key: str | int | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Classifier:
    """Build a classifier, load its weights, and put it into evaluation mode.

    Args:
        name: ``"imagenet"``, an EfficientNet-Lite0 that knows a thousand things, or the larger
            ``"imagenet-lite1"`` and ``"imagenet-lite2"``; ``"photos"``, a small VGG that comes
            with afmi; a torchvision classifier (``"vgg19"``); ``"timm:NAME"``, one of timm's, with
            or without the tag of its weights (``"timm:resnet18.a1_in1k"``); ``"hf:OWNER/NAME"`` or
            ``"hf:FOLDER"``, an image classifier of transformers from the Hugging Face Hub or a
            folder, or ``"hf:TYPE"`` (``"hf:vit"``), a type's default configuration; or a factory
            of yours, ``"package.module:function"`` or ``"path/to/file.py:function"``, which is
            called and returns an ``nn.Module`` or a `Classifier`. Naming a factory runs its code.
        weights: ``"default"``: the best that come with the model (downloaded once where they are
            neither installed nor in a folder), or whatever a factory loads itself. A .safetensors
            or .pth file: loaded without running code from it; where it has another number of
            classes, the network gets that number. ``"IMAGENET1K_V1"``: torchvision's by that name.
            None: random weights (seed them with ``torch.manual_seed``), or a factory's own.
        labels: one name per class, or a dictionary from index to name, or a file of them: one per
            line, or a JSON list, or a JSON object from index to name or [id, name]. None: the
            model's own.
        mean: what is subtracted from each channel, in [0, 1]. None: the model's own.
        std: what each channel is divided by. None: the model's own.
        resize: short side that pictures are resized to, in pixels. None: the model's own.
        crop: side of the central square that the network sees. None: the model's own.
        layer: dotted name of the feature-map layer that methods use. None: found automatically.
        output: what the network's outputs mean, see `Classifier`. None: as it looks.
        output_key: which of several outputs is meant, see `Classifier`.
        device: ``"cuda:0"``, ``"cpu"``, …; ``"auto"``: a GPU where there is one, Apple's
            ("mps") too. None: as built, that is, the CPU.
        **options: passed on to torchvision's builder, to ``timm.create_model`` or to the factory;
            with ``hf:`` changes of the configuration (``num_hidden_layers=2``).

    Returns:
        In evaluation mode.

    Raises:
        ModelError: no such model, or it cannot be built, or its weights cannot be loaded, or its
            library is not installed.
        LayerError: the network has no layer of that name.
        UsageError: the device does not exist.

    Example:
        >>> model = load_model("squeezenet1_1", weights=None)
        >>> model.name, model.crop, model.labels[207]
        ('squeezenet1_1', 224, 'golden retriever')
    """
    if not isinstance(name, str):
        raise ModelError(
            f"expected the name of a model, got {type(name).__name__}; "
            "wrap a network of yours with afmi.Classifier(network, mean=…, std=…)"
        )
    place = _device(device)
    given: dict[str, Any] = {"mean": mean, "std": std, "resize": resize, "crop": crop}
    given |= {"output": output, "output_key": output_key}
    given = {key: value for key, value in given.items() if value is not None}
    if labels is not None:
        given["labels"] = read_labels(labels)
    network, preprocessing, name = _built(name, weights, options)
    classifier = classifier_of(network)
    if classifier is not None:
        model = factory.with_settings(classifier, given)
    else:
        model = Classifier(network, **preprocessing.settings({**given, "name": name}, name))
    if layer is not None:
        size = model.crop or model.resize or 224
        sides = (size, size) if isinstance(size, int) else size
        image = model.mean.new_full((1, len(model.mean), *sides), 0.5)
        model.layer = str(resolve_layer(model, layer, image)[1])
    return model.to(place).eval() if place is not None else model.eval()


def _built(
    name: str, weights: object, options: dict[str, Any]
) -> tuple[torch.nn.Module, Preprocessing, str]:
    """Return the network, its preprocessing, and its name."""
    source, _, rest = name.partition(":")
    if name in imagenet.NETWORKS:
        return *imagenet.build(name, weights, options), name
    if name == photos.NAME:
        return *photos.build(weights, options), name
    if source == timm.PREFIX:
        return *timm.build(rest, weights, options), name.lower()
    if source == transformers.PREFIX:
        return transformers.build(rest, weights, options)
    if ":" in name:
        return *factory.build(name, weights, options), name.rpartition(":")[2]
    if name.lower() in (known := torchvision.names()):
        return *torchvision.build(name.lower(), weights, options), name.lower()
    hint = near_matches(name, [*imagenet.NETWORKS, photos.NAME, *known])
    if name.lower().endswith(WEIGHT_SUFFIXES):
        hint = "; a file of weights goes with the network that it is for: weights=…"
    raise ModelError(
        f"no model is called {name!r}"
        + (hint or "; `afmi models` lists them, and package.module:function names your own")
    )


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    if device == "auto":
        available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        return torch.device(next((name for name, there in available.items() if there()), "cpu"))
    try:
        place = torch.device(device)
        torch.empty(1, dtype=torch.float32, device=place).cpu()
    except Exception as error:  # builds of PyTorch without the device raise errors of many types
        raise UsageError(
            f"the device {str(device)!r} cannot be used here ({first_line(error)}); "
            "use 'cpu', or 'auto' for a GPU where there is one"
        ) from error
    return place
