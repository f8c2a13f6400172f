"""Multiscale A-FMI: its formula in slow float64, its sum, its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import TINY, build, images
from torch import Tensor, nn

from afmi.errors import CompletenessWarning, UsageError
from afmi.methods import AFMI, DeepLIFT, MultiscaleAFMI
from afmi.pictures.references import Black, Random, Several, White

LAYERS = {"vgg": "features.5", "resnet": "layer1", "functional": "conv2"}


def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Spread each place's value over all places by a Gaussian whose weights sum to 1."""
    height, width = plane.shape
    result = np.zeros_like(plane)
    for i in range(height):
        for j in range(width):
            rows = np.exp(-((np.arange(height) - i) ** 2) / (2 * sigma**2))
            columns = np.exp(-((np.arange(width) - j) ** 2) / (2 * sigma**2))
            result += plane[i, j] * np.outer(rows / rows.sum(), columns / columns.sum())
    return result


class Stages(nn.Sequential):
    """Stages of 12 × 12, 6 × 6 and 3 × 3 places, and a head that is not linear."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(45, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        )
        self.double()


def test_by_the_formula() -> None:
    model, image = Stages(), torch.rand(1, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        change = float((model(image) - model(torch.zeros_like(image)))[0, 2])
    averaged = AFMI(model).attribution(image, 2)
    assert str(averaged.layer) == "7"
    # At the image's size each of 3 × 3 places is spread over 16 pixels.
    coarse = averaged.maps[0, 0].numpy() / 16
    coarse += (change - coarse.sum()) / 144
    # Max pooling and what follows decide what a place contributes: the stage is its input.
    finer = AFMI(model, layer="4", averaged=False).attribute(image, 2)[0, 0].numpy() / 4
    finer += (change - finer.sum()) / 144
    pixels = DeepLIFT(model).attribute(image, 2)[0, 0].numpy()
    parts = [coarse, blurred(finer, 1.2), blurred(pixels, 1.2)]
    weights = np.array([1 / part.std() for part in parts])
    expected = sum(w * part for w, part in zip(weights / weights.sum(), parts, strict=True))
    attribution = MultiscaleAFMI(model).attribution(image, 2)
    np.testing.assert_allclose(attribution.maps[0, 0].numpy(), expected, rtol=1e-9, atol=1e-12)
    assert attribution.layer == averaged.layer
    assert float(attribution.maps.sum()) == pytest.approx(change, rel=1e-12)


@pytest.mark.parametrize("network", TINY)
def test_the_map_sums_to_the_change_of_the_logit(network: str) -> None:
    model, x = build(network, torch.float64), images().double()
    for reference in (Black(), White(), Random(samples=2)):
        for blur in (0.03, 0.1, 2.0):
            method = MultiscaleAFMI(model, layer=LAYERS[network], reference=reference, blur=blur)
            residual = method.attribution(x, 1).residual
            assert residual is not None
            assert residual.abs().max() < 1e-9


def test_several_references_are_averaged() -> None:
    model, x = Stages(), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    both = Several((Black(), White()))
    maps = [MultiscaleAFMI(model, reference=r).attribute(x, 1) for r in (Black(), White(), both)]
    torch.testing.assert_close(maps[2], (maps[0] + maps[1]) / 2)


def test_classes_share_their_passes() -> None:
    model, x = Stages(), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    method = MultiscaleAFMI(model)
    together = method.attribute_classes(x, [0, 1, 2])
    for of in range(3):
        torch.testing.assert_close(together[of], method.attribute(x, of))


class ReadsOnePlace(nn.Module):
    """y = the mean of the maps, each of which is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.maps.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(nn.functional.avg_pool2d(x, 4))
        return torch.cat([maps.mean((2, 3)), -maps.mean((2, 3))], 1)


def test_a_map_that_ranks_nothing_has_no_weight() -> None:
    """All places of the layer contribute the same: the blurred pixels alone are shown."""
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 0::4, 0::4] = 1
    model = ReadsOnePlace().double()
    map = MultiscaleAFMI(model, layer="maps").attribute(x, 0)[0, 0].numpy()
    pixels = blurred(x[0, 0].numpy() / 64, 0.8)
    np.testing.assert_allclose(map, pixels, rtol=1e-9)
    assert math.isclose(map.sum(), 4 / 64, rel_tol=1e-12)


@pytest.mark.parametrize("blur", [0, -0.1, math.inf, math.nan])
def test_a_blur_that_cannot_be(blur: float) -> None:
    with pytest.raises(UsageError, match="expected a blur above 0"):
        MultiscaleAFMI(Stages(), blur=blur)


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x).tanh() * self.b(x).tanh()).mean((2, 3))


def test_evidence_beside_the_layer_is_said() -> None:
    with pytest.warns(CompletenessWarning, match="other paths lead around the layer"):
        MultiscaleAFMI(TwoBranches(), layer="b").attribute(images(), 1)


def test_a_last_stage_of_one_place_has_no_weight() -> None:
    """A network for large images on a small one: the finer maps make the map."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, stride=4, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6, 3)),
    )
    x = torch.rand(1, 3, 7, 7)
    maps = MultiscaleAFMI(model, layer="3").attribute(x, 1)
    assert maps.std() > 0.01 * maps.abs().mean()


def test_sixteen_bits_hold_the_map() -> None:
    model, x = Stages(), torch.rand(1, 3, 12, 12, dtype=torch.float64)
    expected = MultiscaleAFMI(model).attribute(x, 2)
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
        maps = MultiscaleAFMI(model.to(dtype)).attribute(x.to(dtype), 2).double()
        assert (maps - expected).abs().max() < tolerance * expected.abs().max()
