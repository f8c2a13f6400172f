"""Prediction difference analysis: a one-pixel network, the formula, the Gaussian's conditionals."""

from __future__ import annotations

import pytest
import torch
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.regions.prediction_difference import PredictionDifference, _PatchModel, _positions
from afmi.pictures.references import Black, Image


class _OnePixel(nn.Module):
    """Two classes; the log odds of the first are 3 times one pixel's red."""

    def forward(self, x: Tensor) -> Tensor:
        y = 3 * x[:, 0, 5, 7]
        return torch.stack([y, torch.zeros_like(y)], 1)


@pytest.mark.parametrize("stride", [1, 2, None])
def test_only_windows_over_the_one_pixel_count(stride: int | None) -> None:
    image = torch.ones(1, 3, 12, 12, dtype=torch.float64)
    method = PredictionDifference(
        _OnePixel(), window=4, stride=stride, reference=Black(), images=10**15
    )
    maps = method.attribute(image, 0)[0, 0]
    # Black in the window takes the log odds from 3 to 0; the window's evidence is shared by all
    # windows that cover a pixel.
    evidence, covered = torch.zeros(12, 12).double(), torch.zeros(12, 12).double()
    step = stride or 2
    for top in range(0, 9, step):
        for left in range(0, 9, step):
            hit = top <= 5 < top + 4 and left <= 7 < left + 4
            evidence[top : top + 4, left : left + 4] += hit * 3 / torch.tensor(2.0).log().item()
            covered[top : top + 4, left : left + 4] += 1
    torch.testing.assert_close(maps, evidence / covered, rtol=1e-6, atol=1e-9)
    assert maps[5, 7] == maps.max()
    torch.testing.assert_close(maps, -method.attribute(image, 1)[0, 0])


def test_laplace_correction_is_the_papers() -> None:
    model = build("vgg", torch.float64)
    image, other = images(2, 18).double().split(1)
    method = PredictionDifference(
        model, window=6, stride=6, reference=Image(torch.cat([other, 1 - other])), images=50
    )
    maps = method.attribute(image, 2)[0, 0]

    def log_odds(p: Tensor) -> Tensor:
        p = (p * 50 + 1) / (50 + 5)
        return (p / (1 - p)).log2()

    with torch.no_grad():
        whole = log_odds(model(image).softmax(1)[0, 2])
        for top in range(0, 18, 6):
            for left in range(0, 18, 6):
                p = []
                for pixels in (other, 1 - other):
                    changed = image.clone()
                    place = (..., slice(top, top + 6), slice(left, left + 6))
                    changed[place] = pixels[place]
                    p.append(model(changed).softmax(1)[0, 2])
                expected = whole - log_odds(torch.stack(p).mean())
                torch.testing.assert_close(maps[top + 3, left + 3], expected)


def test_windows_cover_every_pixel() -> None:
    assert _positions(10, 4, 3) == [0, 3, 6]
    assert _positions(11, 4, 3) == [0, 3, 6, 7]
    assert _positions(4, 4, 3) == [0]


def test_conditionals_are_those_of_the_fitted_gaussian() -> None:
    some = images(2, 16, 1).double()
    model = _PatchModel(some, side=2, outer=4, padding=1, count=3)
    inside, outside, gain, root = model.conditional((1, 1))
    assert inside.tolist() == [5, 6, 9, 10]
    # Slowly: patches one by one, and the precision matrix instead of the covariance.
    patches = [
        x[0, i : i + 4, j : j + 4].flatten() for x in some for i in range(13) for j in range(13)
    ]
    covariance = torch.cov(torch.stack(patches).T)
    torch.testing.assert_close(model.covariance[0], covariance)
    precision = torch.linalg.inv(covariance)
    spread = torch.linalg.inv(precision[inside][:, inside])
    torch.testing.assert_close(root[0] @ root[0].T, spread, rtol=1e-4, atol=1e-7)
    expected = -spread @ precision[inside][:, outside]
    torch.testing.assert_close(gain[0], expected, rtol=1e-3, atol=1e-4)


def test_a_window_in_a_flat_picture_is_filled_with_its_colour() -> None:
    # Nothing is unknown where all patches are equal: no evidence anywhere.
    image = torch.full((1, 3, 15, 15), 0.4, dtype=torch.float64)
    image += 1e-9 * torch.rand(1, 3, 15, 15, dtype=torch.float64)
    maps = PredictionDifference(build("vgg", torch.float64), samples=2).attribute(image, 0)
    assert maps.abs().max() < 1e-6


def test_conditional_samples_do_not_notice_what_is_predictable() -> None:
    # A bright square on noise: its centre depends on nothing else, a smooth ramp on its ring.
    ramp = torch.linspace(0, 1, 24, dtype=torch.float64).expand(1, 3, 24, 24).contiguous()
    model = nn.Sequential(nn.AvgPool2d(24), nn.Flatten(), nn.Linear(3, 2)).double()
    conditional = PredictionDifference(model, samples=2).attribute(ramp, 0).abs().max()
    occlusion = PredictionDifference(model, reference=Black()).attribute(ramp, 0).abs().max()
    assert conditional < 0.01 * occlusion


def test_batch_equals_singles_and_seeds_count() -> None:
    model, some = build("resnet", torch.float64), images(3).double()
    method = PredictionDifference(model, samples=2, batch_size=7)
    target = torch.tensor([0, 3, 1])
    batch = method.attribute(some, target)
    singles = [method.attribute(some[i : i + 1], target[i]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    torch.testing.assert_close(method.attribute_classes(some, [3, 1])[0, 1], batch[1])
    again = PredictionDifference(model, samples=2).attribute(some, target)
    torch.testing.assert_close(again, batch)
    assert not torch.allclose(PredictionDifference(model, samples=2, seed=1).attribute(some), batch)


def test_the_gaussian_may_come_from_other_images() -> None:
    model, some = build("resnet", torch.float64), images(2).double()
    shared = PredictionDifference(model, samples=2, patches=Image(images(4, seed=7)))
    from_the_image = PredictionDifference(model, samples=2)
    assert not torch.allclose(shared.attribute(some, 0), from_the_image.attribute(some, 0))


def test_costs_what_it_says() -> None:
    model, calls = build("vgg"), []
    handle = model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    BatchRunner(model, images(1)).logits(images(1))  # tries the network, once
    calls.clear()
    PredictionDifference(model, window=6, stride=7, samples=3).attribute_classes(images(1), [0, 1])
    handle.remove()
    # The class's forward and the whole image's, then 4 × 4 windows of 6 pixels, none left out.
    assert sum(calls) == 2 + 3 * 16


@pytest.mark.parametrize("size", [8, 28])
def test_takes_digits_and_tiny_pictures(size: int) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3)) if size == 8 else MNISTNet()
    maps = PredictionDifference(small, samples=1).attribute(images(1, size, 1), 0)
    assert maps.shape == (1, 1, size, size)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="window"):
        PredictionDifference(nn.Identity(), window=0)
