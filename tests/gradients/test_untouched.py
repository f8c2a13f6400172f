"""Nothing on the model or its inputs changes, whatever happens, and in any calling context."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import TINY, build, images
from settings import crossed, method
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from afmi.errors import AfmiError, LayerError
from afmi.methods import AFMI, CATALOGUE, Gradient
from afmi.network.guards import evaluation_mode
from afmi.pictures.references import Random

pytestmark = pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning", "ignore::afmi.errors.CompletenessWarning"
)

_GLOBAL_HOOKS = [name for name in vars(global_hooks) if name.startswith("_global_")]


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {k: list(v) for k, v in vars(module).items() if "hook" in k and hasattr(v, "__len__")}


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def state_of(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Return all that a method could have changed, in comparable form."""
    return {
        "weights": {k: _bits(v) for k, v in model.state_dict().items()},
        "parameters": [
            (id(p), p.requires_grad, p._version, None if p.grad is None else _bits(p.grad))
            for p in model.parameters()
        ],
        "modes": [m.training for m in model.modules()],
        "hooks": [_hooks(m) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "tensor attributes": [sorted(vars(t)) for t in (*model.parameters(), *model.buffers())],
        "global hooks": {
            name: list(getattr(global_hooks, name) or ())
            for name in _GLOBAL_HOOKS
            if hasattr(getattr(global_hooks, name), "__len__")
        },
        "random": _bits(torch.get_rng_state()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "inputs": [
            (_bits(x), x.requires_grad, x.grad is None, 0 if x.is_inference() else x._version)
            for x in inputs
        ],
    }


class BoomError(Exception):
    """What the model raises."""


@pytest.mark.parametrize(
    ("name", "state"), crossed(CATALOGUE, [*((n, False) for n in TINY), ("vgg", True)]), ids=str
)
def test_model_that_raises_in_the_middle_is_left_as_it_was(
    name: str, state: tuple[str, bool]
) -> None:
    network, training = state
    model = build(network).train(training)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    next(model.parameters()).requires_grad_(False)
    x = images(2).requires_grad_(True)
    before = state_of(model, x)
    for at in [m for m in model.modules() if not list(m.children())]:

        def fail(*_args: object, **_kwargs: object) -> None:
            raise BoomError

        at.forward = fail  # type: ignore[method-assign]
        try:
            with pytest.raises((BoomError, AfmiError)):
                method(name, model, layer=_layer(network)).attribute(x, target=1)
        finally:
            del at.forward
        assert state_of(model, x) == before
    try:
        method(name, model, layer=_layer(network)).attribute(x, target=1)
    except AfmiError:
        assert name not in ("AFMI", "GradCAM", "Gradient", "Random")
    assert state_of(model, x) == before


def _layer(network: str) -> str:
    return {"vgg": "features.5", "resnet": "layer1", "functional": "conv2"}[network]


def test_training_mode_gives_the_maps_of_evaluation_mode() -> None:
    model, x = build("vgg"), images()
    expected = AFMI(model).attribute(x)
    assert torch.equal(AFMI(model.train()).attribute(x), expected)
    assert all(m.training for m in model.modules())


def test_mixed_modes_are_restored_one_by_one() -> None:
    model = build("vgg").train()
    model.features[1].eval()
    AFMI(model).attribute(images())
    assert not model.features[1].training
    assert model.features[0].training


def test_two_models_that_share_modules_are_held_together() -> None:
    network = build("vgg").train()
    outer = nn.Sequential(network)
    with evaluation_mode(outer):
        with evaluation_mode(network):
            pass
        assert not network.training
    assert network.training
    first, second = evaluation_mode(outer), evaluation_mode(network)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not network.training
    second.__exit__(None, None, None)
    assert all(m.training for m in outer.modules())


@pytest.mark.parametrize("kind", [AFMI, Gradient])
def test_two_threads_with_one_model(kind: Callable[..., Any]) -> None:
    model = build("resnet").train()
    jobs = [(images(2, seed=i), i % 5) for i in range(8)]
    one_by_one = [kind(model).attribute(x, c) for x, c in jobs]
    maps_by_thread: dict[int, Tensor] = {}

    def work(numbers: range) -> None:
        torch.set_num_threads(1)
        for _ in range(3):
            for i in numbers:
                maps_by_thread[i] = kind(model).attribute(*jobs[i])

    threads = [threading.Thread(target=work, args=(range(k, 8, 2),)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(maps_by_thread) == 8
    for i, expected in enumerate(one_by_one):
        assert torch.equal(maps_by_thread[i], expected)
    assert all(m.training for m in model.modules())
    assert not global_hooks._global_forward_hooks


@pytest.fixture(params=["AFMI", "GradCAM", "Gradient"])
def maker(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return CATALOGUE[request.param]


def test_calling_contexts_give_the_same_map(maker: Callable[..., Any]) -> None:
    model, x = build("resnet"), images()
    expected = maker(model).attribute(x)
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(maker(model).attribute(x), expected)
    with torch.inference_mode():
        inside = maker(model).attribute(x)
        of_inference_tensor = maker(model).attribute(x.clone())
    assert torch.equal(inside, expected)
    assert torch.equal(of_inference_tensor, expected)
    assert torch.equal(maker(model).attribute(x.clone().requires_grad_(True)), expected)
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(maker(frozen).attribute(x), expected)
    with torch.inference_mode():
        made_there = build("resnet")
    torch.testing.assert_close(maker(made_there).attribute(x), expected)


def test_memory_layouts_give_the_same_map(maker: Callable[..., Any]) -> None:
    model, x = build("vgg"), images(size=24)
    expected = maker(model).attribute(x)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    torch.testing.assert_close(maker(model).attribute(strided), expected)
    every_other = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(maker(model).attribute(every_other), expected)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    maps = maker(last).attribute(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", TINY)
def test_autocast(maker: Callable[..., Any], network: str) -> None:
    model, x = build(network), images()
    expected = maker(model).attribute(x, target=1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = maker(model).attribute(x, target=1)
    assert maps.dtype == x.dtype
    together = torch.stack([maps.flatten(), expected.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.9


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(torch.relu(self.conv(x))).mean((2, 3)))


def test_layer_that_runs_twice_raises() -> None:
    with pytest.raises(LayerError, match="more than once"):
        AFMI(Twice(), layer="conv", reference=Random()).attribute(images())
