"""XGrad-CAM: by hand, the paper's formula, its axioms, and an independent package."""

from __future__ import annotations

import pytest
import torch
from layer_maps import PLACES, assert_like_grad_cam, maps_and_gradients, pooled, two_maps
from networks import build, images
from torch import nn

from afmi.methods import GradCAM, XGradCAM
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    """A head that reads positions: y_0 = 2 A_00 + 6 A_11 for A = (1, 0; 0, 3)."""
    head = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0, 0.0, 6.0], [1.0, 1.0, 1.0, 1.0]]))
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), head).eval()
    x = two_maps()[:, :1]
    # α = (1·2 + 3·6)/(1 + 3) = 5, where Grad-CAM has (2 + 6)/4 = 2.
    torch.testing.assert_close(XGradCAM(model, layer="0").attribute(x, 0), 5 * x)
    torch.testing.assert_close(GradCAM(model, layer="0").attribute(x, 0), 2 * x)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    features, gradients = maps_and_gradients(model, layer, x, 1)
    expected = torch.zeros(2, 1, *features.shape[2:], dtype=torch.float64)
    for n in range(2):
        for a, g in zip(features[n], gradients[n], strict=True):
            if float(a.sum()) != 0:
                expected[n, 0] += (a / a.sum() * g).sum() * a
    maps = XGradCAM(model).attribute(x, 1)
    torch.testing.assert_close(maps, upsample(expected.clamp_min(0), (20, 20)))


def test_maps_of_zeros_count_for_nothing() -> None:
    x = two_maps()
    x[:, 1] = 0
    torch.testing.assert_close(XGradCAM(pooled(), layer="1").attribute(x, 0), x[:, :1])


def test_equals_the_grad_cam_package() -> None:
    assert_like_grad_cam("XGradCAM", XGradCAM)
