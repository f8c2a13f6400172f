"""How far modified gradients are from summing to delta, and networks to measure that on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import skimage
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from afmi.classifier import Classifier
from afmi.images import resize_and_crop, to_tensor
from afmi.layers import Layer, resolve_layer
from afmi.modified_gradient import modified_gradient
from afmi.references import Reference

_SHIPPED = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def photographs(size: int, count: int = 5) -> Tensor:
    """Return real photographs (count, 3, size, size) in [0, 1] that scikit-image ships."""
    folder = Path(skimage.__file__).parent / "data"
    found = []
    for name in _SHIPPED[:count]:
        with Image.open(folder / name) as image:
            found.append(to_tensor(resize_and_crop(image.convert("RGB"), size, size)))
    return torch.stack(found)


def settle_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics from real photographs, as training would leave them."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
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


def torchvision_classifier(name: str, size: int) -> Classifier:
    """Return an unmodified torchvision network with random weights, in evaluation mode."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their own initialisation takes a minute
        options = {"init_weights": False, "aux_logits": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None, **options).eval()
        for module in network.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():  # ViT's untrained head
                nn.init.normal_(module.weight, std=0.02)
    model = Classifier(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    settle_batch_norms(model, photographs(size))
    return model


class Errors(NamedTuple):
    """Worst errors of Σ multiplier·Δin = Δy_c over a batch.

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
    gradient = modified_gradient(model, inputs, layer=place, reference=reference)
    targets = gradient.run.logits.argmax(1)[None]
    change = gradient.output_change(targets)
    multipliers, carried = gradient.parted(targets)
    explained = (multipliers * gradient.change()).flatten(2).sum(2) + carried
    logits = torch.cat([gradient.run.logits, gradient.references[0].logits]).abs().max()
    error = (explained - change).abs()
    return Errors(
        float((error / torch.maximum(change.abs(), logits)).max()),
        float((error / change.abs()).max()),
    )
