"""The reference runs once, runs again when the network changes, and is dropped with it."""

from __future__ import annotations

import gc
import resource
import weakref

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from afmi.gradients import modified as engine
from afmi.methods import AFMI, DeepLIFT, GradCAM
from afmi.network.classifier import Classifier
from afmi.network.trace import unchanged
from afmi.pictures.references import Black, Blurred, Image, Random


class Counted(nn.Module):
    """Count the forward passes of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.network(x)


def forwards(model: Counted, **options: object) -> int:
    before = model.forwards
    AFMI(model, layer="network.features.5", **options).attribute(images(seed=30))  # type: ignore[arg-type]
    return model.forwards - before


def test_the_reference_runs_once() -> None:
    model = Counted(build("vgg"))
    AFMI(model, layer="network.features.5").attribute(images(2))  # tries the network, once
    assert [forwards(model) for _ in range(3)] == [2, 1, 1]
    assert forwards(model, reference=Random(samples=3)) == 4
    assert forwards(model, reference=Random(samples=3)) == 1
    assert forwards(model, reference=Random(samples=3, seed=1)) == 4
    assert [forwards(model, reference=Blurred()) for _ in range(2)] == [2, 2]
    given = Image(images(1)[0])
    assert [forwards(model, reference=given) for _ in range(2)] == [2, 1]


def test_it_runs_again_for_other_weights_and_only_then() -> None:
    model = Counted(build("vgg"))
    forwards(model)
    model.network.features[0].weight.data[0] *= 2
    assert [forwards(model), forwards(model)] == [2, 1]  # no run is wasted on the old one
    model.network.classifier[6].register_forward_hook(lambda _m, _a, y: 2 * y)
    assert [forwards(model) - 4, forwards(model)] == [3, 1]  # that, and another trial


def test_a_promise_saves_the_checks() -> None:
    model = Counted(build("vgg"))
    forwards(model)
    with unchanged(model):
        with unchanged(Counted(build("resnet"))):
            assert forwards(model) == 1  # checked once in the block
        model.network.features[0].weight.data[0] *= 2  # against the promise
        assert forwards(model) == 1
    assert forwards(model) == 2
    with unchanged(model):
        model.network.features[0].weight.data[0] *= 2
        assert forwards(model) == 2  # what was kept before the block is not believed in it


def test_a_promise_is_no_excuse_for_decisions_on_values() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build("vgg")

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x if x.mean() > 0.2 else x * 0.5)

    model = Counted(Deciding())
    method = AFMI(model, layer="network.network.features.5")
    with unchanged(model):
        method.attribute(images(seed=30))
        before = model.forwards
        method.attribute(images(seed=30))
        assert model.forwards - before >= 2  # the reference's run is not believed


def test_the_layer_is_searched_for_once() -> None:
    model = Counted(build("vgg"))
    for method in (AFMI(model), GradCAM(model)):
        method.attribute(images())
        before = model.forwards
        method.attribute(images())
        assert model.forwards - before == 1


def test_memory_is_bounded() -> None:
    model = build("vgg")
    for seed in range(20):
        AFMI(model, reference=Random(seed=seed)).attribute(images(seed=30))
    assert len(engine._remembered._facts[model]) == 8


def test_everything_is_freed_with_the_model() -> None:
    model = build("vgg")
    for method in (AFMI, DeepLIFT, GradCAM):
        method(model).attribute(images())
    AFMI(model, layer=model.features[5]).attribute(images())
    _, (run,) = next(iter(engine._remembered._facts[model].values())).fact
    alive, run_alive = weakref.ref(model), weakref.ref(run)
    del model, run
    gc.collect()
    assert alive() is None
    assert run_alive() is None


def _living_tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is Tensor)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_over_a_thousand_explanations(count: int) -> None:
    model, x = build("vgg"), images(1, size=8)
    method = AFMI(model, reference=Black())
    for _ in range(20):
        method.attribute(x)
    tensors, memory = _living_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        method.attribute(x)
    assert _living_tensors() <= tensors
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 16 * 1024 * count / 1000  # kilobytes


def test_nothing_waits_for_the_garbage_collector() -> None:
    """No cycle holds a run's activations, which would fill an accelerator's memory."""
    model, x = build("resnet"), images(2)
    AFMI(model).attribute(x)
    gc.collect()
    gc.disable()
    try:
        tensors = sum(1 for thing in gc.get_objects() if type(thing) is Tensor)
        for _ in range(5):
            AFMI(model).attribute(x)
        after = sum(1 for thing in gc.get_objects() if type(thing) is Tensor)
    finally:
        gc.enable()
    assert after <= tensors


def test_the_inputs_are_another_layer_than_the_one_that_is_found() -> None:
    model, x = Classifier(build("vgg"), output="logits"), images(2)
    AFMI(model).attribute(x, 1)
    after = DeepLIFT(model).attribution(x, 1)
    expected = DeepLIFT(Classifier(build("vgg"), output="logits")).attribution(x, 1)
    assert after.layer is None
    assert torch.equal(after.maps, expected.maps)
