"""Networks and pictures to measure with, the same in every run and without a download.

Weights are random, which changes what passes cost no more than the pictures do; batch norms have
the statistics of photographs, so that activations keep a sensible size. The embedded network,
``photos``, has its trained weights.
"""

from __future__ import annotations

import copy

import torch
import torchvision
from skimage import data
from torch import Tensor, nn

from afmi import Classifier, load_model
from afmi.pictures.images import read_image

__all__ = ["EMBEDDED", "in_place_off", "network", "photographs", "sharing_copy", "views"]

EMBEDDED = "photos"


def network(name: str) -> Classifier:
    """Return the embedded network, or one of torchvision's with random weights (seed 0)."""
    if name == EMBEDDED:
        return load_model(name)
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = Classifier(
        torchvision.models.get_model(name, weights=None, **options),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize=256,
        crop=224,
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # ViT's untrained head
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all batches, of which there is one
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        model(views(model))
    return model.eval()


def photographs(model: Classifier) -> Tensor:
    """Return four photographs that scikit-image ships, as the model sees them: (4, 3, H, W)."""
    pictures = (data.chelsea(), data.coffee(), data.rocket(), data.astronaut())
    return torch.cat([model.prepare(read_image(picture)) for picture in pictures])


def views(model: Classifier, count: int = 8, size: int | None = None) -> Tensor:
    """Return the photographs and shifted mirror images of them, (count, 3, H, W).

    Args:
        model: prepares the photographs.
        count: how many.
        size: side in pixels; None: the model's own.
    """
    four = photographs(model)
    parts = [four]
    while 4 * len(parts) < count:
        parts.append(parts[-1].flip(3).roll(40, 2))
    images = torch.cat(parts)[:count]
    if size is None:
        return images
    return nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def sharing_copy(model: Classifier) -> Classifier:
    """Return a copy with modules of its own, for hooks to hang on, but the same weights."""
    kept = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


def in_place_off(model: Classifier) -> Classifier:
    """Return such a copy in which no module overwrites its input, with which hooks cannot do."""
    model = sharing_copy(model)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return model
