"""InputXGradient: closed form, finite differences, parity with Captum."""

from __future__ import annotations

import networks
import pytest
import torch
from pixel_networks import assert_like_any_method, plain
from torch import nn

from afmi.methods.pixels.input_x_gradient import InputXGradient
from afmi.network.classifier import Classifier
from afmi.pictures.references import Black, Blurred, Several, White

captum_attr = pytest.importorskip("captum.attr")


def test_linear_network() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)).double()
    image = torch.rand(1, 2, 2, 2, dtype=torch.float64)
    expected = (image * network[1].weight[1].view(2, 2, 2)).sum(1, keepdim=True)
    torch.testing.assert_close(InputXGradient(network).attribute(image, 1), expected.detach())


def test_what_a_network_takes_as_zero_gets_nothing() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    image = torch.rand(1, 3, 2, 2)
    image[..., 0, 0], image[..., 0, 1] = 0, 0.5
    model = Classifier(network, mean=[0.5] * 3, std=[0.2] * 3)
    by_default = InputXGradient(model).attribute(image, 1)
    against_black = InputXGradient(model, reference=Black()).attribute(image, 1)
    assert (by_default == 0).tolist() == [[[[False, True], [False, False]]]]
    assert (against_black == 0).tolist() == [[[[True, False], [False, False]]]]
    # By default it is what the network gives for the images that it takes, whoever normalises.
    torch.testing.assert_close(
        by_default, InputXGradient(network).attribute((image - 0.5) / 0.2, 1)
    )


def test_several_references_and_those_of_each_image() -> None:
    model, images = networks.build("functional", torch.float64), networks.images(2, 8).double()
    gradient = torch.autograd.grad(model(images.requires_grad_())[:, 2].sum(), images)[0]
    images = images.detach()
    for reference, start in ((Several([Black(), White()]), 0.5), (Blurred(), Blurred()(images))):
        expected = ((images - start) * gradient).sum(1, keepdim=True)
        maps = InputXGradient(model, reference=reference).attribute(images, 2)
        torch.testing.assert_close(maps, expected)


def test_finite_differences() -> None:
    model = networks.build("functional", torch.float64)
    image = networks.images(1, 6).double()
    step = 1e-6
    expected = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for k, i, j in torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(6)):
            up, down = image.clone(), image.clone()
            up[0, k, i, j] += step
            down[0, k, i, j] -= step
            slope = (model(up)[0, 2] - model(down)[0, 2]) / (2 * step)
            expected[0, 0, i, j] += image[0, k, i, j] * slope
    maps = InputXGradient(model).attribute(image, 2)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-8)


def test_captum() -> None:
    model, images = plain(), networks.images(3, 12).double()
    theirs = captum_attr.InputXGradient(model).attribute(images.clone().requires_grad_(), target=2)
    expected = theirs.sum(1, keepdim=True).detach()
    torch.testing.assert_close(InputXGradient(model).attribute(images, 2), expected)


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    assert_like_any_method(InputXGradient(networks.build(name)), networks.images())
