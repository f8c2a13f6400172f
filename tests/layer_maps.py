"""A layer's feature maps and gradients by a hook, and the maps of the grad-cam package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from afmi.methods import Method

PLACES = [("vgg", "features.5"), ("resnet", "layer1")]
"""Tiny networks and their last stages."""


def maps_and_gradients(
    model: nn.Module, layer: str, inputs: Tensor, target: int
) -> tuple[Tensor, Tensor]:
    """Return a layer's feature maps and the gradient of a class's logit by them."""
    kept: list[Tensor] = []

    def keep(_module: object, _args: object, output: Tensor) -> Tensor:
        kept.append(output.clone())
        kept[0].retain_grad()
        return kept[0].clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(inputs)
    handle.remove()
    logits[:, target].sum().backward()
    model.zero_grad()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad


def pooled(*, bias: bool = False) -> nn.Sequential:
    """Return a network of two maps, the pixels' first two channels, and two classes.

    y_0 = 4 mean(A^0) − 2 mean(A^1), y_1 = mean(A^1).
    """
    convolution, head = nn.Conv2d(2, 2, 1, bias=bias), nn.Linear(2, 2, bias=bias)
    model = nn.Sequential(
        convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    ).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(2)[:, :, None, None])
        head.weight.copy_(torch.tensor([[4.0, -2.0], [0.0, 1.0]]))
    return model.eval()


def two_maps() -> Tensor:
    """Return an image (1, 2, 2, 2) whose channels are the feature maps of `pooled`."""
    return torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 2.0]]]]).double()


def assert_like_grad_cam(
    name: str, method: type[Method], *, scale: float = 1e2, **options: Any
) -> None:
    """Compare with the grad-cam package, which scales maps and interpolates by OpenCV."""
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = build("resnet", torch.float64), images(1).double()
    # Its epsilons are absolute; large numbers make them vanish.
    model.fc.weight.data *= scale
    with getattr(package, name)(model=model, target_layers=[model.layer1]) as other:
        theirs = other(input_tensor=x, targets=[targets.ClassifierOutputTarget(1)])[0]
    ours = method(model, **options).attribute(x, 1)[0, 0].relu()
    both = torch.stack([ours.flatten(), torch.from_numpy(theirs).double().flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.999
