"""IntegratedGradients: closed form, Eq. 3 by hand, parity with Captum, completeness."""

from __future__ import annotations

import networks
import pytest
import torch
from pixel_networks import assert_like_any_method, plain
from torch import Tensor, nn

from afmi.errors import CompletenessWarning, UsageError
from afmi.methods.pixels.input_x_gradient import InputXGradient
from afmi.methods.pixels.integrated_gradients import IntegratedGradients
from afmi.pictures.references import Black, Blurred, Image, Several, White

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")

few_steps = pytest.mark.filterwarnings("ignore:.*Integrated Gradients misses the change")
"""A test of values that hold at any number of steps."""


class Square(nn.Module):
    """y = (Σ x)²."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True) ** 2


def test_closed_form() -> None:
    # The gradient 2 Σx grows linearly on the way, so the midpoint rule is exact in one step.
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    attribution = IntegratedGradients(Square(), steps=1).attribution(image)
    assert attribution.maps.flatten().tolist() == pytest.approx([10, 20, 30, 40])
    assert attribution.residual is not None
    assert attribution.residual.item() == pytest.approx(0)


def test_linear_network_is_input_times_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    images = networks.images(3, 8)
    expected = InputXGradient(model).attribute(images, 1)
    maps = IntegratedGradients(model, steps=7).attribute(images, 1)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@few_steps
def test_the_papers_equation() -> None:
    model, images = networks.build("functional", torch.float64), networks.images(2, 8).double()
    start = torch.full_like(images, 0.4)
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    for i in range(2):
        for s in range(1, 13):
            x = start[i : i + 1] + (s - 0.5) / 12 * (images[i : i + 1] - start[i : i + 1])
            (gradient,) = torch.autograd.grad(model(x.requires_grad_())[0, 3], x)
            expected[i] += ((images[i] - start[i]) * gradient[0] / 12).sum(0)
    method = IntegratedGradients(model, steps=12, reference=Image(start[0]), batch_size=5)
    torch.testing.assert_close(method.attribute(images, 3), expected)


@few_steps
def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = plain(), networks.images(3, 12).double()
    theirs = captum_attr.IntegratedGradients(model).attribute(
        images, target=2, n_steps=10, method="riemann_middle"
    )
    maps = IntegratedGradients(model, steps=10).attribute(images, 2)
    torch.testing.assert_close(maps, theirs.sum(1, keepdim=True))


@few_steps
def test_completeness_error_falls_with_the_steps() -> None:
    model, images = networks.build("vgg", torch.float64), networks.images().double()
    errors = []
    for steps in (1, 8, 64, 512):
        residual = (
            IntegratedGradients(model, steps=steps, batch_size=64).attribution(images).residual
        )
        assert residual is not None
        errors.append(float(residual.abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-3


@few_steps
def test_references_are_averaged() -> None:
    model, images = networks.build("vgg"), networks.images(2)
    one = [
        IntegratedGradients(model, steps=6, reference=r).attribute(images, 0)
        for r in (Black(), White())
    ]
    both = IntegratedGradients(model, steps=6, reference=Several([Black(), White()]))
    torch.testing.assert_close(both.attribute(images, 0), torch.stack(one).mean(0))


@few_steps
def test_reference_of_each_image() -> None:
    method = IntegratedGradients(networks.build("vgg"), steps=5, reference=Blurred())
    assert_like_any_method(method, networks.images())


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    model, images = networks.build("resnet", torch.float64), networks.images().double()
    expected = IntegratedGradients(model, steps=9).attribute(images)
    maps = IntegratedGradients(model, steps=9, batch_size=batch_size).attribute(images)
    torch.testing.assert_close(maps, expected)


class Step(nn.Module):
    """y = 10 relu(Σ x − 0.9), so that the gradient jumps at 0.9, and counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return 10 * (x.flatten(1).sum(1, keepdim=True) - 0.9).relu()


# On the way to 1, 2 and 0.5 pixels of white the jump comes at 0.9, 0.45 and never.
WAYS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).view(3, 1, 1, 1)


def test_a_miss_of_the_change_is_reported_with_its_size() -> None:
    # Of 3 midpoints one of 1/6, 1/2, 5/6 is behind 0.45, none behind 0.9: 10·2·(2/3) for 11.
    with pytest.warns(CompletenessWarning, match=r"by 100% of it for image 0 \(and 1 more by less"):
        found = IntegratedGradients(Step(), steps=3).attribution(WAYS, 0)
    assert found.residual is not None
    assert found.residual[:2].tolist() == pytest.approx([-1, 40 / 3 / 11 - 1])
    with pytest.warns(CompletenessWarning, match="by 21% of it for image 0, after 3 steps"):
        IntegratedGradients(Step(), steps=3).attribute(WAYS[1:], 0)
    assert IntegratedGradients(Step(), steps=3).attribute(WAYS[2:], 0).abs().max() == 0


def test_a_miss_by_rounding_is_none() -> None:
    # The score is large, and its change is rounding alone.
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-5)
        model[1].bias.fill_(1e3)
    IntegratedGradients(model, steps=2).attribute(torch.rand(2, 3, 2, 2), 0)


def test_a_tolerance_triples_the_steps_where_it_has_to() -> None:
    model, tolerance = Step(), 0.01
    method = IntegratedGradients(model, steps=3, tolerance=tolerance)
    found = method.attribution(WAYS, 0)
    assert found.residual is not None
    assert (found.residual[:2].abs() <= tolerance).all()
    # The points of fewer steps are used again: no image goes through more often than its steps,
    # but for the images, the reference, the network's trial, and a look at the references where a
    # score did not change.
    steps = [729, 243, 3]
    assert model.images == sum(steps) + len(WAYS) + 1 + 6 + len(WAYS)
    for way, map_, m in zip(WAYS, found.maps, steps, strict=True):
        plainly = IntegratedGradients(model, steps=m).attribute(way[None], 0)
        torch.testing.assert_close(map_[None], plainly)


def test_half_precision_misses_by_no_more_than_its_rounding() -> None:
    # Under autocast the logits have another dtype than the images.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with torch.autocast("cpu", torch.bfloat16):
        method = IntegratedGradients(model, steps=3, tolerance=0.05)
        assert method.attribute(networks.images(2, 8), 1).dtype == torch.float32


def test_a_tolerance_is_met_over_all_references() -> None:
    model, images = networks.build("vgg", torch.float64), networks.images(2).double()
    several = Several([Black(), White()])
    for reference in (several, Blurred()):
        method = IntegratedGradients(model, steps=2, tolerance=0.02, reference=reference)
        assert_like_any_method(method, images)


def test_a_tolerance_out_of_reach_is_given_up_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("afmi.gradients.integrated.MOST_STEPS", 20)
    model = Step()
    with pytest.warns(CompletenessWarning, match="after 9 steps .*choose another reference"):
        IntegratedGradients(model, steps=3, tolerance=1e-6).attribute(WAYS[:1], 0)
    assert model.images == 9 + 2 + 6  # and the network's trial


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        IntegratedGradients(nn.Flatten(), **bad)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, 1.0, float("nan")])
def test_bad_tolerances(tolerance: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        IntegratedGradients(nn.Flatten(), tolerance=tolerance)


@few_steps
@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    method = IntegratedGradients(networks.build(name, torch.float64), steps=10)
    assert_like_any_method(method, networks.images().double())
