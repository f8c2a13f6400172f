"""Extremal perturbation: finds the quadrant that counts, keeps the area, and its operators."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.regions.extremal_perturbation import (
    ExtremalPerturbation,
    _Lattice,
    _Pyramid,
    area_slope,
    blurred,
)
from afmi.network.classifier import Classifier


class SharpQuadrant(nn.Module):
    """Scores the contrast between neighbours in the bottom left quadrant only."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        quarter = x[:, :, half:, :half]
        contrast = (quarter.diff(dim=2) ** 2).mean((1, 2, 3)) + (quarter.diff(dim=3) ** 2).mean(
            (1, 2, 3)
        )
        return torch.stack([100 * contrast, torch.zeros_like(contrast)], 1)


@pytest.fixture(scope="module")
def quadrant_mask() -> Tensor:
    # A coarse lattice, and a weight that grows in fewer steps to what it reaches in 800.
    method = ExtremalPerturbation(
        SharpQuadrant(), areas=(0.1, 0.14), iterations=200, growth=1.014, sigma=42, step=14
    )
    image = images(1, 24).double()
    return method._masks(image, torch.tensor([0]))[:, 0]


def test_finds_the_quadrant_that_counts(quadrant_mask: Tensor) -> None:
    for mask in quadrant_mask:
        assert mask[12:, :12].sum() > 0.8 * mask.sum()


def test_masks_are_nearly_binary_and_have_their_area_with_the_margin(quadrant_mask: Tensor) -> None:
    for mask, area in zip(quadrant_mask, (0.1, 0.14), strict=True):
        # 16 places a side, and 2.5 more at each end: up to 1.72 times the area in the image.
        assert 0.7 * area < float(mask.mean()) < 1.3 * area * (21 / 16) ** 2
        assert mask.max() > 0.9


def test_the_area_counts_a_margin_of_18_pixels() -> None:
    lattice = _Lattice(ExtremalPerturbation(nn.Identity()), torch.empty(1, 3, 224, 224))
    assert lattice.size == (32, 32)
    assert lattice.smooth(lattice.start(1)).shape == (1, 38, 38)
    # The authors' program counts 260 x 260 pixels.
    assert int(lattice.ranked(0.1).sum()) == pytest.approx(0.1 * (260 / 7) ** 2, abs=1.5)


def test_max_convolution_is_its_formula() -> None:
    method = ExtremalPerturbation(nn.Identity(), sigma=3.0, step=1.5, temperature=0.1)
    lattice = _Lattice(method, torch.empty(1, 3, 224, 336, dtype=torch.float64))
    assert lattice.size == (149, 224)
    free = torch.rand(1, 6, 7, dtype=torch.float64)
    smooth = lattice.smooth(free)[0]
    assert smooth.shape == (6 + 2 * 2, 7 + 2 * 2)
    for y in range(-2, 8):
        for x in range(-2, 9):
            values = []
            for i in range(y - 3, y + 4):
                for j in range(x - 3, x + 4):
                    distance = math.hypot(y - i, x - j) * 1.5
                    kernel = math.exp(-2 * max(0.0, distance / 3.0 - 0.5) ** 2)
                    inside = 0 <= i < 6 and 0 <= j < 7
                    values.append(kernel * float(free[0, i, j]) if inside else 0.0)
            f = torch.tensor(values, dtype=torch.float64)
            expected = (f * (f / 0.1).exp()).sum() / (f / 0.1).exp().sum()
            torch.testing.assert_close(smooth[y + 2, x + 2], expected)


def test_pixels_are_interpolated_between_the_places_of_lattice_and_margin() -> None:
    lattice = _Lattice(
        ExtremalPerturbation(nn.Identity()), torch.empty(1, 3, 224, 224, dtype=torch.float64)
    )
    line = torch.arange(-3, 35, dtype=torch.float64)
    plane = (line[:, None] + 10 * line[None])[None]
    place = (torch.arange(224, dtype=torch.float64) + 0.5) / 7 - 0.5
    torch.testing.assert_close(lattice.pixels(plane)[0, 0], place[:, None] + 10 * place[None])


def test_area_slope_is_the_gradient_of_the_ranked_penalty() -> None:
    masks = torch.rand(2, 4, 5, dtype=torch.float64).requires_grad_(True)
    goal = (torch.arange(20) >= 15).double().repeat(2, 1)
    penalty = ((masks.flatten(1).sort(1).values - goal) ** 2).mean(1).sum()
    (expected,) = torch.autograd.grad(penalty, masks)
    torch.testing.assert_close(area_slope(masks.detach(), goal), expected)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of two dimensions, and zeros around the image."""
    reach = math.ceil(8 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight = torch.exp(-(line[:, None] ** 2 + line[None] ** 2) / (2 * sigma**2))
    kernel = (weight / weight.sum())[None, None].expand(images.shape[1], -1, -1, -1)
    return F.conv2d(images, kernel, padding=reach, groups=images.shape[1])


def test_blurs_take_what_is_outside_as_zero() -> None:
    image = images(1, 24).double()
    torch.testing.assert_close(blurred(image, 1.7), _blurred(image, 1.7))
    assert blurred(torch.ones_like(image), 3.0)[0, 0, 0, 12] < 0.6


def test_the_pyramid_has_the_mean_colour_outside() -> None:
    """As the authors' program, which blurs the normalised image."""
    network, mean, std = nn.Identity(), [0.5, 0.2, 0.4], [0.25, 0.5, 0.2]
    model = Classifier(network, mean=mean, std=std)
    image = images(1, 24).double()
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    inside = _Pyramid(ExtremalPerturbation(network), normalised).images
    shown = _Pyramid(ExtremalPerturbation(model), image).images
    shown = (shown - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(shown, inside, rtol=1e-6, atol=1e-6)


def test_the_pyramid_blurs_by_the_mask() -> None:
    method = ExtremalPerturbation(nn.Identity(), areas=(0.1, 0.2), blur=60, levels=4)
    some = images(2, 24).double()
    pyramid = _Pyramid(method, some)
    sigma = 60 * 24 / 224
    for value, expected in (
        (1.0, some),
        (0.0, _blurred(some, sigma)),
        (1 / 3, _blurred(some, sigma * 2 / 3)),
        (0.5, (_blurred(some, sigma / 3) + _blurred(some, sigma * 2 / 3)) / 2),
    ):
        shown = pyramid.shown(torch.full((4, 1, 24, 24), value, dtype=torch.float64))
        torch.testing.assert_close(shown, expected.repeat_interleave(2, 0))
    masks = torch.rand(4, 1, 24, 24, dtype=torch.float64)
    gradient = torch.rand(4, 3, 24, 24, dtype=torch.float64)
    pulled_back = pyramid.pull_back(gradient, masks)
    step = 1e-7
    change = (pyramid.shown(masks + step) - pyramid.shown(masks - step)) / (2 * step)
    torch.testing.assert_close(
        pulled_back, (gradient * change).sum(1, keepdim=True), rtol=1e-4, atol=1e-4
    )


def test_a_step_is_that_of_the_formula() -> None:
    """Two steps of SGD, slowly: autograd through a pyramid of hat functions and a sorted mask."""
    model, image = build("functional", torch.float64), images(1, 16).double()
    method = ExtremalPerturbation(model, areas=(0.2,), iterations=2, levels=4)
    lattice = _Lattice(method, image)
    levels = torch.stack(
        [image, *(_blurred(image, 20 * 16 / 224 * level / 3) for level in (1, 2, 3))]
    )

    def loss(free: Tensor, weight: float) -> Tensor:
        mask = lattice.smooth(free)
        position = 3 * (1 - lattice.pixels(mask))
        hats = torch.stack([(1 - (position - level).abs()).clamp(min=0) for level in range(4)])
        assert (hats.sum(0) > 0.99).all()
        ordered, goal = mask.flatten().sort().values, lattice.ranked(0.2)
        # Places that are equal, as many are at the start, share the goal.
        equal = (ordered[:, None] - ordered[None]).abs() < 1e-12
        goal = (equal * goal).sum(1) / equal.sum(1)
        penalty = ((ordered - goal) ** 2).mean()
        return weight * penalty - model((hats * levels).sum(0))[0, 3]

    free, velocity = lattice.start(1), torch.zeros_like(lattice.start(1))
    for step, weight in enumerate((300.0, 300.0 * 1.0035)):
        leaf = free.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf, weight), leaf)
        velocity = 0.9 * velocity + 0.1 * gradient if step else gradient
        free = (free - 1e-2 * velocity).clamp(0, 1)
    masks = method._masks(image, torch.tensor([3]))
    torch.testing.assert_close(masks, lattice.pixels(lattice.smooth(free)))


def test_mirrors_every_other_step() -> None:
    """What a network thinks of the mirrored image, with the mask mirrored back."""

    class Left(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = 20 * (x[..., :8].diff(dim=3) ** 2).mean((1, 2, 3))
            return torch.stack([seen, torch.zeros_like(seen)], 1)

    class Mirrored(Left):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(3))

    image = images(1, 16).double()
    settings = {"areas": (0.1,), "iterations": 1}
    mirrored = ExtremalPerturbation(Left(), mirror=True, **settings).attribute(image, 0)
    torch.testing.assert_close(
        mirrored, ExtremalPerturbation(Mirrored(), **settings).attribute(image, 0)
    )
    plain, both = (
        ExtremalPerturbation(Left(), areas=(0.1,), iterations=2, mirror=mirror).attribute(image, 0)
        for mirror in (False, True)
    )
    assert not torch.allclose(plain, both)


def test_batch_equals_singles_and_the_model_is_untouched() -> None:
    model, some = build("resnet", torch.float64), images(3).double()
    method = ExtremalPerturbation(model, areas=(0.1, 0.3), iterations=12, batch_size=4)
    target = torch.tensor([0, 3, 1])
    batch = method.attribute(some, target)
    singles = [method.attribute(some[i : i + 1], target[i]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("size", [8, 28])
def test_takes_digits_and_tiny_pictures(size: int) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3)) if size == 8 else MNISTNet()
    maps = ExtremalPerturbation(small, iterations=2).attribute(images(1, size, 1), 0)
    assert maps.shape == (1, 1, size, size)


def test_costs_what_it_says() -> None:
    model, calls = build("vgg"), []
    handle = model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    BatchRunner(model, images(1)).logits(images(1))  # tries the network, once
    calls.clear()
    ExtremalPerturbation(model, areas=(0.1, 0.2), iterations=3).attribute(images(2), 0)
    handle.remove()
    assert sum(calls) == 2 + 2 * 2 * 3


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="areas"):
        ExtremalPerturbation(nn.Identity(), areas=(0.1, 1.0))
    with pytest.raises(UsageError, match="levels=1"):
        ExtremalPerturbation(nn.Identity(), levels=1)
