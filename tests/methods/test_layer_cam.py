"""LayerCAM: by hand, the paper's formula, and an independent package."""

from __future__ import annotations

import pytest
import torch
from layer_maps import PLACES, assert_like_grad_cam, maps_and_gradients, pooled, two_maps
from networks import build, images

from afmi.methods import LayerCAM
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    # Only the first map has a positive gradient, 4/4 at each place.
    maps = LayerCAM(pooled(), layer="1").attribute(two_maps(), 0)
    torch.testing.assert_close(maps[0, 0], two_maps()[0, 0])


@pytest.mark.parametrize(("name", "layer"), [*PLACES, ("vgg", "features.2")])
def test_equals_the_formula(name: str, layer: str) -> None:
    """At an early layer too, which is what the method is for."""
    model, x = build(name, torch.float64), images(2).double()
    features, gradients = maps_and_gradients(model, layer, x, 1)
    expected = (gradients.clamp_min(0) * features).sum(1, keepdim=True).clamp_min(0)
    maps = LayerCAM(model, layer=layer).attribute(x, 1)
    torch.testing.assert_close(maps, upsample(expected, (20, 20)))


def test_equals_the_grad_cam_package() -> None:
    assert_like_grad_cam("LayerCAM", LayerCAM)
