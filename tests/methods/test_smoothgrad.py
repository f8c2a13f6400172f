"""SmoothGrad: closed form, the mean by hand, any base method."""

from __future__ import annotations

import networks
import pytest
import torch
from pixel_networks import assert_like_any_method
from torch import nn

from afmi.errors import UsageError
from afmi.methods.base import Method
from afmi.methods.pixels.deeplift import DeepLIFT
from afmi.methods.pixels.gradient import Gradient
from afmi.methods.pixels.guided_backprop import GuidedBackprop
from afmi.methods.pixels.input_x_gradient import InputXGradient
from afmi.methods.pixels.smoothgrad import SmoothGrad
from afmi.network.randomness import image_generator


def test_linear_network_has_nothing_to_smooth() -> None:
    model, image = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2)
    maps = SmoothGrad(model, samples=4).attribute(image, 1)
    torch.testing.assert_close(maps, Gradient(model).attribute(image, 1))


def test_the_papers_mean() -> None:
    model, images = networks.build("functional", torch.float64), networks.images(2, 8).double()
    expected = torch.zeros_like(images)
    for i, image in enumerate(images):
        generator = image_generator(2, image)
        for _ in range(7):
            noise = torch.randn(image.shape, generator=generator).double()
            x = (image + 0.2 * (image.max() - image.min()) * noise)[None].requires_grad_()
            (gradient,) = torch.autograd.grad(model(x)[0, 3], x)
            expected[i] += gradient[0] / 7
    method = SmoothGrad(model, samples=7, noise=0.2, seed=2, batch_size=4)
    torch.testing.assert_close(method.attribute(images, 3), expected.abs().amax(1, keepdim=True))


@pytest.mark.parametrize("base", [Gradient, InputXGradient, GuidedBackprop, DeepLIFT])
def test_mean_of_the_bases_maps(base: type[Method]) -> None:
    model, image = networks.build("vgg", torch.float64), networks.images(1).double()
    generator = image_generator(0, image[0])
    spread = image.max() - image.min()
    noisy = [
        image + 0.15 * spread * torch.randn(image[0].shape, generator=generator).double()
        for _ in range(5)
    ]
    expected = torch.stack([base(model).attribute(x, 2) for x in noisy]).mean(0)
    maps = SmoothGrad(model, base=base(model), samples=5).attribute(image, 2)
    torch.testing.assert_close(maps, expected)


def test_class_of_the_clean_image() -> None:
    model, images = networks.build("resnet"), networks.images()
    attribution = SmoothGrad(model, samples=3, noise=2.0).attribution(images)
    with torch.no_grad():
        assert torch.equal(attribution.target, model(images).argmax(1))


def test_without_noise_it_is_the_base() -> None:
    model, images = networks.build("vgg"), networks.images()
    maps = SmoothGrad(model, samples=2, noise=0).attribute(images)
    torch.testing.assert_close(maps, Gradient(model).attribute(images))


def test_seeds() -> None:
    model, images = networks.build("vgg"), networks.images()
    first, again, other = (
        SmoothGrad(model, samples=3, seed=s).attribute(images) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bad_settings() -> None:
    model = networks.build("vgg")
    for bad in ({"samples": 0}, {"noise": -0.1}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            SmoothGrad(model, **bad)
    with pytest.raises(UsageError, match="same model"):
        SmoothGrad(model, base=Gradient(networks.build("vgg")))


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    model = networks.build(name, torch.float64)
    assert_like_any_method(SmoothGrad(model, samples=7), networks.images().double())
