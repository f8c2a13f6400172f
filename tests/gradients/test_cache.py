"""The reference runs once, runs again when the network changes, and is dropped with it."""

from __future__ import annotations

import gc
import resource
import weakref
from collections.abc import Callable

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from afmi.gradients import modified as engine
from afmi.methods import AFMI, DeepLIFT
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
    AFMI(model, layer="network.features.5", **options).attribute(images())  # type: ignore[arg-type]
    return model.forwards - before


def test_the_reference_runs_once() -> None:
    model = Counted(build("vgg"))
    assert [forwards(model) for _ in range(3)] == [2, 1, 1]
    assert forwards(model, reference=Random(samples=3)) == 4
    assert forwards(model, reference=Random(samples=3)) == 1
    assert forwards(model, reference=Random(samples=3, seed=1)) == 4
    assert [forwards(model, reference=Blurred()) for _ in range(2)] == [2, 2]
    given = Image(images(1)[0])
    assert [forwards(model, reference=given) for _ in range(2)] == [2, 1]


def step(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1).step()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "optimizer": step,
    "load_state_dict": lambda m: m.load_state_dict(build("vgg", seed=1).state_dict()),
    "data": lambda m: [p.data.mul_(1.5) for p in m.parameters()],
    "assigned": lambda m: [setattr(p, "data", p.data * 1.5) for p in m.parameters()],
    "buffer": lambda m: m.features[1].running_mean.add_(1),
    "module": lambda m: setattr(m, "avgpool", nn.AdaptiveMaxPool2d(2)),
    "dtype": lambda m: m.double().float(),
}
REPLACED = ("assigned", "module", "dtype")  # other tensors, which may be used in another way


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_runs_the_reference_again(change: str) -> None:
    model = Counted(build("vgg"))
    assert forwards(model) == 2
    CHANGES[change](model.network)
    method = AFMI(model, layer="network.features.5", averaged=False)
    maps = method.attribute(images(), target=0)
    assert model.forwards == 4
    fresh = Counted(build("vgg", seed=2))
    CHANGES[change](fresh.network)
    fresh.network.load_state_dict(model.network.state_dict())
    expected = AFMI(fresh, layer="network.features.5", averaged=False).attribute(images(), target=0)
    assert torch.equal(maps, expected)


def _unseen(model: nn.Module) -> None:
    model.features[1].running_mean.data.add_(1)  # type: ignore[index]


@pytest.mark.parametrize("change", [*CHANGES, "unseen"])
def test_folded_batch_norms_follow_the_network(change: str) -> None:
    model = Counted(build("vgg"))
    DeepLIFT(model).attribute(images())
    assert model.forwards == 3  # the images, the reference, and once more to look for the norms
    (CHANGES | {"unseen": _unseen})[change](model.network)
    attribution = DeepLIFT(model).attribution(images(), target=0)
    assert model.forwards - 3 == (3 if change in REPLACED else 2)
    torch.testing.assert_close(attribution.logits, model(images()))
    fresh = Counted(build("vgg", seed=2))
    CHANGES.get(change, id)(fresh.network)
    fresh.network.load_state_dict(model.network.state_dict())
    assert torch.equal(attribution.maps, DeepLIFT(fresh).attribute(images(), target=0))


def test_cache_is_bounded() -> None:
    model = build("vgg")
    for seed in range(3 * engine._CACHED_RUNS):
        AFMI(model, reference=Random(seed=seed)).attribute(images())
    assert len(engine._cache._runs[model]) == engine._CACHED_RUNS


def test_cache_is_freed_with_the_model() -> None:
    model = build("vgg")
    AFMI(model).attribute(images())
    DeepLIFT(model).attribute(images())
    (run,) = next(iter(engine._cache._runs[model].values()))
    alive, run_alive = weakref.ref(model), weakref.ref(run)
    del model, run
    gc.collect()
    assert alive() is None
    assert run_alive() is None


def _living_tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is Tensor)


def test_memory_does_not_grow_over_a_thousand_explanations() -> None:
    model, x = build("vgg"), images(1, size=8)
    method = AFMI(model, reference=Black())
    for _ in range(20):
        method.attribute(x)
    tensors, memory = _living_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        method.attribute(x)
    assert _living_tensors() <= tensors
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 16 * 1024  # kilobytes


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
