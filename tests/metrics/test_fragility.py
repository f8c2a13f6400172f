"""Fragility: worked by hand, against a slow implementation, and what the attacks must keep."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from cases import case_of
from networks import build, images
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from afmi.errors import UsageError
from afmi.methods import AFMI, Gradient, InputXGradient
from afmi.methods.work import Work
from afmi.metrics import Fragility
from afmi.metrics.fragility import _Rounded
from afmi.network.classifier import classify
from afmi.network.randomness import image_generator

ATTACKS = ["random", "search", "gradient"]


def test_by_hand() -> None:
    # The score is the sum of the pixels, so the map is the image. Least is left of the top pixel,
    # 0.5, where it falls to 0.48 and all others rise: 0.48 / 1.33.
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        model[1].bias.zero_()
    x = torch.tensor([[[[0.5, 0.49], [0.1, 0.2]]]], dtype=torch.float64)
    case = case_of(InputXGradient(model), x, torch.tensor([0]))
    values = Fragility(epsilon=0.02, samples=2, share=0.25).measure(case)
    assert values["intersection"].item() == 0
    # Ranks 4 3 1 2 and 3 4 1 2: 1 − 6·2/60.
    assert values["rank_correlation"].item() == pytest.approx(0.8)
    before = (0.3 / 1.29, 0.69 / 1.29)
    after = (0.34 / 1.33, 0.73 / 1.33)
    assert values["centre_shift"].item() == pytest.approx(np.hypot(*np.subtract(after, before)))


def centre(positive: np.ndarray) -> np.ndarray:
    mass = np.maximum(positive, 0)
    rows, columns = np.indices(mass.shape)
    return np.array([(mass * rows).sum(), (mass * columns).sum()]) / mass.sum()


@pytest.mark.parametrize("objective", ["top", "centre"])
def test_random_signs_against_a_slow_implementation(objective: str) -> None:
    model, x = build("vgg", torch.float64), images(2).double()
    method = AFMI(model, layer="features.5")
    case = case_of(method, x, torch.tensor([1, 3]))
    metric = Fragility(epsilon=0.05, samples=4, share=0.1, objective=objective, seed=3)
    measured = metric.measure(case)
    for n in range(2):
        generator = image_generator(3, x[n])
        first = case.maps[n, 0].numpy()
        top = first.ravel().argsort(kind="stable")[::-1][:40]
        found: list[tuple[float, np.ndarray]] = []
        for _ in range(4):
            signs = torch.randint(2, (3, 20, 20), generator=generator).double() * 2 - 1
            image = (x[n] + 0.05 * signs).clamp(0, 1)[None]
            if classify(model, image).argmax() != case.logits[n].argmax():
                continue
            moved = method.attribute(image, case.targets[n : n + 1])[0, 0].numpy()
            left = moved.ravel()[top].sum() / np.abs(moved).sum()
            shift = np.linalg.norm(centre(moved) - centre(first))
            found.append((shift if objective == "centre" else -left, moved))
        worst = max(found, key=lambda pair: pair[0])[1]
        kept = set(worst.ravel().argsort()[::-1][:40]) & set(top)
        assert measured["intersection"][n].item() == len(kept) / 40
        ranks = spearmanr(first.ravel(), worst.ravel())[0]
        assert measured["rank_correlation"][n].item() == pytest.approx(ranks, abs=1e-9)
        shift = np.linalg.norm(centre(worst) - centre(first))
        assert measured["centre_shift"][n].item() == pytest.approx(shift, abs=1e-9)


class Seen(nn.Module):
    """Keeps the images that go through the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.detach())
        return self.network(x)


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_stay_within_epsilon_and_the_range(attack: str) -> None:
    model, x = Seen(build("vgg")).eval(), images(1)
    case = case_of(Gradient(model), x)
    model.images.clear()
    Fragility(epsilon=0.1, samples=6, attack=attack).measure(case)
    seen = torch.cat([image for image in model.images if image.shape == x.shape])
    assert len(seen) > 6
    assert (seen - x).abs().max() <= 0.1 + 1e-6
    assert seen.min() >= 0 and seen.max() <= 1
    assert (seen - x).abs().max() > 0.09  # and they use what they may
    wide = 4 * x - 2  # a bare network's own range
    model.images.clear()
    Fragility(epsilon=0.1, samples=2, attack=attack).measure(case_of(Gradient(model), wide))
    seen = torch.cat([image for image in model.images if image.shape == x.shape])
    assert seen.min() >= wide.min() and seen.max() <= wide.max()


class Peak(nn.Module):
    """Says class 0 at one image, and class 1 at every other."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        apart = (x - self.image).abs().sum((1, 2, 3))
        return torch.stack([0.01 + 1e-6 * x.square().sum((1, 2, 3)), 1e3 * apart], 1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_changed_prediction_does_not_count(attack: str) -> None:
    x = images(1)
    model = Peak(x)
    case = case_of(InputXGradient(model), x, torch.tensor([0]))
    assert case.logits.argmax() == 0
    values = Fragility(attack=attack, samples=3).measure(case)
    assert all(value.isnan().all() for value in values.values())


def test_gradients_find_what_chance_does_not() -> None:
    torch.manual_seed(0)
    hidden = nn.Linear(300, 60)
    nn.init.normal_(hidden.weight, std=0.5)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(60, 3)).eval()
    case = case_of(Gradient(model), images(6, 10))
    options: dict[str, Any] = {"epsilon": 0.05, "share": 0.1, "samples": 8}
    steered = Fragility(attack="gradient", **options).measure(case)["intersection"]
    chance = Fragility(**options).measure(case)["intersection"]
    assert steered.mean() < chance.mean() - 0.1


class Function(nn.Module):
    """Applies a function to a copy of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        result = self.function(x)
        return x if result is None else result


def in_place(x: Tensor) -> None:
    x.clamp_(max=1.5, min=-0.5)


ACTIVATIONS = {
    "ReLU": nn.ReLU(inplace=True),
    "relu_": Function(lambda x: x.relu_()),
    "ReLU6": nn.ReLU6(),
    "relu6": Function(lambda x: F.relu6(x, inplace=True)),
    "Hardtanh": nn.Hardtanh(-0.5, 1.5, inplace=True),
    "hardtanh": Function(lambda x: F.hardtanh(x, max_val=2.0)),
    "clamp": Function(lambda x: x.clamp(0, 6)),
    "clamp_": Function(in_place),
    "clamp_min": Function(lambda x: torch.clamp_min(x, 0.5)),
    "clamp_max": Function(lambda x: x.clamp_max(max=0.5)),
    "upper": Function(lambda x: torch.clamp(x, max=0.5)),
    "tensors": Function(lambda x: torch.clamp(x, x.new_zeros(60), x.new_ones(1))),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "leaky_relu": Function(lambda x: F.leaky_relu(x, inplace=True)),
    "PReLU": nn.PReLU(),
    "PReLU of each": nn.PReLU(60, 0.1),
}


@pytest.mark.parametrize("name", ["relu_", "ReLU6", "LeakyReLU", "PReLU"])
def test_gradients_find_worse_step_by_step(name: str) -> None:
    torch.manual_seed(0)
    hidden = nn.Linear(75, 60)
    nn.init.normal_(hidden.weight, std=0.6)
    activation = copy.deepcopy(ACTIVATIONS[name])
    model = nn.Sequential(nn.Flatten(), hidden, activation, nn.Linear(60, 3)).eval()
    nn.init.constant_(model[3].bias[:1], 100.0)  # the prediction stays
    case = case_of(Gradient(model), images(6, 5))
    once, often = (
        Fragility(attack="gradient", epsilon=0.06, share=0.2, samples=samples)
        .measure(case)["intersection"]
        .mean()
        for samples in (1, 10)
    )
    assert often < once - 0.05


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_corners_are_rounded(name: str) -> None:
    # The corners of these lie at most log 2 / β off, and nothing else changes.
    x = torch.linspace(-3, 9, 60 * 200, dtype=torch.float64).view(-1, 60).requires_grad_()
    activation = copy.deepcopy(ACTIVATIONS[name]).double()
    exact = activation(1 * x).detach()
    with _Rounded():
        rounded = activation(1 * x)
    apart = (rounded - exact).abs()
    assert 0.01 < apart.max() <= np.log(2) / 10 + 1e-9
    assert apart.median() < 1e-6
    (slope,) = torch.autograd.grad(rounded.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert bend.abs().max() > 1  # β/4 (1 − a) at the corner
    with _Rounded():  # positions stay integers
        assert torch.arange(5).clamp(1, 3).tolist() == [1, 1, 2, 3, 3]


def test_maps_of_one_channel_each_have_their_own_slope() -> None:
    x, prelu = torch.randn(2, 3, 4, 5, dtype=torch.float64) * 9, nn.PReLU(3).double()
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.1, 0.5, -0.3]))
        with _Rounded():
            rounded = prelu(x)
        torch.testing.assert_close(rounded, prelu(x), rtol=0, atol=1.3 * np.log(2) / 10)


def test_a_search_begins_with_a_random_sample_and_finds_worse() -> None:
    model, x = build("vgg", torch.float64), images(2).double()
    case = case_of(AFMI(model, layer="features.5"), x)
    shifts = [
        Fragility(attack="search", objective="centre", samples=n).measure(case)["centre_shift"]
        for n in (1, 10)
    ]
    chance = Fragility(objective="centre", samples=1).measure(case)["centre_shift"]
    assert torch.equal(shifts[0], chance)
    assert (shifts[1] > shifts[0]).all()


@pytest.mark.parametrize("attack", ["random", "search"])
def test_a_gradient_that_is_the_same_everywhere_is_not_fragile(attack: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    values = Fragility(attack=attack, epsilon=1e-3, share=0.2).measure(
        case_of(Gradient(model), images(2, 4))
    )
    assert values["intersection"].tolist() == [1, 1]
    assert values["rank_correlation"].tolist() == pytest.approx([1, 1])
    assert values["centre_shift"].tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize("corner", [nn.Identity(), Function(lambda x: x.maximum(0 * x))])
@pytest.mark.parametrize("objective", ["top", "centre"])
def test_a_gradient_attack_without_second_derivatives(corner: nn.Module, objective: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), corner, nn.Linear(9, 3)).eval()
    case = case_of(Gradient(model), images(2, 4))
    metric = Fragility(attack="gradient", objective=objective)
    with pytest.raises(UsageError, match=r"second derivative is 0 .* use attack=search"):
        metric.measure(case)


def test_a_blank_map_has_no_value() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    nn.init.zeros_(model[1].weight)
    with pytest.warns(match="the same everywhere"):
        case = case_of(Gradient(model), images(1, 4))
    assert all(value.isnan().all() for value in Fragility().measure(case).values())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("sides", [(12,), (4, 5, 6)])
def test_signals_and_volumes(attack: str, sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    places = int(np.prod(sides))
    model = nn.Sequential(nn.Flatten(), nn.Linear(places, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(2, 1, *sides)
    values = Fragility(attack=attack, share=0.2).measure(case_of(InputXGradient(model), x))
    assert all(value.shape == (2,) and value.isfinite().all() for value in values.values())


def test_the_gradient_attack_leaves_the_network_as_it_was() -> None:
    model = build("vgg").train()
    case = case_of(Gradient(model), images(2))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    Fragility(attack="gradient").measure(case)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_cost() -> None:
    method, x = Gradient(build("vgg")), images(1)
    assert Fragility(samples=7).work(method, x) == Work(14, 7)
    assert Fragility(samples=7, attack="gradient").work(method, x) == Work(21, 28)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "luck"}, "expected attack to be one of random, search, gradient, got 'luck'"),
        ({"objective": "x"}, "expected objective to be one of top, centre, got 'x'"),
        ({"epsilon": 0}, "an epsilon above 0"),
        ({"samples": 0}, "1 sample or more"),
        ({"share": 1}, "a share between 0 and 1"),
    ],
)
def test_refusals(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Fragility(**options)
