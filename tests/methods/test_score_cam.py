"""Score-CAM: by hand, map by map, what hides, and an independent package."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layer_maps import PLACES, assert_like_grad_cam, maps_and_gradients, pooled, two_maps
from networks import build, images
from torch import Tensor, nn

from afmi import Classifier
from afmi.errors import UsageError
from afmi.methods import ScoreCAM
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    """Masks of full size: H^0 = A^0/3 and H^1 = A^1/2."""
    x = two_maps()
    masked = torch.cat([x * x[:, :1] / 3, x * x[:, 1:] / 2])
    # The first keeps (1/3, 0; 0, 3) and (0, 0; 0, 2), the second (0, 0; 0, 3) and (0, 2; 0, 2).
    y = torch.tensor([[10 / 3 - 1.0, 0.5], [3 - 2.0, 1.0]]).double()
    torch.testing.assert_close(pooled()(masked), y)
    p = y.softmax(1)[:, 0]
    maps = ScoreCAM(pooled(), layer="1").attribute(x, 0)
    torch.testing.assert_close(maps[0, 0], p[0] * x[0, 0] + p[1] * x[0, 1])
    w = y[:, 0].softmax(0)
    maps = ScoreCAM(pooled(), layer="1", weights="softmax").attribute(x, 0)
    torch.testing.assert_close(maps[0, 0], w[0] * x[0, 0] + w[1] * x[0, 1])


def slow(model: nn.Module, features: Tensor, image: Tensor, target: int) -> Tensor:
    """One map after the other, for one image."""
    total = torch.zeros(features.shape[1:], dtype=torch.float64)
    for a in features:
        mask = F.interpolate(a[None, None], image.shape[1:], mode="bilinear", align_corners=False)
        if mask.max() > mask.min():
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            with torch.no_grad():
                total += model(image * mask).softmax(1)[0, target] * a
    return total.clamp_min(0)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    features = maps_and_gradients(model, layer, x, 1)[0]
    expected = torch.stack([slow(model, features[n], x[n], 3)[None] for n in range(2)])
    maps = ScoreCAM(model, batch_size=5).attribute(x, 3)
    torch.testing.assert_close(maps, upsample(expected, (20, 20)))


def test_hides_with_the_colour_that_the_normalisation_makes_zero() -> None:
    network, mean, std = build("vgg", torch.float64), [0.5, 0.2, 0.4], [0.25, 0.5, 0.2]
    image = images(1).double()
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = ScoreCAM(network).attribute(normalised, 2)
    maps = ScoreCAM(Classifier(network, mean=mean, std=std)).attribute(image, 2)
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("weights", ["probability", "softmax"])
def test_a_constant_map_counts_for_nothing(weights: str) -> None:
    x = two_maps()
    x[:, 1] = 2.0
    maps = ScoreCAM(pooled(), layer="1", weights=weights).attribute(x, 1)
    torch.testing.assert_close(maps / maps.max(), x[:, :1] / 3)


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="'probability' or 'softmax', got 'mean'"):
        ScoreCAM(pooled(), weights="mean")


def test_equals_the_grad_cam_package() -> None:
    """Which aligns corners in its masks, so that it does not agree to the last digit."""
    assert_like_grad_cam("ScoreCAM", ScoreCAM, scale=1.0, weights="softmax")
