"""Value insertion: areas by hand, scores that fall, every kind of target, and what needs none."""

from __future__ import annotations

import math

import pytest
import torch
from cases import case_of
from torch import Tensor, nn

from afmi import Classifier
from afmi.errors import AfmiError, UsageError
from afmi.methods import Gradient, InputXGradient, Random
from afmi.metrics import Case, Deletion, Insertion, ValueInsertion, chosen_metrics
from afmi.network.classifier import classify
from afmi.network.scored import Scored
from afmi.pictures.references import White
from afmi.targets import Class, Difference, Output, Scalar

QUARTERS = ValueInsertion(fractions=(0, 0.25, 0.5, 0.75, 1))


def weighted(*rows: list[float], output: str = "value") -> Classifier:
    """A network of the sums of four pixels, with these weights for each output."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, len(rows), bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor(rows))
    return Classifier(network, mean=[0], std=[1], output=output).eval()


def measured(model: Classifier, target, map_: list[float], metric=QUARTERS, cls=InputXGradient):
    """Measure a map of our own of a white image."""
    image = torch.ones(1, 1, 2, 2)
    case = explained(cls(model), image, target)
    attribution = case.attribution
    maps = torch.tensor(map_).view(1, 1, 2, 2)
    object.__setattr__(attribution, "maps", maps)
    return {name: value.item() for name, value in metric.measure(case).items()}


def explained(method, images: Tensor, target) -> Case:
    attribution = method.attribution(images, target)
    if attribution.targets is None:
        return case_of(method, images, attribution.target)
    logits = attribution.scores[:, None]
    return Case(method, images, attribution.targets, attribution, logits)


def test_areas_by_hand() -> None:
    values = measured(weighted([4.0, 2, 1, 1]), Output(), [4.0, 3, 2, 1])
    assert [values[f"score@{p}%"] for p in (0, 25, 50, 75, 100)] == [0, 4, 6, 7, 8]
    assert [values[f"moved@{p}%"] for p in (0, 25, 50, 75, 100)] == [0, 4, 6, 7, 8]
    assert values["value_auc"] == (0 / 2 + 4 + 6 + 7 + 8 / 2) / 4
    assert (values["change"], values["whole_score"]) == (8, 8)
    worst = measured(weighted([4.0, 2, 1, 1]), Output(), [1.0, 2, 3, 4])
    assert worst["value_auc"] == (0 / 2 + 1 + 2 + 4 + 8 / 2) / 4


def test_a_score_that_falls_is_followed_from_what_brought_it_down() -> None:
    model = weighted([-4.0, -2, -1, -1])
    signed = measured(model, Output(), [-4.0, -3, -2, -1])
    assert [signed[f"score@{p}%"] for p in (0, 25, 100)] == [0, -4, -8]
    assert [signed[f"moved@{p}%"] for p in (0, 25, 100)] == [0, 4, 8]
    assert signed["value_auc"] == 5.25
    # The values of maps without a sign tell how much a pixel matters, whichever way.
    unsigned = measured(model, Output(), [4.0, 3, 2, 1], cls=Random)
    assert unsigned["value_auc"] == 5.25


def test_a_score_that_does_not_change_has_no_share() -> None:
    values = measured(weighted([1.0, -1, 1, -1]), Output(), [4.0, 3, 2, 1])
    assert math.isnan(values["change"])
    assert values["value_auc"] == 0


@pytest.mark.parametrize("metric", [QUARTERS, ValueInsertion(fractions=(0.25, 0.5, 0.75, 1))])
def test_steps_may_begin_later(metric: ValueInsertion) -> None:
    values = measured(weighted([4.0, 2, 1, 1]), Output(), [4.0, 3, 2, 1], metric)
    assert values["moved@25%"] == 4


@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")
def test_the_canvas_is_where_it_begins() -> None:
    metric = ValueInsertion(fractions=(0, 0.5, 1), canvas=White())
    model, image = weighted([1.0, 1, 1, 1]), torch.zeros(1, 1, 2, 2)
    values = metric.measure(explained(Gradient(model), image, Output()))
    assert [values[f"score@{p}%"].item() for p in (0, 50, 100)] == [4, 2, 0]
    assert values["value_auc"].item() == 2


@pytest.mark.parametrize(
    "target",
    [
        1,
        Class(1),
        Difference(1, 0),
        Difference(1),
        Output(2),
        Scalar(lambda y: y.square().sum(1)),
        [Class(1), Difference(1, 0), Output(2)],
    ],
    ids=["index", "class", "difference", "log-odds", "output", "scalar", "each its own"],
)
def test_it_is_the_targets_own_score(target) -> None:
    model = weighted([1.0, 2, 3, 4], [4.0, -3, 2, 1], [0.5, 1, 1, -1], output="logits")
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    method = InputXGradient(model)
    case = explained(method, images, target)
    values = QUARTERS.measure(case)
    each = target if isinstance(target, list) else [target] * 3
    for n, one in enumerate(each):
        of = Scored(model, Class(one) if isinstance(one, int) else one)
        kept = images[n : n + 1].clone()
        score, empty = classify(of, kept)[0, 0], classify(of, torch.zeros_like(kept))[0, 0]
        order = (case.maps[n].flatten() * (score - empty).sign()).argsort(descending=True)
        assert values["score@100%"][n] == pytest.approx(float(score), rel=1e-5, abs=1e-6)
        assert values["score@0%"][n] == pytest.approx(float(empty), abs=1e-6)
        kept.view(-1)[order[2:]] = 0
        assert values["score@50%"][n] == pytest.approx(
            float(classify(of, kept)[0, 0]), rel=1e-5, abs=1e-6
        )
        alone = QUARTERS.measure(case.only(n))
        assert alone["value_auc"].item() == pytest.approx(values["value_auc"][n].item(), abs=1e-6)


@pytest.mark.parametrize("metric", [Insertion(), Deletion()], ids=lambda metric: metric.name)
def test_metrics_of_classes_refuse_what_is_no_class(metric) -> None:
    model = weighted([1.0, 2, 3, 4], [4.0, -3, 2, 1], output="logits")
    case = explained(Gradient(model), torch.rand(2, 1, 2, 2), Difference(0, 1))
    with pytest.raises(AfmiError, match="expected a class to be explained, got difference:of=0"):
        metric.measure(case)


def test_the_standard_metrics_fit_what_is_explained() -> None:
    assert list(chosen_metrics(None)) == ["insertion", "completeness", "cost"]
    assert list(chosen_metrics(None, classes=False)) == ["value_insertion", "completeness", "cost"]


def test_fractions_must_rise() -> None:
    with pytest.raises(UsageError, match="two or more fractions that rise"):
        ValueInsertion(fractions=(1, 0))
