"""IntegratedGradients: closed form, Eq. 3 by hand, parity with Captum, completeness."""

from __future__ import annotations

import networks
import pytest
import torch
from pixel_networks import assert_like_any_method, plain
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.methods.pixels.input_x_gradient import InputXGradient
from afmi.methods.pixels.integrated_gradients import IntegratedGradients
from afmi.pictures.references import Black, Blurred, Image, Several, White


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


def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = plain(), networks.images(3, 12).double()
    theirs = captum_attr.IntegratedGradients(model).attribute(
        images, target=2, n_steps=10, method="riemann_middle"
    )
    maps = IntegratedGradients(model, steps=10).attribute(images, 2)
    torch.testing.assert_close(maps, theirs.sum(1, keepdim=True))


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


def test_references_are_averaged() -> None:
    model, images = networks.build("vgg"), networks.images(2)
    one = [
        IntegratedGradients(model, steps=6, reference=r).attribute(images, 0)
        for r in (Black(), White())
    ]
    both = IntegratedGradients(model, steps=6, reference=Several([Black(), White()]))
    torch.testing.assert_close(both.attribute(images, 0), torch.stack(one).mean(0))


def test_reference_of_each_image() -> None:
    method = IntegratedGradients(networks.build("vgg"), steps=5, reference=Blurred())
    assert_like_any_method(method, networks.images())


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    model, images = networks.build("resnet", torch.float64), networks.images().double()
    expected = IntegratedGradients(model, steps=9).attribute(images)
    maps = IntegratedGradients(model, steps=9, batch_size=batch_size).attribute(images)
    torch.testing.assert_close(maps, expected)


def test_bad_settings() -> None:
    for bad in ({"steps": 0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            IntegratedGradients(nn.Flatten(), **bad)


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    method = IntegratedGradients(networks.build(name, torch.float64), steps=10)
    assert_like_any_method(method, networks.images().double())
