"""Parameter randomisation: what is randomised, in which order, and what it does to maps."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import case_of
from networks import TINY, build, images
from scipy.stats import spearmanr
from torch import Tensor, nn

from afmi.errors import ModelError, UsageError
from afmi.methods import AFMI, GradCAM, Gradient, InputXGradient, Random, SmoothGrad
from afmi.metrics import ParameterRandomisation
from afmi.metrics.parameter_randomisation import _from_the_logits_down, _randomise
from afmi.network.classifier import classify


def test_names_of_the_values() -> None:
    case = case_of(Gradient(build("resnet")), images(1))
    assert list(ParameterRandomisation().measure(case)) == [
        "similarity",
        *(
            f"{kind}@{depth}"
            for depth in ("top", "50%", "all")
            for kind in ("rank_correlation", "absolute_rank_correlation")
        ),
    ]


def test_a_map_of_the_picture_alone_stays() -> None:
    values = ParameterRandomisation().measure(case_of(Random(build("vgg")), images(2)))
    for value in values.values():
        assert value.tolist() == pytest.approx([1.0, 1.0])


def test_a_map_of_the_parameters_alone_goes() -> None:
    # The gradient of a linear network is its weights, which are random numbers afterwards.
    model = nn.Sequential(nn.Flatten(), nn.Linear(2500, 2))
    # Of one channel the gradient's map is its magnitude.
    case = case_of(Gradient(model), images(1, size=50, channels=1))
    values = ParameterRandomisation().measure(case)
    assert values["similarity"].item() < 4 / math.sqrt(2500)
    assert values["rank_correlation@top"].item() == values["rank_correlation@all"].item()


def test_similarity_is_the_magnitude() -> None:
    # One weight and input × gradient: the map is the picture, turned by the weight's sign.
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    case = case_of(InputXGradient(model), images(1, channels=1), torch.tensor([0]))
    signs = set()
    for seed in range(6):
        values = ParameterRandomisation(seed=seed).measure(case)
        signs.add(round(values["rank_correlation@all"].item()))
        assert values["similarity"].item() == pytest.approx(1.0)
        assert values["absolute_rank_correlation@all"].item() == pytest.approx(1.0)
    assert signs == {-1, 1}


def test_against_a_network_randomised_by_hand() -> None:
    model, x = build("vgg"), images(2)
    case = case_of(InputXGradient(model), x)
    measured = ParameterRandomisation(seed=3).measure(case)
    generator = torch.Generator().manual_seed(3)
    other = copy.deepcopy(model)
    layers = [
        other.classifier[6],
        other.classifier[3],
        other.classifier[0],
        other.features[4],
        other.features[1],
        other.features[0],
    ]

    def values() -> tuple[list[float], list[float]]:
        pairs = zip(case.maps, InputXGradient(other).attribute(x, case.targets), strict=True)
        both = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in pairs]
        return (
            [spearmanr(a, b)[0] for a, b in both],
            [spearmanr(abs(a), abs(b))[0] for a, b in both],
        )

    expected: dict[str, tuple[list[float], list[float]]] = {}
    with torch.no_grad():
        for number, layer in enumerate(layers, 1):
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(1), layer.bias.fill_(0)
                layer.running_mean.fill_(0), layer.running_var.fill_(1)
            else:
                noise = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(noise * (2 / layer.weight[0].numel()) ** 0.5)
                layer.bias.fill_(0)
            label = {1: "top", 3: "50%", 6: "all"}.get(number)
            if label is not None:
                expected[label] = values()
    for label, (signed, magnitudes) in expected.items():
        assert measured[f"rank_correlation@{label}"].tolist() == pytest.approx(signed, abs=1e-4)
        absolute = measured[f"absolute_rank_correlation@{label}"].tolist()
        assert absolute == pytest.approx(magnitudes, abs=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_all_layers_means_that_nothing_learned_is_left(name: str) -> None:
    model = build(name)
    order = _from_the_logits_down(model, images(1))
    owners = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    assert len(order) == len(set(order))
    assert set(order) == owners
    assert order[0] == {"vgg": "classifier.6", "resnet": "fc", "functional": "fc2"}[name]
    assert order[-1] == {"vgg": "features.0", "resnet": "conv1", "functional": "conv1"}[name]
    before, generator = model.state_dict(), torch.Generator().manual_seed(0)
    before = {k: v.clone() for k, v in before.items()}
    for layer in order:
        _randomise(model.get_submodule(layer), generator)
    for key, tensor in model.state_dict().items():
        assert "num_batches" in key or not torch.equal(tensor, before[key]), key


class Reversed(nn.Module):
    """Defines its head first, runs one layer by its weights, and has vectors as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.scale = nn.Parameter(torch.arange(8.0))
        self.norm = nn.LayerNorm(8)
        self.patches = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) * self.scale
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return F.linear(self.norm(mixed[:, 0]), self.head.weight) + self.head(mixed[:, 0])


def test_order_is_that_of_the_run() -> None:
    model = Reversed().eval()
    order = _from_the_logits_down(model, images(1))
    assert order[:2] == ["head", "norm"]
    assert set(order[2:4]) == {"attention", "attention.out_proj"}
    assert set(order[4:]) == {"", "patches"}


def test_each_kind_of_parameter() -> None:
    model, generator = Reversed(), torch.Generator().manual_seed(0)
    for name in ("", "norm", "head", "attention"):
        _randomise(model.get_submodule(name) if name else model, generator)
    assert model.scale.tolist() != list(range(8))
    assert model.scale.sort().values.tolist() == list(range(8))
    assert model.norm.weight.tolist() == [1] * 8
    assert model.head.bias.tolist() == [0] * 3
    projection = model.attention.in_proj_weight
    assert projection.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.2)


def test_the_image_still_reaches_the_logits_of_a_deep_network() -> None:
    layers = [m for _ in range(30) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    case = case_of(Gradient(model.eval()), images(2, size=8))
    values = ParameterRandomisation(depths=(1,)).measure(case)
    assert torch.isfinite(values["similarity"]).all()


@pytest.mark.parametrize("as_module", [True, False])
def test_a_layer_given_as_a_module_is_the_copy_s(as_module: bool) -> None:
    model, x = build("resnet"), images(2)
    layer: Any = model.layer1 if as_module else "layer1"
    values = ParameterRandomisation().measure(case_of(AFMI(model, layer=layer), x))
    expected = ParameterRandomisation().measure(case_of(AFMI(model, layer="layer1"), x))
    for key, value in values.items():
        assert torch.equal(value, expected[key])


def test_a_base_method_explains_the_copy_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1200, 2))
    base = Gradient(model)
    case = case_of(SmoothGrad(model, base=base, samples=2, noise=0.0), images(1))
    values = ParameterRandomisation().measure(case)
    expected = ParameterRandomisation().measure(case_of(base, images(1)))
    assert values["similarity"].item() == pytest.approx(expected["similarity"].item(), abs=1e-6)


def test_a_blank_map_is_no_value_and_no_warning() -> None:
    # Behind the new head's weights, some of which are negative, Grad-CAM's ReLU leaves nothing.
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[4].weight.copy_(torch.tensor([[1.0], [2.0]]))
    case = case_of(GradCAM(model, layer="1"), images(1, size=6, channels=1), torch.tensor([0]))
    tops = [
        ParameterRandomisation(seed=seed).measure(case)["rank_correlation@top"].item()
        for seed in range(6)
    ]
    assert any(math.isnan(v) for v in tops)
    assert any(v == pytest.approx(1.0) for v in tops)


def test_seeds() -> None:
    case = case_of(Gradient(build("resnet")), images(1))
    first, again = (ParameterRandomisation().measure(case) for _ in range(2))
    other = ParameterRandomisation(seed=1).measure(case)
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not torch.equal(other["similarity"], first["similarity"])


def test_the_user_s_network_is_not_touched() -> None:
    model, x = build("vgg"), images(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    logits = classify(model, x)
    ParameterRandomisation().measure(case_of(AFMI(model), x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(classify(model, x), logits)


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = build("resnet")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise TypeError("holds a file")


def test_networks_that_it_cannot_randomise() -> None:
    case = case_of(Gradient(build("resnet")), images(1))
    with pytest.raises(ModelError, match=r"Uncopied cannot be copied.*holds a file"):
        ParameterRandomisation().measure(replace(case, method=Gradient(Uncopied())))
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="network with parameters"):
        ParameterRandomisation().measure(case_of(Random(bare), images(1)))


@pytest.mark.parametrize("depths", [(), (0.5,), (1, 1), (-0.1, 1), (0.5, 0, 1), (0.5, 1, 2)])
def test_bad_depths(depths: Any) -> None:
    with pytest.raises(UsageError, match="rise from 0 or more to 1"):
        ParameterRandomisation(depths=depths)
