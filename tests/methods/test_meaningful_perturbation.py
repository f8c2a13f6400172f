"""Meaningful perturbation: finds the quadrant that counts; each step is the formula's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.regions.meaningful_perturbation import MeaningfulPerturbation, _Scene
from afmi.pictures.matrices import gaussian
from afmi.pictures.references import Black


class Quadrant(nn.Module):
    """Looks at the bright pixels of the top right quadrant only."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        brightness = x[:, :, :half, half:].mean((1, 2, 3))
        return torch.stack([12 * brightness - 3, torch.zeros_like(brightness)], 1)


def test_finds_the_quadrant_that_counts() -> None:
    image = images(1, 32).double() * 0.3 + 0.6
    method = MeaningfulPerturbation(
        Quadrant(), iterations=150, reference=Black(), area=1e-3, smoothness=1e-4
    )
    maps = method.attribute(image, 0)[0, 0]
    assert maps[:16, 16:].mean() > 3 * maps[:16, :16].mean()
    assert maps[:16, 16:].mean() > 3 * maps[16:].mean()
    row, column = divmod(int(maps.argmax()), 32)
    assert row < 16 <= column


def test_the_first_step_is_that_of_the_formula() -> None:
    """One step of Adam moves each cell by the learning rate against its gradient's sign."""
    model, image = build("vgg", torch.float64), images(1, 24).double()
    method = MeaningfulPerturbation(model, iterations=1, seed=4)
    runner = BatchRunner(model, image)
    plain = torch.rand_like(image)
    scene = _Scene(method, image, plain)
    mask = torch.rand(1, *scene.cells, dtype=torch.float64).requires_grad_(True)
    # Slowly, by autograd through interpolation and blur.
    size = 24 + scene.jitter - 1
    full = F.interpolate(mask[:, None], (size, size), mode="bilinear", align_corners=False)
    blur = gaussian(size, 5 * 24 / 224)
    full = (blur @ full @ blur.T)[..., :24, :24]
    score = model(full * image + (1 - full) * plain).softmax(1)[0, 2]
    (expected,) = torch.autograd.grad(score, mask)

    def slope(logits: Tensor, start: int, stop: int) -> Tensor:
        p = logits.softmax(1)
        return p[:, 2:3] * (torch.eye(5).double()[2] - p)

    spread = scene.shifted((0, 0))
    shown = scene.shown(spread(mask.detach()))
    torch.testing.assert_close(shown, (full * image + (1 - full) * plain).detach())
    _, gradient = runner.gradients(shown, slope)
    torch.testing.assert_close(spread.pull_back(scene.by_mask(gradient)), expected)


class Unsure(nn.Module):
    """Gives class 0 a small probability, e^−less times as large."""

    def __init__(self, less: float) -> None:
        super().__init__()
        self.less = less

    def forward(self, x: Tensor) -> Tensor:
        score = Quadrant()(x)[:, :1] - 20
        return torch.cat([score - self.less, score * 0], 1)


def test_relative_probability_does_not_depend_on_how_sure_the_network_is() -> None:
    image = images(1, 32).double()
    unsure, sure = (
        MeaningfulPerturbation(
            Unsure(less), iterations=20, reference=Black(), relative=True, area=1e-3
        ).attribute(image, 0)
        for less in (7, 0)
    )
    torch.testing.assert_close(unsure, sure, rtol=1e-4, atol=1e-4)


def test_plain_probability_restores_what_costs_more_than_it_gains() -> None:
    """One step of 0.1: λ1 outweighs a probability of 1e-9, but not its share that is left."""
    image = images(1, 32).double()
    plain, relative = (
        MeaningfulPerturbation(
            Unsure(7), iterations=1, reference=Black(), blur=0.1, relative=relative
        ).attribute(image, 0)
        for relative in (False, True)
    )
    assert plain.max() == pytest.approx(0.9, abs=1e-4)
    assert relative.max() == pytest.approx(1, abs=1e-4)


def test_defaults_are_those_of_the_authors_program() -> None:
    method = MeaningfulPerturbation(nn.Identity())
    assert (method.area, method.smoothness, method.power) == (1e-4, 1e-2, 3)
    assert (method.iterations, method.learning_rate, method.jitter) == (300, 0.1, 4)
    assert (method.cell, method.blur, method.relative) == (8, 5, False)


def test_penalty_is_the_formulas() -> None:
    method = MeaningfulPerturbation(nn.Identity(), area=0.5, smoothness=2.0, power=3.0)
    mask = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
    rough = (1.0 + 0.125) + (0.125 + 1.0)
    assert method._penalty(mask).item() == pytest.approx(0.5 * 1.5 + 2 * rough)


def test_starts_with_the_smallest_disc_that_suppresses_the_class() -> None:
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            brightness = 20 * x[:, :, 15:17, 15:17].mean((1, 2, 3)) - 10
            return torch.stack([brightness, -brightness], 1)

    image = torch.ones(2, 3, 32, 32, dtype=torch.float64)
    method = MeaningfulPerturbation(Centre(), reference=Black(), blur=0.1)
    scene = _Scene(method, image, torch.zeros_like(image))
    classes = torch.tensor([0, 1])
    before = Centre()(image).softmax(1)[[0, 1], classes]
    hidden = Centre()(torch.zeros_like(image)).softmax(1)[[0, 1], classes]
    start = method._start(scene, classes, before, hidden, BatchRunner(Centre(), image))
    share = 1 - start.mean((1, 2))
    assert 0.01 < share[0] < 0.1
    # Class 1 never had a chance to lose: the smallest disc does.
    assert share[1] <= share[0]
    assert torch.equal(start[0], start[0].flip(0))


def test_batch_equals_singles_and_the_model_is_untouched() -> None:
    model, some = build("resnet", torch.float64), images(3).double()
    method = MeaningfulPerturbation(model, iterations=8, batch_size=2)
    target = torch.tensor([0, 3, 1])
    batch = method.attribute(some, target)
    singles = [method.attribute(some[i : i + 1], target[i]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    assert batch.min() >= 0
    assert batch.max() <= 1
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_seed_moves_the_jitter() -> None:
    model, image = build("vgg", torch.float64), images(1, 64).double()
    one, two, again = (
        MeaningfulPerturbation(model, iterations=4, jitter=16, seed=seed).attribute(image, 0)
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


# Two steps on a mask of one cell may leave it the same everywhere, which is reported.
@pytest.mark.filterwarnings("ignore::afmi.methods.base.BlankMapWarning")
@pytest.mark.parametrize("size", [8, 28])
def test_takes_digits_and_tiny_pictures(size: int) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3)) if size == 8 else MNISTNet()
    maps = MeaningfulPerturbation(small, iterations=2).attribute(images(1, size, 1), 0)
    assert maps.shape == (1, 1, size, size)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="iteration"):
        MeaningfulPerturbation(nn.Identity(), iterations=0)
