"""A wrapper around a network or a Classifier hides neither its weights nor what is known of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build, images
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

import afmi
from afmi.methods import AFMI, RISE, GradCAM, Gradient, SmoothGrad, chosen_methods
from afmi.network.classifier import (
    Classifier,
    class_label,
    classifier_of,
    classify,
    find_class,
    network_zero,
)
from afmi.network.guards import without_compilation
from afmi.network.layers import find_layer, layer_names
from afmi.network.outputs import declaration_of
from afmi.network.wrappers import runnable, within, wrappings

LABELS = tuple(f"name {index}" for index in range(5))


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(
        build("resnet"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        labels=LABELS,
        resize=40,
        crop=32,
    )


def compiled(model: nn.Module) -> Any:
    # The graph is captured, but no machine code is made, which would take a minute.
    return torch.compile(model, backend="eager")


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def of_timm(name: str) -> Callable[[nn.Module], Any]:
    def wrap(model: nn.Module) -> Any:
        return getattr(pytest.importorskip("timm.utils"), name)(model)

    return wrap


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "compile": compiled,
    "AveragedModel": AveragedModel,
    "ModelEma": of_timm("ModelEma"),
    "ModelEmaV2": of_timm("ModelEmaV2"),
    "ModelEmaV3": of_timm("ModelEmaV3"),
    "several": lambda model: nn.DataParallel(compiled(AveragedModel(model))),
}
wrapped = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
pytestmark = pytest.mark.filterwarnings("ignore:Using `torch.compile")


@pytest.fixture(autouse=True)
def process_group(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a process be distributed over itself."""
    alone = "DistributedDataParallel" in request.node.name
    if alone:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    if alone:
        torch.distributed.destroy_process_group()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file that is neither as large as the network's crop nor square."""
    pixels = (images(1, size=64)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels[:48]).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@wrapped
def test_a_wrapped_classifier_prepares_names_and_explains_as_it_does_itself(
    wrap: Callable[[nn.Module], Any], picture: str
) -> None:
    model = classifier()
    expected = afmi.explain(model, picture)
    explanation = afmi.explain(wrap(model), picture)
    assert explanation.label == expected.label and explanation.label in LABELS
    assert explanation.probability == pytest.approx(expected.probability)
    assert explanation.image.shape == (3, 32, 32)
    assert (explanation.model, explanation.layer) == (expected.model, expected.layer)
    assert_close(explanation.map, expected.map)
    assert afmi.explain(wrap(model), picture, "name 3").label == "name 3"


@wrapped
@pytest.mark.parametrize("method", [AFMI, Gradient, RISE])
def test_a_wrapped_network_is_explained_as_it_is_itself(
    wrap: Callable[[nn.Module], Any], method: Any
) -> None:
    options = {"masks": 20} if method is RISE else {}
    network, x = build("resnet"), images(2)
    expected = method(network, **options).attribute(x, 1)
    assert_close(method(wrap(network), **options).attribute(x, 1), expected)
    inside = Classifier(wrap(network), mean=(0, 0, 0), std=(1, 1, 1))
    assert_close(method(inside, **options).attribute(x, 1), expected)


@wrapped
def test_all_that_asks_for_a_classifier_finds_it(wrap: Callable[[nn.Module], Any]) -> None:
    model = classifier()
    around = wrap(model)
    assert type(classifier_of(around)) is Classifier
    assert find_class(around, "name 4") == 4 and class_label(around, 4) == "name 4"
    x = images(1)
    assert_close(network_zero(around, x), model.mean[None])
    assert_close(classify(around, x), classify(model, x))
    assert layer_names(around) == layer_names(model)
    assert str(find_layer(runnable(around), x)) == str(find_layer(model, x))
    method = GradCAM(around, layer="conv1")
    assert_close(method.attribute(x, 1), GradCAM(model, layer="conv1").attribute(x, 1))


@wrapped
def test_targets_and_the_meaning_of_outputs_reach_through(
    wrap: Callable[[nn.Module], Any],
) -> None:
    model = classifier()
    model.output = "sigmoid"
    around, x = wrap(model), images(1)
    assert declaration_of(around) == model.declaration
    target = afmi.targets.Difference("name 1", "name 2")
    expected = AFMI(model, layer="conv1").attribution(x, target)
    attribution = AFMI(around, layer="conv1").attribution(x, target)
    assert_close(attribution.maps, expected.maps)
    explanation = afmi.explain(around, x, target)
    assert explanation.label == "name 1 rather than name 2"


@pytest.mark.parametrize("kind", ["AveragedModel", "ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_an_average_is_explained_with_the_averaged_weights(kind: str) -> None:
    model = classifier()
    averaged = WRAPS[kind](model)
    before = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    x = images(2)
    maps = AFMI(averaged).attribute(x, 1)
    assert_close(maps, AFMI(before).attribute(x, 1))
    assert not torch.allclose(maps, AFMI(model).attribute(x, 1))
    # And those of the moment.
    update = averaged.update_parameters if kind == "AveragedModel" else averaged.update
    update(model)
    assert not torch.allclose(maps, AFMI(averaged).attribute(x, 1))


def test_what_was_compiled_is_run_compiled_by_methods_that_look_at_outputs_only() -> None:
    runs = []

    def backend(graph: Any, _inputs: Any) -> Any:
        runs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # which compiles the same code only a few times
    RISE(torch.compile(classifier(), backend=backend), masks=8).attribute(images(1), 1)
    assert runs


def test_runs_that_overlap_leave_compiled_code_compiled() -> None:
    """As two threads do: the first to come is the first to go."""
    runs = []

    def backend(graph: Any, _inputs: Any) -> Any:
        runs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(classifier(), backend=backend)
    first, second = without_compilation(), without_compilation()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(images(1))
    assert not runs
    second.__exit__(None, None, None)
    compiled(images(1))
    assert runs


def test_methods_of_a_wrapper_and_of_what_it_holds_explain_one_model() -> None:
    model = classifier()
    around, x = nn.DataParallel(model), images(1)
    expected = Gradient(model).attribute(x, 1)[0, 0]
    assert_close(afmi.explain(around, x, 1, method=Gradient(around)).map, expected)
    assert_close(afmi.explain(around, x, 1, method=Gradient(model)).map, expected)
    assert list(chosen_methods(around, [Gradient(around), "grad-cam"])) == ["Gradient", "Grad-CAM"]
    assert SmoothGrad(around, base=Gradient(model), samples=2).attribute(x, 1).shape[0] == 1


def test_an_evaluation_of_a_wrapper_is_that_of_the_network(tmp_path: Path) -> None:
    model = classifier()
    data = [(image, index) for index, image in enumerate(images(2))]
    options: dict[str, Any] = {"methods": "gradient", "metrics": "completeness"}
    afmi.evaluate(model, data, tmp_path, **options)
    begun: list[object] = []
    # The same run: it resumes, and has nothing left to do.
    afmi.evaluate(
        AveragedModel(model), data, tmp_path, on_begin=lambda *piece: begun.append(piece), **options
    )
    assert not begun


def test_a_comparison_of_a_wrapper_shows_the_labels(picture: str) -> None:
    comparison = afmi.compare(compiled(classifier()), picture, "name 2", methods="gradient,random")
    assert {one.label for one in comparison.explanations} == {"name 2"}


def test_other_modules_with_such_attributes_are_no_wrappers() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = build("vgg")
            self._orig_mod = nn.Identity()
            self.labels = LABELS

    other = Other()
    assert within(other) is runnable(other) is other
    assert [*wrappings(other)] == [other]
    assert classifier_of(other) is None and class_label(other, 1) == "class 1"
