"""Reference reliability: pairs of references by hand, and against SciPy and scikit-image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import case_of
from networks import build, images
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from afmi.errors import UsageError
from afmi.methods import AFMI, LIME, GradCAM, InputXGradient, IntegratedGradients, Random
from afmi.methods.work import Work
from afmi.metrics import ReferenceReliability
from afmi.pictures.references import Black, Mean, White
from afmi.pictures.references import Random as RandomPixels

PAIRS = ["black-white", "black-random", "white-random"]


def _linear(weights: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([weights, [0.0] * len(weights)]))
    return model


def test_by_hand_on_a_linear_network() -> None:
    # Maps w·x = (1, 2, 3, 4) against black and w·(x − 1) = (0, −2, −6, −4) against white:
    # ranks 1 2 3 4 and 4 3 1 2, Σd² = 9 + 1 + 4 + 4, ρ = 1 − 6·18/60 = −0.8.
    model = _linear([1.0, 4.0, 9.0, 8.0])
    x = torch.tensor([1.0, 0.5, 1 / 3, 0.5], dtype=torch.float64).reshape(1, 1, 2, 2)
    case = case_of(IntegratedGradients(model, steps=1), x, torch.tensor([0]))
    values = ReferenceReliability(references=(Black(), White())).measure(case)
    assert values["rank_correlation@black-white"].item() == pytest.approx(-0.8)
    assert values["rank_correlation"].item() == pytest.approx(-0.8)
    assert torch.isnan(values["ssim"]).all()  # the map is smaller than a window


@pytest.mark.parametrize("reference", [Black(), White(), Mean((0.3,) * 3)])
def test_against_independent_implementations(reference: Any) -> None:
    model, x = build("vgg"), images(2, seed=5)  # seed 0 draws the random reference itself
    case = case_of(AFMI(model, layer="features.5", reference=reference), x)
    measured = ReferenceReliability().measure(case)
    maps = {
        str(r): AFMI(model, layer="features.5", reference=r).attribute(x, case.targets)
        for r in (Black(), White(), RandomPixels(seed=0))
    }
    expected: dict[str, list[np.ndarray]] = {"rank_correlation": [], "ssim": []}
    for pair in PAIRS:
        one, other = (maps[name][:, 0].double().numpy() for name in pair.split("-"))
        ranks = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(one, other, strict=True)]
        alike = [
            structural_similarity(
                np.interp(a, (a.min(), a.max()), (0, 1)),
                np.interp(b, (b.min(), b.max()), (0, 1)),
                data_range=1,
            )
            for a, b in zip(one, other, strict=True)
        ]
        np.testing.assert_allclose(measured[f"rank_correlation@{pair}"], ranks, atol=1e-9)
        np.testing.assert_allclose(measured[f"ssim@{pair}"], alike, atol=1e-6)
        expected["rank_correlation"].append(np.array(ranks))
        expected["ssim"].append(np.array(alike))
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], np.mean(values, 0), atol=1e-6)
    assert set(measured) == {*expected, *(f"{name}@{pair}" for name in expected for pair in PAIRS)}


def test_equal_references_of_two_names_give_equal_maps() -> None:
    model, x = build("resnet"), images(2)
    case = case_of(AFMI(model, layer="layer1"), x)

    class Dark(Black):
        def __str__(self) -> str:
            return "dark"

    values = ReferenceReliability(references=(White(), Dark(), Black())).measure(case)
    assert values["rank_correlation@dark-black"].tolist() == pytest.approx([1.0, 1.0])
    assert values["ssim@dark-black"].tolist() == pytest.approx([1.0, 1.0])
    assert (values["rank_correlation@white-black"] < 1 - 1e-6).all()


@pytest.mark.filterwarnings("ignore:Integrated Gradients misses the change")
def test_a_blank_map_is_no_value_and_no_warning() -> None:
    # An image that is white all over has the blank map 0 against white.
    case = case_of(IntegratedGradients(build("resnet"), steps=1), torch.ones(1, 3, 20, 20))
    values = ReferenceReliability().measure(case)
    assert torch.isnan(values["rank_correlation@black-white"]).all()
    assert torch.isnan(values["ssim@black-white"]).all()
    assert torch.isfinite(values["ssim@black-random"]).all()
    assert torch.isnan(values["rank_correlation"]).all()


@pytest.mark.parametrize("kind", [GradCAM, InputXGradient, Random, LIME])
def test_methods_without_a_reference_image_have_no_value(kind: Any) -> None:
    options = {"samples": 4} if kind is LIME else {}
    method = kind(build("resnet"), **options)
    metric = ReferenceReliability()
    assert metric.measure(case_of(method, images(1))) == {}
    assert metric.work(method, images(1)) == Work()


def test_the_own_reference_is_not_explained_again() -> None:
    model, x = build("resnet"), images(1, seed=5)  # seed 0 draws the random reference itself
    method = IntegratedGradients(model, steps=3)
    metric = ReferenceReliability()
    assert metric.work(method, x) == Work(2 * 5, 2 * 3)
    other = replace(method, reference=Mean((0.5,) * 3))
    assert metric.work(other, x) == Work(3 * 5, 3 * 3)
    # The case's own map is what is compared, so a changed one shows.
    case = case_of(method, x)
    values = metric.measure(case)
    turned = replace(case, attribution=replace(case.attribution, maps=-case.maps))
    again = metric.measure(turned)
    for pair in ("black-white", "black-random"):
        key = f"rank_correlation@{pair}"
        torch.testing.assert_close(again[key], -values[key])
    key = "rank_correlation@white-random"
    assert torch.equal(again[key], values[key])


@pytest.mark.parametrize(
    "references", [(), (Black(),), (Black(), Black()), (RandomPixels(seed=1), RandomPixels(seed=1))]
)
def test_references_that_make_no_pairs(references: Any) -> None:
    with pytest.raises(UsageError, match="two or more references of different names"):
        ReferenceReliability(references=references)
