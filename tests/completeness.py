"""How far modified gradients are from summing to delta, and networks to measure it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import skimage
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from afmi.gradients import ModifiedGradient, modified_gradient
from afmi.network.classifier import Classifier
from afmi.network.layers import Layer, resolve_layer
from afmi.pictures.references import Reference
from afmi.pictures.transforms import resize_and_crop, to_tensor

_SHIPPED = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def photographs(size: int, count: int = 5) -> Tensor:
    """Return real photographs (count, 3, size, size) in [0, 1] that scikit-image ships."""
    folder = Path(skimage.__file__).parent / "data"
    photographs = []
    for name in _SHIPPED[:count]:
        with Image.open(folder / name) as image:
            photographs.append(to_tensor(resize_and_crop(image.convert("RGB"), size, size)))
    return torch.stack(photographs)


def settle_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics from real photographs, as training would leave them."""
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def revived(network: nn.Module) -> nn.Module:
    """Draw anew what an initialisation left at zero, so that every branch and class has an effect.

    Many networks start with last layers and position tables of zeros, and with branches weighted
    by 0 or 1e-6 (layer scale, the last norm's gain). A parameter that is one number of at most 0.1
    throughout gets random values: N(0, 0.02²) where it is a matrix, U(0.5, 1) where it is a gain
    for each channel. Biases stay, and so do gains of 1.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            constant = parameter.numel() and bool((parameter == parameter.flatten()[0]).all())
            if not constant or name.endswith("bias") or float(parameter.flatten()[0].abs()) > 0.1:
                continue
            if sum(side > 1 for side in parameter.shape) > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.uniform_(parameter, 0.5, 1.0)
    return network


def classifier(network: nn.Module, size: int, name: str) -> Classifier:
    """Return the network in evaluation mode, revived, with batch-norm statistics of photographs."""
    model = Classifier(
        revived(network).eval(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), name=name
    )
    settle_batch_norms(model, photographs(size))
    return model


def torchvision_classifier(name: str, size: int) -> Classifier:
    """Return an unmodified torchvision network with random weights, in evaluation mode."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their own initialisation takes a minute
        options = {"init_weights": False, "aux_logits": False}
    elif name.startswith("vit"):
        options = {"image_size": size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None, **options)
        return classifier(network, size, name)


class Errors(NamedTuple):
    """Worst errors of Σ m·Δin = Δy_c over a batch, with m the modified gradient.

    Attributes:
        of_logits: relative to the larger of |Δy_c| and the largest |logit| of image and reference.
        of_change: relative to |Δy_c| alone.
    """

    of_logits: float
    of_change: float


def errors(
    model: nn.Module, inputs: Tensor, reference: Reference, layer: str | Layer | None = "inputs"
) -> Errors:
    """Return how far the modified gradients of the predicted class are from summing to delta.

    Args:
        layer: where they are taken; None: at the last stage.
    """
    place = None if layer == "inputs" else resolve_layer(model, layer, inputs)
    return errors_of(modified_gradient(model, inputs, layer=place, reference=reference))


def errors_of(gradient: ModifiedGradient) -> Errors:
    """Return how far a modified gradient of the predicted class is from summing to delta."""
    targets = gradient.run.logits.argmax(1)[None]
    change = gradient.output_change(targets)
    gradients, extra = gradient.split(targets)
    explained = (gradients * gradient.change()).flatten(2).sum(2) + extra
    logits = torch.cat([gradient.run.logits, gradient.references[0].logits]).abs().max()
    error = (explained - change).abs()
    return Errors(
        float((error / torch.maximum(change.abs(), logits)).max()),
        float((error / change.abs()).max()),
    )
