"""Kernel SHAP: Shapley values by brute force, exact sums, parity with Captum."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.methods.pixels.kernel_shap import KernelSHAP, coalitions, shapley_regression
from afmi.pictures.references import Black, Blurred, Random
from afmi.pictures.superpixels import Grid, superpixels


def _shapley(model: nn.Module, image: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Shapley values (d, K) by their definition: the mean gain over all coalitions."""
    count = int(labels.max()) + 1

    def worth(players: tuple[int, ...]) -> Tensor:
        visible = torch.isin(labels, torch.tensor(players, dtype=torch.int64))
        with torch.no_grad():
            return model(torch.where(visible, image, reference)[None])[0]

    values = []
    for j in range(count):
        others = [k for k in range(count) if k != j]
        total = torch.zeros(5, dtype=torch.float64)
        for size in range(count):
            share = 1 / (count * math.comb(count - 1, size))
            for players in combinations(others, size):
                total += share * (worth((*players, j)) - worth(players))
        values.append(total)
    return torch.stack(values)


@pytest.mark.parametrize("cells", [2, 3])
@pytest.mark.parametrize("name", ["vgg", "functional"])
def test_all_coalitions_give_shapley_values(name: str, cells: int) -> None:
    model, image = build(name, torch.float64), images(1, 18).double()
    grid, players = Grid(cells), cells**2
    labels = superpixels(grid, image[0])
    expected = _shapley(model, image[0], torch.zeros_like(image[0]), labels)
    method = KernelSHAP(model, samples=2**players - 2, segmentation=grid)
    maps = method.attribute_classes(image, range(5))
    shares = torch.stack([maps[:, 0, 0, labels == k].sum(1) for k in range(players)])
    torch.testing.assert_close(shares, expected)


def test_sampled_coalitions_come_close_to_shapley_values() -> None:
    model, image = build("vgg", torch.float64), images(1, 18).double()
    labels = superpixels(Grid(3), image[0])
    expected = _shapley(model, image[0], torch.zeros_like(image[0]), labels)[:, 2]
    maps = KernelSHAP(model, samples=200, segmentation=Grid(3)).attribute(image, 2)
    shares = torch.stack([maps[0, 0, labels == k].sum() for k in range(9)])
    assert (shares - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("reference", [Black(), Blurred(), Random(samples=2)])
def test_maps_sum_to_the_change(reference) -> None:
    model, some = build("resnet", torch.float64), images(2, 20).double()
    method = KernelSHAP(model, samples=60, reference=reference)
    attribution = method.attribution(some, torch.tensor([1, 2]))
    with torch.no_grad():
        after = model(some)[torch.arange(2), [1, 2]]
        background = reference(some)
        before = model(background)
    per_image = reference.per_image
    before = before[torch.arange(2), [1, 2]] if per_image else before.mean(0)[[1, 2]]
    torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), after - before)
    assert attribution.residual is not None
    assert attribution.residual.abs().max() < 1e-9


def test_a_linear_network_is_its_weights_times_the_change() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    maps = KernelSHAP(model, samples=100, segmentation=Grid(6)).attribute(image, 1)
    torch.testing.assert_close(maps.flatten(), model[1].weight[1].detach() * image.flatten())


@pytest.mark.parametrize(("count", "samples"), [(5, 100), (10, 900), (12, 3000), (50, 3000)])
def test_coalitions_follow_the_shapley_kernel(count: int, samples: int) -> None:
    members, weight = coalitions(count, samples, torch.Generator().manual_seed(0))
    assert len(members) <= samples
    sizes = members.sum(1)
    assert sizes.min() >= 1
    assert sizes.max() <= count - 1
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0, dtype=torch.float64))
    kernel = torch.tensor([1 / (k * (count - k)) for k in range(1, count)], dtype=torch.float64)
    weight_by_size = torch.zeros(count - 1, dtype=torch.float64).index_add_(0, sizes - 1, weight)
    exact = count <= 5
    torch.testing.assert_close(
        weight_by_size, kernel / kernel.sum(), rtol=0, atol=1e-12 if exact else 0.02
    )
    # Every coalition comes with its complement, so every player is in half of the weight.
    torch.testing.assert_close(weight @ members.double(), torch.full((count,), 0.5).double())


@pytest.mark.parametrize("count", [20, 36, 40, 45, 49])
def test_a_known_game_at_the_default_number_of_samples(count: int) -> None:
    # Teams that each add a number once they are complete: its members share it evenly.
    generator = torch.Generator().manual_seed(0)
    teams = torch.zeros(200, count, dtype=torch.bool)
    for team in teams:
        size = int(torch.randint(1, 7, (1,), generator=generator))
        team[torch.randperm(count, generator=generator)[:size]] = True
    adds = torch.randn(200, generator=generator, dtype=torch.float64)
    values = (teams.double() / teams.sum(1, keepdim=True)).T @ adds
    members, weight = coalitions(count, 2 * count + 2048, generator)
    complete = (~members).double() @ teams.double().T == 0
    worth, total = complete.double() @ adds[:, None], adds.sum()[None]
    estimate = shapley_regression(members.double(), worth, weight, total)[:, 0]
    # The authors’ package is off by .08 to .16 of it.
    assert (estimate - values).norm() < 0.2 * values.norm()


@pytest.mark.parametrize("count", [8, 12, 13, 20, 30, 36, 40, 44, 45, 46, 49])
def test_no_drawn_coalition_outweighs_a_single_player(count: int) -> None:
    members, weight = coalitions(count, 2 * count + 2048, torch.Generator().manual_seed(0))
    alone = weight[members.sum(1) == 1]
    assert len(alone) == count
    assert weight.max() <= alone.min() * (1 + 1e-9)
    assert len(members.unique(dim=0)) == len(members)


def test_few_samples_of_many_players_all_differ() -> None:
    members, weight = coalitions(12, 60, torch.Generator().manual_seed(0))
    assert len(members.unique(dim=0)) == len(members) == 60
    assert (weight > 0).all()


def test_one_and_two_players_have_their_coalitions() -> None:
    members, weight = coalitions(1, 10, torch.Generator())
    assert members.shape == (0, 1)
    assert weight.shape == (0,)
    members, weight = coalitions(2, 10, torch.Generator())
    assert sorted(members.tolist()) == [[False, True], [True, False]]


def test_agrees_with_captum_on_the_same_superpixels() -> None:
    attr = pytest.importorskip("captum.attr")
    model, some = build("vgg", torch.float64), images(1, 24).double()
    labels = superpixels(Grid(3), some[0])
    mine = KernelSHAP(model, segmentation=Grid(3)).attribute(some, 1)[0, 0] * 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = attr.KernelShap(model).attribute(
            some,
            target=1,
            feature_mask=labels[None, None],
            n_samples=2000,
            perturbations_per_eval=50,
        )[0, 0]
    assert (mine - theirs).norm() < 0.1 * mine.norm()


def test_batch_equals_singles_and_seeds_count() -> None:
    model, some = build("vgg", torch.float64), images(3, 24).double()
    method = KernelSHAP(model, samples=60)
    batch = method.attribute(some, torch.tensor([0, 1, 2]))
    singles = [method.attribute(some[i : i + 1], i) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    torch.testing.assert_close(method.attribute_classes(some, [4, 1])[1, 1], batch[1])
    again = KernelSHAP(model, samples=60, seed=1).attribute(some, torch.tensor([0, 1, 2]))
    assert not torch.allclose(batch, again)


def test_takes_digits() -> None:
    assert KernelSHAP(MNISTNet(), samples=10).attribute(images(1, 28, 1)).shape == (1, 1, 28, 28)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="2 samples"):
        KernelSHAP(nn.Identity(), samples=1)
