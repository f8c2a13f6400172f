"""HiResCAM: by hand, the paper's formula, its sum, and an independent package."""

from __future__ import annotations

import pytest
import torch
from layer_maps import PLACES, assert_like_grad_cam, maps_and_gradients, pooled, two_maps
from networks import build, images

from afmi.methods import HiResCAM
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    # ∂y_0/∂A is 4/4 and −2/4 at each of the four places.
    expected = torch.tensor([[1.0, -1.0], [0.0, 3.0 - 1.0]]).double()
    maps = HiResCAM(pooled(), layer="1").attribute(two_maps(), 0)
    torch.testing.assert_close(maps[0, 0], expected)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    features, gradients = maps_and_gradients(model, layer, x, 1)
    expected = upsample((features * gradients).sum(1, keepdim=True), (20, 20))
    torch.testing.assert_close(HiResCAM(model).attribute(x, 1), expected)


def test_sums_to_the_score_of_one_linear_layer() -> None:
    """The paper's guarantee, which is that of no Grad-CAM where the layer reads positions."""
    head = torch.nn.Linear(32, 3, bias=False)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), head).double()
    x = images(2, 6).double()
    attribution = HiResCAM(model, layer="0")._attribute
    from afmi.targets import Columns

    with torch.no_grad():
        maps = attribution(x, Columns(torch.tensor([2, 2]))).maps
    torch.testing.assert_close(maps.sum((1, 2, 3)), model(x)[:, 2].detach())


def test_equals_the_grad_cam_package() -> None:
    assert_like_grad_cam("HiResCAM", HiResCAM)
