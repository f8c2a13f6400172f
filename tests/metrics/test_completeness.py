"""Completeness: the residual that methods report, by hand and from the maps themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import case_of
from networks import build, images
from torch import nn

from afmi.methods import AFMI, GradCAM, IntegratedGradients
from afmi.metrics import Completeness


def test_residual_is_absolute_and_nan_where_undefined() -> None:
    case = case_of(IntegratedGradients(build("resnet"), steps=1), images(4))
    signed = torch.tensor([-0.25, 0.5, torch.inf, torch.nan])
    made = replace(case, attribution=replace(case.attribution, residual=signed))
    values = Completeness().measure(made)["residual"]
    assert values.dtype == torch.float64
    assert values[:2].tolist() == [0.25, 0.5]
    assert torch.isnan(values[2:]).all()


@pytest.mark.filterwarnings("ignore:Integrated Gradients misses the change")
def test_by_hand_on_a_parabola() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([(x**3).sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    # One midpoint step for x³ gives 3·(x/2)²·x = 0.75 x³, so a quarter is missing.
    case = case_of(
        IntegratedGradients(Square(), steps=1), torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0])
    )
    assert Completeness().measure(case)["residual"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("averaged", [True, False])
def test_equals_the_sum_of_the_map(averaged: bool) -> None:
    # The maps are not resized where the layer keeps the images' size.
    model, x = build("functional", torch.float64), images(3).double()
    case = case_of(AFMI(model, layer="conv2", averaged=averaged), x)
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x[:1]))).gather(1, case.targets[:, None])[:, 0]
    expected = (case.maps.sum((1, 2, 3)) - change).abs() / change.abs()
    values = Completeness().measure(case)["residual"]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)
    assert bool((values > 1e-3).all()) == averaged


def test_a_method_that_promises_no_sum_has_no_value() -> None:
    assert Completeness().measure(case_of(GradCAM(build("resnet")), images(2))) == {}
