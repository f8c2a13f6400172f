"""What every metric of the catalogue must keep; a new metric is tested without being named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from cases import case_of, companions_for, part
from networks import build, images
from settings import STRANGE_DEFAULTS, defaults, method
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from afmi.errors import UsageError
from afmi.methods import Method
from afmi.metrics import CATALOGUE, Case, FMIPrototypes, Metric
from afmi.metrics.columns import MetricFacts, point
from afmi.specs import named

# So few masks and steps may show nothing of an image, or miss the change of its score.
pytestmark = [
    pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning"),
    pytest.mark.filterwarnings("ignore:.*Integrated Gradients misses the change"),
]

# One that shares its passes between classes, one that does not, one of pixels, the control, and
# one that never looks inside the network.
METHODS = ["AFMI", "GradCAM", "IntegratedGradients", "Random", "RISE"]
EVERY = [(metric, of) for metric in CATALOGUE for of in METHODS]


def made(name: str, dtype: torch.dtype = torch.float32) -> Method:
    return method(name, build("vgg", dtype), layer="features.5")


def case(of: Method, count: int = 3, seed: int = 0) -> Case:
    x = images(count, seed=seed).to(next(of.model.parameters()).dtype)
    targets = torch.arange(count) % 5
    return case_of(of, x, targets, companions=companions_for(x))


def made_of(metric: Metric) -> set[str]:
    """Return the values that a metric's columns are made of."""
    facts = metric.facts()
    names = {column.per for column in facts.columns} | {column.among for column in facts.columns}
    for column in facts.columns:
        curve = column.kind != "scalar"
        names |= {point(column.source, f) for f in facts.fractions} if curve else {column.source}
    return names - {""}


def check_values(metric: Metric, values: dict[str, Tensor]) -> None:
    for value in values.values():
        assert value.shape == (3,)
        assert value.dtype == torch.float64
        assert value.device.type == "cpu"
        assert not value.isinf().any()
        assert not value.requires_grad
    if values:
        assert made_of(metric) <= set(values)
        assert all(part and part == part.strip() for key in values for part in key.split("@"))


@pytest.mark.parametrize(("name", "of"), EVERY)
def test_batch_equals_singles(name: str, of: str) -> None:
    metric, whole = CATALOGUE[name](), case(made(of, torch.float64))
    values = metric.measure(whole)
    check_values(metric, values)
    singles = [metric.measure(part(whole, i)) for i in range(3)]
    for key, value in values.items():
        alone = torch.cat([single[key] for single in singles])
        torch.testing.assert_close(value, alone, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert all(set(single) == set(values) for single in singles)


@pytest.mark.parametrize("name", CATALOGUE)
def test_same_again(name: str) -> None:
    one = case(made("AFMI"))
    first = CATALOGUE[name]().measure(one)
    check_values(CATALOGUE[name](), first)
    torch.rand(7)
    again = CATALOGUE[name]().measure(one)
    for key, value in first.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("strange", STRANGE_DEFAULTS, ids=str)
@pytest.mark.parametrize("name", CATALOGUE)
def test_default_dtype_and_device_change_nothing(name: str, strange: dict[str, Any]) -> None:
    one = case(made("AFMI"))
    expected = CATALOGUE[name]().measure(one)
    with defaults(**strange):
        values = CATALOGUE[name]().measure(one)
    for key, value in expected.items():
        torch.testing.assert_close(values[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CATALOGUE)
def test_leaves_all_as_it_was(name: str, training: bool) -> None:
    of = made("AFMI")
    of.model.train(training)
    of.model.features[2].eval()
    one = case(of)
    state = {k: v.clone() for k, v in of.model.state_dict().items()}
    modes = [m.training for m in of.model.modules()]
    held = [one.inputs, one.targets, one.maps, one.logits]
    copies = [tensor.clone() for tensor in held]
    random = torch.get_rng_state()
    hooks = len(torch_module._global_forward_hooks)
    CATALOGUE[name]().measure(one)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in of.model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in of.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in of.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    assert len(torch_module._global_forward_hooks) == hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in of.model.modules())


class Counted(nn.Module):
    """Counts images, in areas of the first ones; its copies count with it."""

    def __init__(self, network: nn.Module, area: int) -> None:
        super().__init__()
        self.network = network
        self.area = area
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x) * x.shape[2] * x.shape[3] / self.area)
        return self.network(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        import copy

        other = Counted(copy.deepcopy(self.network, memo), self.area)
        other.seen = self.seen
        return other


@pytest.mark.parametrize(("name", "of"), EVERY)
def test_goes_through_the_network_as_often_as_it_foretells(
    name: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not counted: the trial of each network, randomised ones too.
    monkeypatch.setattr("afmi.network.trial._try", lambda *_: None)
    x = images(6)
    model = Counted(build("vgg"), 20 * 20).eval()
    method_ = method(of, model, layer="network.features.5")
    one = case_of(method_, x, torch.arange(6) % 5, companions=companions_for(x))
    metric: Metric = CATALOGUE[name]()
    metric.measure(one)  # what the method keeps between batches is run here
    model.seen.clear()
    metric.measure(one)
    expected = metric.work(method_, x).forwards
    # Not counted: a reference's own pass, for each batch, canvas and randomised network.
    assert sum(model.seen) / 6 == pytest.approx(expected, rel=0.3, abs=0.75)


@pytest.mark.parametrize("name", CATALOGUE)
def test_description(name: str) -> None:
    kind = CATALOGUE[name]
    for text in (kind.name, kind.paper, kind.__doc__):
        assert text
    names = [column.name for column in kind.columns]
    assert names and len(set(names)) == len(names)
    assert kind.columns[0].kind != "curve"
    for column in kind.columns:
        assert column.title and column.measures
        assert column.higher_is_better in (True, False, None)
        assert column.area in ("", *names)
    facts = kind().facts()
    assert MetricFacts.from_dict(json.loads(json.dumps(facts.as_dict()))) == facts
    assert "Cost:" in (kind.__doc__ or "")
    assert kind() == kind()
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        kind().seed = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CATALOGUE)
def test_found_by_name(name: str) -> None:
    assert named(name, CATALOGUE, "metric") is CATALOGUE[name]
    assert named(CATALOGUE[name].name, CATALOGUE, "metric") is CATALOGUE[name]
    assert named(name.lower(), CATALOGUE, "metric") is CATALOGUE[name]


def test_unknown_names() -> None:
    assert named("grid-pointing", CATALOGUE, "metric") is CATALOGUE["GridPointing"]
    with pytest.raises(UsageError, match="did you mean 'insertion'"):
        named("insertoin", CATALOGUE, "metric")
    with pytest.raises(UsageError, match="there are Insertion"):
        named("xyzzy", CATALOGUE, "metric")


def test_prototypes_are_no_metric_of_maps() -> None:
    assert "FMIPrototypes" not in CATALOGUE
    assert not issubclass(FMIPrototypes, Metric)
    assert next(iter(CATALOGUE)) == "Insertion"
