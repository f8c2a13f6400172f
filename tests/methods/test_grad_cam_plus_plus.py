"""Grad-CAM++: the paper's formula in loops, and an independent package."""

from __future__ import annotations

import pytest
import torch
from networks import build, images

from afmi.methods import GradCAMPlusPlus
from afmi.pictures.maps import upsample


def by_the_paper(maps: torch.Tensor, gradient: torch.Tensor, score: float) -> torch.Tensor:
    """Eq. 11 and 19 for one image, with Y = exp(score) and its derivatives written out."""
    y = torch.tensor(score, dtype=torch.float64).exp()
    result = torch.zeros(maps.shape[1:], dtype=torch.float64)
    for a, g in zip(maps, gradient, strict=True):
        weight = 0.0
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                first, second, third = y * g[i, j], y * g[i, j] ** 2, y * g[i, j] ** 3
                bottom = 2 * second + (a.sum() * third)
                alpha = second / bottom if first > 0 and bottom != 0 else 0.0
                weight += alpha * max(float(first), 0.0)
        result += weight * a
    return result.clamp_min(0) / y


@pytest.mark.parametrize(("name", "layer"), [("vgg", "features.5"), ("resnet", "layer1")])
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    maps = GradCAMPlusPlus(model).attribute(x, 1)
    kept: dict[str, torch.Tensor] = {}

    def keep(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        kept["maps"] = output.clone()
        kept["maps"].retain_grad()
        return kept["maps"].clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(x)
    handle.remove()
    logits[:, 1].sum().backward()
    expected = torch.stack(
        [
            by_the_paper(a, g, float(y))
            for a, g, y in zip(
                kept["maps"].detach(), kept["maps"].grad, logits[:, 1].detach(), strict=True
            )
        ]
    )
    torch.testing.assert_close(maps, upsample(expected[:, None], (20, 20)))


def test_equals_the_grad_cam_package() -> None:
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = build("resnet", torch.float64), images(1).double()
    # The package adds 1e-6 to the denominator; large gradients make that vanish.
    model.fc.weight.data *= 1e4
    with package.GradCAMPlusPlus(model=model, target_layers=[model.layer1]) as other:
        theirs = other(input_tensor=x, targets=[targets.ClassifierOutputTarget(1)])[0]
    ours = GradCAMPlusPlus(model).attribute(x, 1)[0, 0]
    # It scales each map to [0, 1] and interpolates with OpenCV.
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    correlation = torch.corrcoef(
        torch.stack([ours.flatten(), torch.from_numpy(theirs).double().flatten()])
    )[0, 1]
    assert float(correlation) > 0.999


def test_no_gradient_no_weight() -> None:
    # A class that the maps only lower has no positive gradient, so nothing speaks for it.
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    model.append(torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[3].weight.fill_(-1.0)
    with pytest.warns(UserWarning, match="same everywhere"):
        maps = GradCAMPlusPlus(model, layer="0").attribute(images(1, 6), 0)
    assert float(maps.abs().max()) == 0.0
