"""What outputs mean: probabilities are shown only where a network gives some."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from afmi import AFMI, Classifier, explain, explain_classes
from afmi.errors import (
    LayerError,
    ModelError,
    OperationError,
    OutputsWarning,
    TargetError,
    UsageError,
)
from afmi.methods import CAM, LRP, RISE, Gradient, MeaningfulPerturbation
from afmi.metrics import Deletion, Insertion
from afmi.network.classifier import classify
from afmi.network.trial import meaning_of


def body(outputs: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs)
    )


class Wrapped(nn.Module):
    """A network, and what is done with its outputs."""

    def __init__(self, network: nn.Module, end: Any) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.network(images))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


ENDS = {
    "module": nn.Softmax(1),
    "function": lambda y: F.softmax(y, 1),
    "method": lambda y: y.softmax(-1),
    "in another form": lambda y: y.softmax(-1).view(len(y), -1),
    "logarithm": nn.LogSoftmax(1),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_goes_into_a_last_softmax_is_explained(images, end):
    network = body()
    behind = Wrapped(network, end)
    with pytest.warns(OutputsWarning, match="softmax, so what goes into it is explained"):
        scores = classify(behind, images)
    assert torch.equal(scores, classify(network, images))
    methods = (AFMI(network), AFMI(network, averaged=False), CAM(network), LRP(network))
    for method in (*methods, RISE(network, masks=20)):
        maps = method.on(behind).attribute(images)
        torch.testing.assert_close(maps, method.attribute(images))
    expected = network(images[:1]).softmax(1)[0]
    one = explain(behind, images[0], 2)
    assert one.probability == pytest.approx(expected[2].item(), rel=1e-5)
    assert one.unit == "logit" and one.score == pytest.approx(network(images[:1])[0, 2].item())


def test_a_softmax_in_the_middle_stays(images):
    network = Wrapped(body(), lambda y: 3 * y.softmax(1) + 1)
    assert torch.equal(classify(network, images), network(images))
    with pytest.raises(LayerError, match="not all linear"):
        CAM(network).attribute(images)
    with pytest.raises(OperationError, match="softmax"):
        LRP(network).attribute(images)


def test_labels_that_hold_each_by_itself_have_a_sigmoid_each(images):
    network = body()
    behind = Wrapped(network, nn.Sigmoid())
    with pytest.warns(OutputsWarning, match="ends in sigmoid"):
        one = explain(behind, images[0], 1)
    for model in (behind, Classifier(network, output="sigmoid")):
        one = explain(model, images[0], 1)
        assert one.probability == pytest.approx(behind(images[:1])[0, 1].item())
    assert one.class_index == 1


@pytest.mark.parametrize("end", [nn.Identity(), nn.Flatten(0)], ids=["(N, 1)", "(N,)"])
def test_one_logit_belongs_to_two_classes(images, end):
    network = body(1)
    model = Classifier(Wrapped(network, end), output="sigmoid", labels=["healthy", "ill"])
    y = network(images)[:, 0]
    assert torch.equal(classify(model, images), torch.stack([-y, y], 1))
    healthy, ill = explain_classes(model, images[0], [0, 1], averaged=False)
    torch.testing.assert_close(healthy.map, -ill.map)
    assert ill.probability == pytest.approx(y[0].sigmoid().item())
    assert healthy.probability == pytest.approx(1 - ill.probability)
    predicted = explain(model, images[0])
    assert predicted.class_index == int(y[0] > 0)
    assert predicted.probability >= 0.5


def test_one_probability_belongs_to_two_classes(images):
    network = Wrapped(body(1), nn.Sigmoid())
    model = Classifier(network, output="probabilities")
    p = network(images[:1])[0, 0].item()
    assert explain(model, images[0], 0).probability == pytest.approx(1 - p)
    assert explain(model, images[0], 1).unit == "probability"


def test_a_last_sigmoid_on_one_output_is_undone(images):
    network = body(1)
    with pytest.warns(OutputsWarning, match="sigmoid"):
        one = explain(Wrapped(network, nn.Sigmoid()), images[0], 1)
    assert one.score == pytest.approx(network(images[:1])[0, 0].item(), rel=1e-5)
    assert one.probability == pytest.approx(network(images[:1])[0, 0].sigmoid().item())


def test_a_value_has_no_percentage(images, tmp_path):
    network = body(1)
    with pytest.warns(OutputsWarning, match="taken for a value"):
        assumed = explain(network, images[0])
    for one in (assumed, explain(Classifier(network, output="value"), images[0])):
        assert one.probability is None and one.predicted is None and one.class_index is None
        assert one.score == pytest.approx(network(images[:1])[0, 0].item())
        record = json.loads(one.save(tmp_path)["record"].read_text())
        assert record["probability"] is None and record["unit"] == "value"
        assert "100" not in one.answer and "%" not in one.answer
        assert "predicted" not in str(one)


def test_values_need_to_be_named(images):
    model = Classifier(body(), output="value", labels=["age", "height", "weight", "size"])
    with pytest.raises(TargetError, match="4 values and predicts no class"):
        explain(model, images[0])
    with pytest.raises(UsageError, match="values"):
        explain_classes(model, images[0], top_k=2)
    assert explain(model, images[0], "weight").label == "weight"


@pytest.mark.parametrize("make", [RISE, MeaningfulPerturbation], ids=lambda make: make.name)
def test_methods_that_hide_pixels_watch_a_value(images, make):
    few = {"masks": 30} if make is RISE else {"iterations": 5}
    maps = make(Classifier(body(1), output="value"), **few).attribute(images)
    differs = (maps[0] - maps[1]).abs().max()
    assert differs > 1e-4 * maps.abs().max()


@pytest.mark.parametrize("metric", [Insertion(), Deletion()], ids=lambda metric: metric.name)
def test_metrics_of_classes_refuse_a_value(images, metric):
    maps, targets = torch.rand(3, 1, 12, 12), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TargetError, match="returns values; use value-insertion"):
        metric.curves(Classifier(body(1), output="value"), images, targets, maps)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*jit.trace:FutureWarning")
def test_probabilities_that_nobody_saw_made_are_noticed(images):
    network = torch.jit.trace(Wrapped(body(), nn.Softmax(1)), images)
    with pytest.warns(OutputsWarning, match="sum to 1"):
        scores = classify(network, images)
    assert meaning_of(network, images) == "probabilities"
    assert torch.equal(scores, network(images))


def test_what_is_said_is_not_warned_of(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(Classifier(Wrapped(body(), nn.Softmax(1)), output="logits"), images)
        classify(Classifier(body(1), output="value"), images)
        probabilities = Classifier(Wrapped(body(), nn.Softmax(1)), output="probabilities")
        assert explain(probabilities, images[0], 1).unit == "probability"


@pytest.mark.parametrize("backend", ["eager"])
def test_a_compiled_network_ends_as_it_is_written(images, backend):
    network = body()
    compiled = torch.compile(Wrapped(network, nn.Softmax(1)), backend=backend)
    with pytest.warns(OutputsWarning):
        torch.testing.assert_close(classify(compiled, images), classify(network, images))


OUTPUTS = {
    "a name": ({"output_key": "second"}, lambda y: {"first": y[:, :2], "second": y}),
    "a place": ({"output_key": 1}, lambda y: (y[:, :2], y)),
    "logits": ({}, lambda y: {"logits": y, "features": y[:, :2]}),
    "the only rows": ({}, lambda y: (y[:, :, None], y)),
}


@pytest.mark.parametrize(("options", "end"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_output_that_is_meant_is_taken(images, options, end):
    network = body()
    model = Classifier(Wrapped(network, end), **options)
    assert torch.equal(classify(model, images), network(images))


def test_several_outputs_are_not_chosen_among(images):
    both = Wrapped(body(), lambda y: (y, 2 * y))
    with pytest.raises(ModelError, match=r"a tuple of \(2, 4\).*output_key"):
        classify(both, images)
    with pytest.raises(ModelError, match="there is no output_key='aux'"):
        classify(Classifier(both, output_key="aux"), images)


def test_what_cannot_be_meant_is_refused(images):
    with pytest.raises(ModelError, match="expected output as 'logits'"):
        Classifier(body(), output="softmax")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="one logit, whose softmax is 1 for every image"):
        classify(Classifier(body(1), output="logits"), images)


def test_weights_that_change_change_the_meaning(images):
    model = nn.Sequential(body(), nn.Identity())
    assert meaning_of(model, images) == "logits"
    model[1] = nn.Sigmoid()
    with pytest.warns(OutputsWarning):
        assert meaning_of(model, images) == "sigmoid"


def test_squeezenet_behind_softmax_is_squeezenet(squeezenet_weights):
    from safetensors.torch import load_file

    network = torchvision.models.squeezenet1_0()
    network.load_state_dict(load_file(squeezenet_weights))
    network.eval()
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    behind = nn.Sequential(network, nn.Softmax(1))
    with pytest.warns(OutputsWarning):
        one = explain(behind, image)
    assert one.probability == pytest.approx(behind(image).max().item(), rel=1e-4)
    for method in (AFMI(network, averaged=False), Gradient(network), LRP(network)):
        maps = method.on(behind).attribute(image)
        torch.testing.assert_close(maps, method.attribute(image))


def test_one_label_for_one_logit_is_answered_with_two() -> None:
    model = Classifier(body(1), output="sigmoid", labels=["cat"])
    with pytest.raises(ModelError, match=r"2 classes apart but has 1 label; pass two for its one"):
        explain(model, torch.rand(3, 12, 12))
    model = Classifier(body(4), output="sigmoid", labels=["cat"])
    with pytest.raises(ModelError, match=r"4 classes apart but has 1 label; pass one label per"):
        explain(model, torch.rand(3, 12, 12))
