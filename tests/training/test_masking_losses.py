"""The losses of masks, worked out by hand on 2 × 2 places, and what replaces images."""

from __future__ import annotations

import math

import pytest
import torch

from afmi.errors import UsageError
from afmi.training.masking_losses import MaskLosses, area, replacements, total_variation

MASKS = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
SCORES = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]])) + 3.0
CLASSES = torch.tensor([0, 1])


def test_area_and_total_variation() -> None:
    assert area(MASKS).tolist() == [0.375, 1.0]
    # Across: .5² + 0; down: 1 + .5².
    assert total_variation(MASKS).tolist() == [1.5, 0.0]
    losses = MaskLosses(area=10, smoothness=0.1)
    torch.testing.assert_close(losses.of_masks(MASKS), torch.tensor([3.75 + 0.15, 10.0]))


def test_preservation_and_deletion() -> None:
    fake = torch.tensor([False, True])
    losses = MaskLosses()
    preserved = losses.of_preserved(SCORES, CLASSES, fake, "logits")
    expected = torch.tensor([-math.log(0.7), -math.log(1 - 0.5)])
    torch.testing.assert_close(preserved, expected)
    deleted = losses.of_deleted(SCORES, CLASSES, "logits")
    torch.testing.assert_close(deleted, torch.tensor([5 * 0.7**0.3, 5 * 0.5**0.3]))


def test_the_papers_weights() -> None:
    losses = MaskLosses()
    assert (losses.area, losses.smoothness, losses.deletion, losses.power) == (10, 1e-3, 5, 0.3)
    with pytest.raises(UsageError, match="from 0"):
        MaskLosses(area=-1)


@pytest.mark.parametrize(
    ("meaning", "scores", "p"),
    [
        ("sigmoid", [[0.0, 2.0]], 1 / (1 + math.exp(-2))),
        ("probabilities", [[0.8, 0.2]], 0.2),
    ],
)
def test_what_scores_mean(meaning, scores, p) -> None:
    given, classes = torch.tensor(scores), torch.tensor([1])
    for fake, expected in ((False, -math.log(p)), (True, -math.log(1 - p))):
        loss = MaskLosses().of_preserved(given, classes, torch.tensor([fake]), meaning)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="trained for classes"):
        MaskLosses().of_deleted(given, classes, "value")


def test_a_sure_classifier_gives_finite_losses_and_slopes() -> None:
    scores = torch.tensor([[200.0, 0.0], [-200.0, 0.0]]).requires_grad_()
    classes, losses = torch.tensor([0, 0]), MaskLosses()
    terms = [
        losses.of_preserved(scores, classes, torch.tensor([True, False]), "logits"),
        losses.of_deleted(scores, classes, "logits"),
    ]
    torch.testing.assert_close(terms[0].detach(), torch.tensor([200.0, 200.0]))
    (slope,) = torch.autograd.grad(sum(t.sum() for t in terms), scores)
    assert slope.isfinite().all()


def test_replacements() -> None:
    images = torch.zeros(40, 3, 32, 32)
    images[..., 16:] = 1.0
    instead = replacements(images, torch.Generator().manual_seed(0))
    assert float(instead.min()) >= 0 and float(instead.max()) <= 1
    steps = (instead[..., 24:] - instead[..., :8]).mean((1, 2, 3))
    colored = steps.abs() < 0.05  # of one colour; of the blurred images, one half is brighter
    assert 10 < int(colored.sum()) < 30
    assert (steps[~colored] > 0.5).all()
    means = instead[colored].mean((2, 3))
    assert (means - 0.5).abs().max() < 0.165 + 0.01 and means.std() > 0.05
    noise = (instead[colored] - means[..., None, None]).std()
    assert float(noise) == pytest.approx(0.055, rel=0.1)
    assert torch.equal(instead, replacements(images, torch.Generator().manual_seed(0)))
