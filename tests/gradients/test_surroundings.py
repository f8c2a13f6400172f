"""What networks do besides operations: backward code, modes, and tensors that they keep."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.utils.checkpoint
import torchvision
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.modules.module import register_module_full_backward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from afmi.errors import AfmiError, CompletenessWarning, ModelError, OperationError
from afmi.gradients.tape import TapeMismatchError
from afmi.methods import (
    AFMI,
    LRP,
    DeepLIFT,
    GradCAM,
    Gradient,
    GuidedBackprop,
    IntegratedGradients,
    Method,
    SmoothGrad,
)

Maker = Callable[[nn.Module], Method]

METHODS: dict[str, Maker] = {
    "A-FMI": lambda model: AFMI(model, layer="maps"),
    "A-FMI below": lambda model: AFMI(model, layer="trunk"),
    "Grad-CAM": lambda model: GradCAM(model, layer="maps"),
    "Gradient": Gradient,
    "IG": lambda model: IntegratedGradients(model, steps=64),
    "SmoothGrad": lambda model: SmoothGrad(model, samples=3),
    "DeepLIFT": DeepLIFT,
    "LRP": LRP,
    "Guided Backprop": GuidedBackprop,
}
WITH_RULES = ["A-FMI", "A-FMI below", "DeepLIFT", "LRP", "Guided Backprop"]


class Network(nn.Module):
    """Two stages and a head; `subclass` of it does the same in another way."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
            )
            self.maps = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.Tanh())
            self.last = nn.Linear(8, 4)
            norm = self.trunk[1]
            assert isinstance(norm, nn.BatchNorm2d)
            norm.running_mean = torch.full((6,), 0.1)
            norm.running_var = torch.full((6,), 0.6)
        self.eval()

    def head(self, maps: Tensor) -> Tensor:
        return self.last(torch.sigmoid(maps).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(self.trunk(x)))


Forward = Callable[[Any, Tensor], Tensor]


def subclass(forward: Forward) -> Network:
    """Return the network with another ``forward``."""
    return type("Other", (Network,), {"forward": forward})()


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return {name: make(Network()).attribute(IMAGES, 2) for name, make in METHODS.items()}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def _same(network: nn.Module, method: str, expected: dict[str, Tensor]) -> None:
    maps = METHODS[method](network).attribute(IMAGES, 2)
    torch.testing.assert_close(maps, expected[method], rtol=1e-5, atol=1e-8)


# Network code that would run in the backward pass.


def _checkpointed(reentrant: bool) -> Forward:
    def forward(self: Network, x: Tensor) -> Tensor:
        x = checkpoint(self.trunk, x, use_reentrant=reentrant)
        return self.head(checkpoint(self.maps, x, use_reentrant=reentrant))

    return forward


def _checkpointed_whole(reentrant: bool) -> Forward:
    def forward(self: Network, x: Tensor) -> Tensor:
        return checkpoint(super(type(self), self).forward, x, use_reentrant=reentrant)

    return forward


def _hooked(self: Network, x: Tensor) -> Tensor:
    maps = self.maps(self.trunk(x))
    if maps.requires_grad:
        maps.register_hook(lambda gradient: gradient * 0.1)
        maps.retain_grad()
        maps.grad_fn.register_hook(lambda *_: None)  # type: ignore[union-attr]
    return self.head(maps)


def _saving_elsewhere(self: Network, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return self.head(self.maps(self.trunk(x)))


BACKWARD_CODE: dict[str, Forward] = {
    "checkpoints": _checkpointed(reentrant=False),
    "reentrant checkpoints": _checkpointed(reentrant=True),
    "one checkpoint": _checkpointed_whole(reentrant=False),
    "one reentrant checkpoint": _checkpointed_whole(reentrant=True),
    "tensor hooks": _hooked,
    "saved tensors' hooks": _saving_elsewhere,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BACKWARD_CODE)
def test_code_for_the_backward_pass_changes_nothing(
    name: str, training: bool, method: str, expected: dict[str, Tensor]
) -> None:
    network = subclass(BACKWARD_CODE[name]).train(training)
    _same(network, method, expected)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("method", ["Gradient", "IG", "SmoothGrad", "DeepLIFT", "LRP"])
def test_a_dense_network_that_saves_memory(method: str) -> None:
    def dense(memory_efficient: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = torchvision.models.DenseNet(
                4, (1, 1, 1, 1), 8, 2, num_classes=4, memory_efficient=memory_efficient
            )
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(cast(Tensor, module.running_var), 0.2, 0.9)
        return network.eval()

    torch.manual_seed(0)
    plain = dense(memory_efficient=False)
    saving = dense(memory_efficient=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    maps = [METHODS[method](network).attribute(images, 1) for network in (plain, saving)]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-5, atol=1e-9)


def test_checkpoints_of_other_threads_go_on() -> None:
    """While one thread explains, another trains the same network by checkpoints."""
    runs: list[str] = []

    def part(x: Tensor) -> Tensor:
        runs.append(threading.current_thread().name)
        return x.sin()

    def train(reentrant: bool) -> None:
        x = torch.ones(2, requires_grad=True)
        checkpoint(part, x, use_reentrant=reentrant).sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, torch.ones(2).cos())

    class Training(Network):
        def forward(self, x: Tensor) -> Tensor:
            for reentrant in (True, False):
                thread = threading.Thread(target=train, args=(reentrant,), name="other")
                thread.start()
                thread.join()
                checkpoint(part, x, use_reentrant=reentrant)
            return super().forward(x)

    names_of = vars(torch.utils.checkpoint.CheckpointFunction), vars(torch.utils.checkpoint)
    before = [dict(names) for names in names_of]
    method = Gradient(Training())
    method.attribute(IMAGES, 2)  # tries the network, once
    runs.clear()
    method.attribute(IMAGES, 2)
    assert runs.count("other") == 4  # forward and again backward, of either kind
    assert len(runs) == 6
    assert [dict(names) for names in names_of] == before


def _scaled(_module: nn.Module, gradients: Any, *_: Any) -> Any:
    return tuple(None if g is None else g * 0.1 for g in gradients)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize(
    "register",
    ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"],
)
def test_backward_hooks_of_modules_are_left_out(
    register: str, method: str, expected: dict[str, Tensor]
) -> None:
    network = Network()
    for module in network.modules():
        getattr(module, register)(_scaled)
    _same(network, method, expected)


def test_global_backward_hooks_are_left_out(method: str, expected: dict[str, Tensor]) -> None:
    handle = register_module_full_backward_hook(_scaled)
    try:
        _same(Network(), method, expected)
    finally:
        handle.remove()


class Recompute(torch.autograd.Function):
    """Gradient checkpointing as some libraries write it themselves."""

    @staticmethod
    def forward(ctx: Any, part: nn.Module, x: Tensor) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(x)
        return part(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(ctx.part(x), gradient)
        return None, x.grad


class Refusing(Recompute):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError("not compatible with .grad()")


@pytest.mark.parametrize("function", [Recompute, Refusing])
def test_other_checkpoints_raise_and_are_named(function: Any, method: str) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        return self.head(function.apply(self.maps, function.apply(self.trunk, x)))

    network = subclass(forward)
    with pytest.raises(AfmiError, match="checkpointing"):
        METHODS[method](network).attribute(IMAGES, 2)
    assert all(parameter.grad is None for parameter in network.parameters())


# Modes that the network enters itself.


def _enabled_around(self: Network, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(True):
        maps = self.maps(self.trunk(x))
    return self.head(maps)


def _enabled_within(self: Network, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.enable_grad():
        x = self.trunk(x)
    with torch.enable_grad():
        with torch.no_grad():
            self.last(torch.ones(8))
        maps = self.maps(x)
        with torch.no_grad(), torch.enable_grad():
            return self.head(maps)


@torch.enable_grad()
def _decorated(self: Network, x: Tensor) -> Tensor:
    return self.head(self.maps(self.trunk(x)))


def _in(mode: Callable[[], AbstractContextManager[Any]], *, around_head: bool = False) -> Forward:
    def forward(self: Network, x: Tensor) -> Tensor:
        if around_head:
            x = self.trunk(x)
            with mode():
                return self.head(self.maps(x))
        with mode():
            maps = self.maps(self.trunk(x))
        return self.head(maps)

    return forward


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "functions": Functions,
    "dispatch": Dispatch,
    "device": lambda: torch.device("cpu"),
    "anomalies": torch.autograd.detect_anomaly,
}

OWN_MODES: dict[str, Forward] = {
    "gradients enabled around the layer": _enabled_around,
    "gradients enabled within": _enabled_within,
    "decorated": _decorated,
    **{f"{name} around the layer": _in(mode) for name, mode in MODES.items()},
    **{f"{name} around the head": _in(mode, around_head=True) for name, mode in MODES.items()},
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", OWN_MODES)
def test_modes_of_the_network_change_nothing(
    name: str, method: str, expected: dict[str, Tensor]
) -> None:
    _same(subclass(OWN_MODES[name]), method, expected)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not _len_torch_function_stack()


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", [*MODES, "inference", "deterministic"])
def test_modes_of_the_caller_change_nothing(
    name: str, method: str, expected: dict[str, Tensor]
) -> None:
    around = {**MODES, "inference": torch.inference_mode, "deterministic": _deterministic}[name]
    with around():
        _same(Network(), method, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_frozen_backbone_is_explained_from_its_last_stage_on(
    mode: Callable[[], AbstractContextManager[Any]], method: str, expected: dict[str, Tensor]
) -> None:
    """Contexts from before the layer end with it; from the images on, no gradient passes them."""
    network = subclass(_in(mode))
    if method in ("A-FMI", "A-FMI below", "Grad-CAM"):
        _same(network, method, expected)
        return
    with pytest.raises(AfmiError, match=r"do not depend on the images.* under no_grad"):
        METHODS[method](network).attribute(IMAGES, 2)


def test_a_transform_around_the_layer_raises_and_is_named() -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        return torch.vmap(lambda image: Network.forward(self, image[None])[0])(x)

    for method in ("A-FMI", "Grad-CAM"):
        with pytest.raises(ModelError, match="vmap"):
            METHODS[method](subclass(forward)).attribute(IMAGES, 2)
    with pytest.raises(OperationError, match="vmap"):
        DeepLIFT(subclass(forward)).attribute(IMAGES, 2)


@pytest.mark.parametrize("method", ["A-FMI", "DeepLIFT", "Gradient"])
def test_autocast_within_the_network(method: str) -> None:
    def attend(x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        weights = (tokens.mT @ tokens).softmax(-1)
        return (weights @ tokens.mT).mT.unflatten(2, x.shape[2:])

    def plain(self: Network, x: Tensor) -> Tensor:
        return self.head(attend(self.maps(self.trunk(x))))

    def half(self: Network, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = attend(self.maps(self.trunk(x)))
        return self.head(x.float())

    exact, rough = (METHODS[method](subclass(f)).attribute(IMAGES, 2) for f in (plain, half))
    assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.99


# Tensors that the network keeps, or makes in a way of its own.


def test_kept_tensors_are_left_without_a_graph(method: str) -> None:
    captured: list[Tensor] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.trunk(x)
        self.tokens = [x, {"tokens": x.flatten(2).mT, "first": x[:, :1]}]
        maps = self.maps(x)
        captured.extend([maps, maps.view(-1), maps[0].view(-1)])
        network.weak = weakref.ref(captured[1])
        for tensor in captured:
            tensor.note = "the network's own"  # type: ignore[attr-defined]
        self.logits = self.head(maps)
        return self.logits

    network: Any = subclass(forward)
    hooked: list[Tensor] = []
    for module in network.modules():
        module.register_forward_hook(lambda _module, _args, output: hooked.append(output))
    METHODS[method](network).attribute(IMAGES, 2)
    kept = [network.tokens[0], *network.tokens[1].values(), network.logits, *captured]
    for tensor in (*kept, *hooked):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert not tensor._backward_hooks
    notes = {"note": "the network's own"}
    assert all(vars(tensor) in ({}, notes) for tensor in kept)
    assert all(vars(tensor) == notes for tensor in captured)
    assert network.weak() is captured[1]
    del network.weak
    captured.clear()
    hooked.clear()
    for module in network.modules():
        module._forward_hooks.clear()
    assert torch.equal(copy.deepcopy(network).logits, network.logits)
    torch.save({"kept": network.tokens, **network.state_dict()}, io.BytesIO())


@pytest.mark.parametrize("method", ["A-FMI below", "DeepLIFT", "Gradient"])
def test_a_run_that_fails_leaves_kept_tensors_without_a_graph(method: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.kept = self.maps(self.trunk(x))
        if self.raises:
            raise ValueError("after the layer")
        return self.head(self.kept)

    network: Any = subclass(forward)
    network.raises = True
    with pytest.raises(ValueError, match="after the layer"):
        METHODS[method](network).attribute(IMAGES, 2)
    assert not network.kept.requires_grad


@pytest.mark.parametrize("method", ["A-FMI", "DeepLIFT", "Gradient"])
def test_nothing_holds_what_a_run_made(method: str) -> None:
    made: list[weakref.ref[Tensor]] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        made.append(weakref.ref(maps))
        return self.head(maps)

    METHODS[method](subclass(forward)).attribute(IMAGES, 2)
    gc.collect()
    assert made
    assert all(reference() is None for reference in made)


class Copying(Tensor):
    """A tensor whose operations copy its operands' attributes, as MONAI's MetaTensor does."""

    copied: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Copying):
            for operand in args:
                if isinstance(operand, Copying):
                    Copying.copied.extend(vars(operand))
                    for name, value in copy.deepcopy(vars(operand)).items():
                        setattr(result, name, value)
        return result


@pytest.mark.parametrize(
    "method", ["A-FMI", "A-FMI below", "Grad-CAM", "Gradient", "LRP", "Guided Backprop"]
)
def test_subclasses_of_tensors(method: str, expected: dict[str, Tensor]) -> None:
    """Plain tensors go into the network, and those that it makes itself carry nothing of ours."""

    def forward(self: Network, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        return self.head(self.maps(self.trunk(x).as_subclass(Copying))).as_subclass(Tensor)

    Copying.copied.clear()
    images = IMAGES.as_subclass(Copying)
    images.patient = "unknown"  # type: ignore[attr-defined]
    maps = METHODS[method](subclass(forward)).attribute(images, 2)
    assert type(maps) is Tensor
    torch.testing.assert_close(maps, expected[method], rtol=1e-5, atol=1e-8)
    assert set(Copying.copied) <= {"patient"}


def test_weights_of_a_subclass(method: str, expected: dict[str, Tensor]) -> None:
    network = Network()
    with torch.no_grad():
        network.last.weight = nn.Parameter(network.last.weight.detach().as_subclass(Copying))
    _same(network, method, expected)


def test_constants_with_a_graph_of_their_own(method: str, expected: dict[str, Tensor]) -> None:
    """Such as class vectors that a text encoder made, and nobody detached."""

    def forward(self: Any, x: Tensor) -> Tensor:
        maps = torch.sigmoid(self.maps(self.trunk(x)))
        return nn.functional.linear(maps.mean((2, 3)), self.words, self.last.bias)

    network: Any = subclass(forward)
    network.words = network.last.weight * 1.0
    _same(network, method, expected)
    assert network.words.grad_fn is not None
    network.words.sum().backward()  # whose graph is as it was


@pytest.mark.parametrize(
    "rectify", [lambda x: x[:, :4].relu_(), lambda x: nn.functional.relu(x[:, :4], inplace=True)]
)
def test_rectified_parts_of_a_tensor(method: str, rectify: Callable[[Tensor], Any]) -> None:
    def in_place(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x)) * 2
        rectify(maps)
        return self.head(maps)

    def anew(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x)) * 2
        return self.head(torch.cat([maps[:, :4].relu(), maps[:, 4:]], 1))

    maps, expected = (METHODS[method](subclass(f)).attribute(IMAGES, 2) for f in (in_place, anew))
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["Gradient", "Grad-CAM", "Guided Backprop"])
def test_activations_overwritten_that_a_derivative_needs(method: str) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        return self.head(self.maps(self.trunk(x)).sigmoid().sigmoid_().mul_(2))

    with pytest.raises(ModelError, match="overwrites in place"):
        METHODS[method](subclass(forward)).attribute(IMAGES, 2)


def test_parameters_answer_as_they_are(method: str, expected: dict[str, Tensor]) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        assert self.last.weight.requires_grad
        assert self.last.weight.is_leaf
        assert not maps.requires_grad
        assert maps.is_leaf
        return self.head(maps)

    _same(subclass(forward), method, expected)


def test_a_gradient_that_the_network_takes_itself(method: str, expected: dict[str, Tensor]) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        with torch.enable_grad():
            copied = maps.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(copied.square().sum(), copied)
        assert torch.equal(slope, 2 * maps)
        return self.head(maps)

    if method in WITH_RULES:
        with pytest.raises(OperationError, match=r"torch\.autograd\.grad"):
            METHODS[method](subclass(forward)).attribute(IMAGES, 2)
    else:
        _same(subclass(forward), method, expected)


# Values that leave the tensors, or are written where autograd does not follow.


@pytest.mark.parametrize("method", WITH_RULES)
@pytest.mark.parametrize(
    "write",
    [
        lambda maps: maps.data.mul_(2),
        lambda maps: maps.detach()[:, :2].zero_(),
        lambda maps: maps.detach().view(-1).__setitem__(0, 1.0),
        torch.no_grad()(lambda maps: maps.mul_(2)),
    ],
    ids=["data", "detached", "detached view", "no_grad"],
)
def test_writes_beside_autograd_raise(method: str, write: Callable[[Tensor], Any]) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        write(maps)
        return self.head(maps)

    with pytest.raises(OperationError, match="where autograd does not follow"):
        METHODS[method](subclass(forward)).attribute(IMAGES, 2)


READS: dict[str, Callable[[Tensor], float]] = {
    "item": lambda maps: maps.sum().item(),
    "float": lambda maps: float(maps.sum()),
    "tolist": lambda maps: max(maps.flatten().tolist()),
    "numpy": lambda maps: float(maps.numpy().max()),
    "int": lambda maps: 1.0 + int(maps.abs().sum()),
}


@pytest.mark.parametrize("method", ["A-FMI", "DeepLIFT"])
@pytest.mark.parametrize("read", READS)
def test_numbers_read_from_tensors_show_in_the_sum(method: str, read: str) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        # Each image by itself: one must not depend on the others of a batch.
        return self.head(torch.stack([each * READS[read](each) for each in maps]))

    with pytest.warns(CompletenessWarning):
        METHODS[method](subclass(forward)).attribute(IMAGES[:1], 2)


@pytest.mark.parametrize("read", READS)
def test_numbers_may_be_noted(read: str, method: str, expected: dict[str, Tensor]) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        notes.append(READS[read](maps.detach() if read == "numpy" else maps))
        return self.head(maps)

    notes: list[float] = []
    _same(subclass(forward), method, expected)
    assert notes


@pytest.mark.parametrize("method", ["A-FMI", "DeepLIFT"])
def test_decisions_on_values_raise(method: str) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        return self.head(maps if torch.allclose(maps[..., 0, 0], maps[..., 4, 4]) else 2 * maps)

    with pytest.raises(TapeMismatchError, match="must not depend on the values"):
        METHODS[method](subclass(forward)).attribute(IMAGES, 2)


@pytest.mark.parametrize("method", WITH_RULES)
def test_values_that_are_the_same_for_all_images_may_be_read(
    method: str, expected: dict[str, Tensor]
) -> None:
    def forward(self: Network, x: Tensor) -> Tensor:
        maps = self.maps(self.trunk(x))
        assert torch.isfinite(maps).all()
        return self.head(maps * float(torch.ones_like(maps).mean()))

    _same(subclass(forward), method, expected)
