"""Input invariance: closed forms, the bias of a first layer, and references that move along."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import case_of
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi import Classifier
from afmi.errors import ModelError, UsageError
from afmi.methods import (
    AFMI,
    LRP,
    DeepLIFT,
    GradCAM,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    Method,
    Random,
    SmoothGrad,
)
from afmi.methods.base import Attribution
from afmi.methods.work import Work
from afmi.metrics import Case, InputInvariance, Metric
from afmi.pictures.references import Blurred, Image, Mean, White
from afmi.pictures.references import Random as RandomReference
from afmi.specs import parse, text
from afmi.targets import Columns, Difference


def linear(weights: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([weights, [0.0] * len(weights)]))
    return model


X = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64).reshape(1, 1, 2, 2)


def test_by_hand_on_a_linear_network() -> None:
    # x·w = (0.8, 1.2, 1.0, 0.9) has ranks 1 4 3 2, and (x − 1)·w = (−7.2, −2.8, −1, −0.1) has
    # ranks 1 2 3 4: Σd² = 4 + 4, ρ = 1 − 6·8/60. They lie ‖w‖ apart.
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    model = linear(weights.tolist())
    values = InputInvariance().measure(case_of(InputXGradient(model), X, torch.tensor([0])))
    assert values["rank_correlation"].item() == pytest.approx(0.2)
    expected = weights.norm() / (X.flatten() * weights).norm()
    assert values["relative_distance"].item() == pytest.approx(expected.item())
    values = InputInvariance().measure(case_of(Gradient(model), X, torch.tensor([0])))
    assert values["rank_correlation"].item() == 1
    assert values["relative_distance"].item() == 0


def test_shift_of_each_channel_and_of_each_pixel() -> None:
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    case = case_of(InputXGradient(linear(weights.tolist())), X, torch.tensor([0]))
    for shift in (torch.rand(1, 2, 2, dtype=torch.float64), [0.5]):
        values = InputInvariance(shift=shift).measure(case)  # type: ignore[arg-type]
        moved = torch.as_tensor(shift, dtype=torch.float64).flatten().expand(4)
        expected = (moved * weights).norm() / (X.flatten() * weights).norm()
        assert values["relative_distance"].item() == pytest.approx(expected.item())


def biased(model: nn.Module, shift: float) -> nn.Module:
    """Return a network whose first bias undoes the shift: b − W s, equation 3 of the paper."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv1.bias -= shift * other.conv1.weight.sum((1, 2, 3))
    return other


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (IntegratedGradients, {"steps": 4}),
        (DeepLIFT, {}),
        (AFMI, {"layer": "conv2"}),
        (InputXGradient, {}),
        (LRP, {}),
        (Gradient, {}),
        (GradCAM, {"layer": "conv2"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Integrated Gradients misses the change")
def test_second_network_is_that_with_another_bias(kind: type[Method], options: Any) -> None:
    torch.manual_seed(0)
    model, x = MNISTNet().double().eval(), images(2, 28, 1).double()
    case = case_of(kind(model, **options), x)
    values = InputInvariance(shift=-0.75).measure(case)  # type: ignore[arg-type]
    other = kind(biased(model, -0.75), **options).attribute(x - 0.75, case.targets)
    distance = (other - case.maps).flatten(1).norm(dim=1) / case.maps.flatten(1).norm(dim=1)
    torch.testing.assert_close(values["relative_distance"], distance, rtol=1e-9, atol=1e-12)
    invariant = kind in (Gradient, GradCAM)
    assert bool((distance < 1e-9).all()) == invariant


@pytest.mark.parametrize(
    "reference", [White(), Mean((0.2, 0.4, 0.6)), RandomReference(2, 3), Blurred(2.0)]
)
@pytest.mark.parametrize("kind", [DeepLIFT, AFMI, InputXGradient])
def test_a_reference_that_moves_along_makes_invariant(kind: Any, reference: Any) -> None:
    network, x = build("vgg", torch.float64), images(2).double()
    model = Classifier(network, mean=[0.3, 0.4, 0.5], std=[0.2, 0.3, 0.2])
    case = case_of(kind(model, reference=reference), x)
    moved = InputInvariance(moved_reference=True).measure(case)
    assert (moved["relative_distance"] < 1e-9).all()
    assert (moved["rank_correlation"] > 1 - 1e-6).all()
    stays = InputInvariance().measure(case)["relative_distance"]
    # Made of the image, it moves by itself.
    assert bool((stays < 1e-9).all()) == isinstance(reference, Blurred)
    assert bool((stays > 0.01).all()) != isinstance(reference, Blurred)


def test_the_reference_of_a_method_inside_moves_too() -> None:
    model, x = build("vgg", torch.float64), images(2).double()
    smooth = SmoothGrad(model, base=DeepLIFT(model), samples=2, noise=0)
    for method in (smooth, SmoothGrad(model, base=smooth, samples=1, noise=0)):
        case = case_of(method, x)
        assert (InputInvariance().measure(case)["relative_distance"] > 0.01).all()
        moved = InputInvariance(moved_reference=True).measure(case)
        assert (moved["relative_distance"] < 1e-9).all()


@pytest.mark.parametrize("kind", [Gradient, SmoothGrad, InputXGradient])
def test_a_method_without_a_reference_has_none_to_move(kind: type[Method]) -> None:
    case = case_of(kind(build("vgg")), images(1))
    with pytest.raises(UsageError, match=f"{kind.name} has no reference that could be moved"):
        InputInvariance(moved_reference=True).measure(case)


@dataclass(frozen=True)
class Brightness(Method):
    """Shows the image itself."""

    name = "Brightness"

    def work(self, inputs: Tensor) -> Work:
        return Work()

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        classes = torch.zeros(len(inputs), dtype=torch.int64)
        return Attribution(inputs.mean(1, keepdim=True), classes)


def test_work_counts_the_forward_of_a_method_without_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("afmi.network.trial._try", lambda *_: None)
    x, model = images(2), build("vgg")
    for kind in (Brightness, Random, Gradient):
        method = kind(model)
        case, counts = case_of(method, x), list[int]()
        hook = model.register_forward_pre_hook(
            lambda _, args, counts=counts: counts.append(len(args[0]))
        )
        InputInvariance().measure(case)
        hook.remove()
        assert InputInvariance().work(method, x).forwards == 1
        assert counts == [2]


def test_other_targets_than_classes() -> None:
    model, x = build("vgg", torch.float64), images(2).double()
    method = Gradient(model)
    attribution = method.attribution(x, Difference(1, 2))
    assert attribution.targets is not None and attribution.scores is not None
    case = Case(method, x, attribution.targets, attribution, attribution.scores[:, None])
    assert (InputInvariance().measure(case)["relative_distance"] < 1e-9).all()


def test_a_shift_that_rounding_does_not_undo_is_named() -> None:
    case = case_of(Gradient(build("vgg")), images(1))
    with pytest.raises(ModelError, match=r"outputs moved by .* choose a smaller shift"):
        InputInvariance(shift=1e7).measure(case)  # type: ignore[arg-type]


def test_maps_without_size_have_no_value() -> None:
    class Still(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)) * 0 + 1, x.sum((1, 2, 3))], 1)

    with pytest.warns(match="the same everywhere"):
        case = case_of(Gradient(Still().eval()), images(1), torch.tensor([0]))
    values = InputInvariance().measure(case)
    assert all(value.isnan().all() for value in values.values())


def test_shifts_that_are_none() -> None:
    with pytest.raises(UsageError, match="the same for every image, got blurred"):
        InputInvariance(shift=Blurred())
    several = InputInvariance(shift=Image(torch.rand(2, 3, 20, 20)))
    with pytest.raises(UsageError, match="expected one shift for every image, got 2"):
        several.measure(case_of(Gradient(build("vgg")), images(1)))


def test_text() -> None:
    metric = parse("input-invariance:shift=white:moved_reference=true", Metric)
    assert metric == InputInvariance(shift=White(), moved_reference=True)
    assert parse(text(metric), Metric) == metric
