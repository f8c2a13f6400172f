"""GradientSHAP: closed form, the expectation by hand, parity with Captum, completeness."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from pixel_networks import assert_like_any_method, plain
from torch import nn

from afmi.errors import UsageError
from afmi.methods.pixels.gradient_shap import GradientSHAP
from afmi.network.randomness import image_generator
from afmi.pictures.references import Black, Blurred, Image


def test_linear_network() -> None:
    # Shapley values of a linear model: w · (x − x̄), whatever is drawn, with a single reference.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)).double()
    images, start = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64)
    weight = network[1].weight[1].view(2, 2, 2)
    expected = ((images - start[0]) * weight).sum(1, keepdim=True).detach()
    attribution = GradientSHAP(network, samples=3, reference=Image(start[0])).attribution(images, 1)
    torch.testing.assert_close(attribution.maps, expected)
    assert attribution.residual is not None
    assert attribution.residual.abs().max() < 1e-9


def test_the_papers_expectation() -> None:
    model, images = networks.build("functional", torch.float64), networks.images(2, 8).double()
    references = networks.images(4, 8, seed=5).double()
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    for i, image in enumerate(images):
        generator = image_generator(3, image)
        which = torch.randint(4, (6,), generator=generator)
        alpha = torch.rand(6, generator=generator).double()
        for start, a in zip(references[which], alpha, strict=True):
            x = (start + a * (image - start))[None].requires_grad_()
            (gradient,) = torch.autograd.grad(model(x)[0, 1], x)
            expected[i] += ((image - start) * gradient[0] / 6).sum(0)
    method = GradientSHAP(model, samples=6, reference=Image(references), seed=3, batch_size=4)
    torch.testing.assert_close(method.attribute(images, 1), expected)


def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = plain(), networks.images(1, 12).double()
    references = networks.images(2, 12, seed=5).double()
    torch.manual_seed(0)
    np.random.seed(0)  # Captum draws its baselines with NumPy's global generator
    theirs = captum_attr.GradientShap(model).attribute(
        images, baselines=references, target=2, n_samples=500
    )
    method = GradientSHAP(model, samples=500, reference=Image(references), batch_size=500)
    both = torch.stack([method.attribute(images, 2).flatten(), theirs.sum(1).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97
    torch.testing.assert_close(both[0].sum(), both[1].sum(), rtol=0.1, atol=0)


def test_sums_to_the_change_with_many_samples() -> None:
    model, images = networks.build("vgg", torch.float64), networks.images().double()
    few, many = (
        GradientSHAP(model, samples=n, batch_size=500).attribution(images).residual
        for n in (5, 500)
    )
    assert few is not None
    assert many is not None
    assert many.abs().max() < 0.3
    assert many.abs().mean() < few.abs().mean()


def test_seeds() -> None:
    model, images = networks.build("vgg"), networks.images()
    first, again, other = (
        GradientSHAP(model, samples=4, seed=s).attribute(images) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        GradientSHAP(nn.Flatten(), samples=0)


@pytest.mark.parametrize("reference", [Black(), Blurred()], ids=str)
@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str, reference: Black | Blurred) -> None:
    method = GradientSHAP(
        networks.build(name, torch.float64), samples=7, reference=reference, batch_size=4
    )
    assert_like_any_method(method, networks.images().double())
