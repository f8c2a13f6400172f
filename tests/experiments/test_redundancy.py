"""Redundancy: features of known dependence, slow re-implementations, and the whole command."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import hadamard
from torch import nn

from afmi import Classifier
from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments import experiment_named
from afmi.experiments.shared.dependence import (
    _PENALTIES,
    effective_rank,
    mean_correlation,
    participation_ratio,
    predictability,
    removal,
)
from afmi.experiments.shared.granularities import collected

ORTHOGONAL = hadamard(64)[:, 1:17].astype(float)
"""(64, 16): uncorrelated, of mean 0."""
EVERYTHING = np.arange(16)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_uncorrelated_features_have_full_rank():
    assert mean_correlation(ORTHOGONAL) == pytest.approx(0, abs=1e-12)
    assert effective_rank(3 * ORTHOGONAL + 1) == pytest.approx(1)
    assert participation_ratio(3 * ORTHOGONAL + 1) == pytest.approx(1)


def test_duplicated_features_have_half_the_rank_and_are_predicted():
    twice = np.concatenate([ORTHOGONAL[:, :8], -2 * ORTHOGONAL[:, :8]], 1)
    # Of the 15 others one is the same.
    assert mean_correlation(twice) == pytest.approx(1 / 15)
    assert effective_rank(twice) == pytest.approx(0.5)
    assert participation_ratio(twice) == pytest.approx(0.5)
    assert predictability(twice, EVERYTHING).min() > 0.999
    assert predictability(twice, EVERYTHING, nearest=1).min() > 0.999


def test_one_feature_many_times_has_rank_one():
    same = np.repeat(noise(50, 1), 10, 1)
    assert mean_correlation(same) == pytest.approx(1)
    assert effective_rank(same) == pytest.approx(0.1, rel=1e-4)
    assert participation_ratio(same) == pytest.approx(0.1)


def test_effective_rank_of_two_correlated_features():
    # Eigenvalues 1 ± 0.6 of the correlation matrix; the singular values are their roots.
    x = ORTHOGONAL[:, :2] @ np.array([[1, 0.6], [0, 0.8]])
    roots = np.sqrt([1.6, 0.4])
    shares = roots / roots.sum()
    assert mean_correlation(x) == pytest.approx(0.6)
    assert effective_rank(x) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()) / 2)
    assert participation_ratio(x) == pytest.approx(4 / (1.6**2 + 0.4**2) / 2)


def test_independent_features_are_not_predicted():
    x = noise(500, 16)
    assert mean_correlation(x) == pytest.approx(math.sqrt(2 / math.pi / 500), rel=0.2)
    for nearest in (None, 5):
        r2 = predictability(x, EVERYTHING, nearest=nearest)
        assert r2.max() < 0.03 and r2.min() > -0.1


def test_noise_on_a_copy_is_what_no_prediction_explains():
    # x_2 = x_1 + noise of half the variance: at best R² = 1 / 1.5 of x_2, and the same of x_1.
    x = noise(4000, 1)
    x = np.concatenate([x, x + math.sqrt(0.5) * noise(4000, 1, seed=1)], 1)
    assert predictability(x, np.arange(2)) == pytest.approx([2 / 3] * 2, abs=0.03)


def test_prediction_by_slow_regressions():
    """The penalty by leaving each sample out in turn, the weights by least squares."""
    x = noise(30, 4) @ noise(4, 4, seed=1)

    def fitted(a, b, penalty):
        padded = np.concatenate([np.ones((len(a), 1)), a], 1)
        free = np.diag([0, *[penalty] * a.shape[1]])
        return np.linalg.solve(padded.T @ padded + free, padded.T @ b)

    def predicted(weights, a):
        return weights[0] + a @ weights[1:]

    expected = []
    for j in range(4):
        errors = spread = 0.0
        for fold in range(5):
            held = np.arange(30) % 5 == fold
            others = np.delete(x, j, 1)
            others = (others - others[~held].mean(0)) / others[~held].std(0)
            a, b = others[~held], x[~held, j]
            misses = []
            for penalty in _PENALTIES * len(a):
                left = [np.delete(np.arange(len(a)), i) for i in range(len(a))]
                guesses = [
                    predicted(fitted(a[rest], b[rest], penalty), a[i])
                    for i, rest in enumerate(left)
                ]
                misses.append(((b - guesses) ** 2).sum())
            weights = fitted(a, b, _PENALTIES[np.argmin(misses)] * len(a))
            errors += ((x[held, j] - predicted(weights, others[held])) ** 2).sum()
            spread += ((x[held, j] - b.mean()) ** 2).sum()
        expected.append(1 - errors / spread)
    assert predictability(x, np.arange(4)) == pytest.approx(expected)


def test_nearest_features_are_found_in_the_whole_pool():
    # A walk: each feature depends on its neighbours; those drawn lie far from one another.
    pool = noise(200, 400).cumsum(1)
    pool[:, 100:] -= pool[:, :-100]
    chosen = np.array([150, 290])
    assert predictability(pool, chosen).max() < 0.3
    assert predictability(pool, chosen, nearest=4).min() > 0.97


def test_only_what_nothing_replaces_is_strongly_relevant():
    x = noise(600, 4)
    x[:, 2] = x[:, 1] + 0.01 * noise(600, seed=1)  # each can stand for the other; the last is idle
    score = 2 * x[:, 0] + x[:, 1] + noise(600, seed=2)
    found = removal(x, score[:, None])
    assert found.relevant == 1 / 4
    assert found.explained == pytest.approx(5 / 6, abs=0.03)
    idle = [removal(noise(600, 25, seed=s), noise(600, 2, seed=50 + s)) for s in range(10)]
    # By chance at most 5 % of 250 are: a standard error of 1.4 %, of which this is two more.
    assert np.mean([found.relevant for found in idle]) < 0.05 + 2 * 0.014
    assert max(found.explained for found in idle) < 0.02


def test_removal_refits_to_the_other_features():
    from afmi.experiments.shared.dependence import _Ridge

    x, y = noise(40, 5), noise(40, seed=1)
    fit = _Ridge(x, y)
    penalty = 1 / fit._inverse[0] - np.linalg.eigvalsh(np.corrcoef(x, rowvar=False) * 40)[0]
    standard = (x - x.mean(0)) / x.std(0)
    for j in range(5):
        others = np.delete(standard, j, 1)
        weights = np.linalg.solve(
            others.T @ others + penalty * np.eye(4), others.T @ (y - y.mean())
        )
        without = y.mean() + others @ weights
        assert fit.predict(x) - fit.shares(x)[:, j] == pytest.approx(without)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """30 pictures of noise in folders of two classes."""
    drawn = np.random.default_rng(0)
    for label in ("collie", "dogsled"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for i in range(15):
            pixels = drawn.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / label / f"{i:02d}.png")
    return tmp_path / "noise"


def test_values_are_the_networks_own(noisy):
    torch.manual_seed(0)
    network = nn.Sequential(
        *(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1),
        ),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
    model = Classifier(network, mean=mean, std=std, labels=["collie", "dogsled"]).eval()
    images = open_images(noisy, model)
    found = collected(model, images, batch=7)
    whole = torch.cat([images.read(i) for i in range(30)])
    normalised = torch.stack([(whole[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    with torch.no_grad():
        early = network[:2](normalised)
        late = network[:5](normalised)
        scores = network(normalised)
    grey = normalised.mean(1)
    grid = torch.nn.functional.adaptive_avg_pool2d(grey[:, None], 14)
    pixels, squares, earlier, means, at_place, entries = found.features
    assert [f.where for f in found.features] == ["input", "input", "1", "4", "4", "4"]
    for features, expected in (
        (pixels, grey.flatten(1)),
        (squares, grid.flatten(1)),
        (earlier, early.mean((2, 3))),
        (means, late.mean((2, 3))),
    ):
        assert features.table == pytest.approx(expected.numpy(), abs=1e-6)
    assert found.scores == pytest.approx(scores.numpy(), abs=1e-6)
    flat = late.flatten(1)
    assert entries.table == pytest.approx(flat[:, flat.std(0) > 0].numpy(), abs=1e-6)
    # Every map of a picture at the same place, and not at one place in all pictures.
    fits = (late.flatten(2) - torch.from_numpy(at_place.table)[:, :, None]).abs().amax(1) < 1e-6
    assert fits.any(1).all() and fits.float().argmax(1).unique().numel() > 5


def test_command(request_for, noisy):
    """The fourth map is the sum of the other three, and pixels of noise have nothing in common."""
    (noisy / "collie" / "00.png").write_bytes(b"no picture")
    request, lines = request_for(imagenet=noisy)
    result = experiment_named("Redundancy")().run(request)
    assert lines == ["1 picture could not be read"]
    by_values = {row["values"]: row for row in result.rows}
    means, pixels = by_values["mean over places"], by_values["intensity"]
    assert means["compared"] == pixels["compared"] == 4 and means["pictures"] == 29
    assert means["R² from others"] > 0.999 and means["effective rank"] < 0.9
    assert pixels["R² from others"] < 0.1 and pixels["effective rank"] > 0.9
    assert pixels["features"] == 256 and by_values["pixels shuffled over pictures"]
    # The scores are linear in the maps' means.
    assert means["R² of scores"] > 0.999 > 0.5 > pixels["R² of scores"]
    picture, table = result.files
    with table.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(result.rows) == 6
    with Image.open(picture) as drawn:
        assert drawn.width > 2000


def test_refusals(request_for, noisy):
    experiment = experiment_named("redundancy")()
    with pytest.raises(UsageError, match="compares features, not methods; leave --methods out"):
        experiment.run(request_for(imagenet=noisy, methods="a-fmi")[0])
    with pytest.raises(UsageError, match="expected 25 pictures or more"):
        experiment.run(request_for(imagenet=noisy, limit=20)[0])
    Image.new("RGB", (20, 16)).save(noisy / "dogsled" / "14.png")
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(network, labels=["collie", "dogsled"])  # pictures keep their size
    with pytest.raises(UsageError, match="expected pictures of one size"):
        collected(model, open_images(noisy, model), batch=8)
