"""Class discriminability: which classes are compared, by hand and against SciPy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import case_of
from networks import build, images
from scipy.stats import spearmanr
from torch import nn

from afmi.methods import AFMI, GradCAM, Gradient, InputXGradient, Random
from afmi.metrics import ClassDiscriminability

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")


def _linear(rows: list[list[float]]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, len(rows), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(rows))
    return model


ROWS = [
    [1.0, 2.0, 3.0, 4.0],  # logit 10 on the image of ones
    [-1.0, -2.0, -3.0, -4.0],  # −10
    [2.0, 1.0, 3.0, 2.5],  # 8.5
    [0.0, 0.0, 1.0, 0.0],  # 1
]


@pytest.mark.parametrize(
    ("target", "second", "least"),
    [
        # Class 0 has the ranks 1 2 3 4, class 2 those of 2 1 4 3, class 1 those of 4 3 2 1.
        (0, 0.6, -1.0),
        # The best other class is 0, the lowest 3, whose ranks are 2 2 4 2: −1/√(5·3).
        (1, -1.0, -1 / 15**0.5),
    ],
)
def test_by_hand_on_a_linear_network(target: int, second: float, least: float) -> None:
    # Input × gradient of the image of ones is the class's weights.
    case = case_of(InputXGradient(_linear(ROWS)), torch.ones(1, 1, 2, 2), torch.tensor([target]))
    values = ClassDiscriminability().measure(case)
    assert values["rank_correlation@second"].item() == pytest.approx(second)
    assert values["rank_correlation@least"].item() == pytest.approx(least)


@pytest.mark.parametrize("kind", [AFMI, InputXGradient, Gradient])
def test_against_maps_one_by_one(kind: Any) -> None:
    model, x = build("vgg"), images(3)
    targets = torch.tensor([0, 4, 2])
    case = case_of(kind(model), x, targets)
    values = ClassDiscriminability().measure(case)
    for i in range(3):
        order = [int(c) for c in case.logits[i].argsort(descending=True) if c != targets[i]]
        for name, other in (("second", order[0]), ("least", order[-1])):
            maps = [kind(model).attribute(x[i : i + 1], c) for c in (int(targets[i]), other)]
            expected = spearmanr(*(m.flatten().numpy() for m in maps))[0]
            value = values[f"rank_correlation@{name}"][i].item()
            assert value == pytest.approx(expected, abs=2e-3)  # ranks of nearly equal pixels


def test_a_map_without_a_class_is_the_same_for_all() -> None:
    values = ClassDiscriminability().measure(case_of(Random(build("resnet")), images(2)))
    assert all(value.tolist() == pytest.approx([1.0, 1.0]) for value in values.values())


def test_two_classes_are_second_and_least_at_once() -> None:
    case = case_of(InputXGradient(_linear(ROWS[::2])), torch.ones(1, 1, 2, 2))
    values = ClassDiscriminability().measure(case)
    assert values["rank_correlation@second"].item() == values["rank_correlation@least"].item()


def test_one_class_has_no_other() -> None:
    case = case_of(InputXGradient(_linear(ROWS[:1])), torch.ones(2, 1, 2, 2))
    values = ClassDiscriminability().measure(case)
    assert [torch.isnan(v).tolist() for v in values.values()] == [[True, True]] * 2


def test_a_blank_map_is_no_value_and_no_warning() -> None:
    # Nothing speaks for class 1, so Grad-CAM's map of it is 0.
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    case = case_of(GradCAM(model, layer="1"), images(2, size=6, channels=1), torch.tensor([0, 0]))
    values = ClassDiscriminability().measure(case)
    assert torch.isnan(values["rank_correlation@second"]).all()
