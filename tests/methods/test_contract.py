"""What every method of the catalogue keeps; a new method is tested by being there."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import TINY, build, images
from settings import method
from torch import Tensor, nn

from afmi.errors import (
    AfmiError,
    LayerError,
    ModelError,
    OperationError,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.methods import CATALOGUE, Method

pytestmark = pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning", "ignore::afmi.errors.CompletenessWarning"
)

LAYERS = {"vgg": "features.5", "resnet": "layer1", "functional": "conv2"}
EVERY = [(name, network) for name in CATALOGUE for network in TINY]


def attribute(of: Method, inputs: Tensor, target: Any = None) -> Tensor:
    """Return maps; skip where the method says that this network is none for it."""
    try:
        return of.attribute(inputs, target)
    except (LayerError, ModelError, OperationError) as error:
        pytest.skip(f"refuses this network: {error}")


def made(name: str, network: str, dtype: torch.dtype = torch.float32, **options: Any) -> Method:
    return method(name, build(network, dtype), layer=LAYERS[network], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "network"), EVERY)
def test_maps(name: str, network: str, dtype: torch.dtype) -> None:
    x = images().to(dtype)[:, :, :, :16]
    maps = attribute(made(name, network, dtype), x)
    assert maps.shape == (3, 1, 20, 16)
    assert maps.dtype == dtype
    assert not maps.requires_grad
    assert not maps.is_inference()
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_batch_equals_singles(name: str, network: str) -> None:
    x, of = images().double(), made(name, network, torch.float64)
    targets = torch.tensor([0, 3, 1])
    maps = attribute(of, x, targets)
    singles = [of.attribute(x[i : i + 1], int(targets[i])) for i in range(3)]
    torch.testing.assert_close(maps, torch.cat(singles), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_no_target_means_the_predicted_class(name: str, network: str) -> None:
    x, of = images(), made(name, network)
    with torch.no_grad():
        predicted = of.model(x).argmax(1)
    maps = attribute(of, x)
    assert torch.equal(maps, of.attribute(x, predicted))
    assert torch.equal(of.explain(x).target, predicted)


@pytest.mark.parametrize("name", CATALOGUE)
def test_same_seed_gives_the_same_bits(name: str) -> None:
    x = images()
    first = attribute(made(name, "resnet"), x, 1)
    torch.rand(7)
    assert torch.equal(attribute(made(name, "resnet"), x, 1), first)
    blank = bool((first == first[:, :, :1, :1]).all())  # so few steps may show nothing
    if "seed" in CATALOGUE[name].__dataclass_fields__ and not blank:
        assert not torch.equal(attribute(made(name, "resnet", seed=1), x, 1), first)


@pytest.mark.parametrize("name", CATALOGUE)
def test_ways_to_give_the_target(name: str) -> None:
    x, of = images(2), made(name, "resnet")
    expected = attribute(of, x, 2)
    for target in (torch.tensor(2), torch.tensor([2]), [2, 2], np.int64(2), torch.tensor([2, 2])):
        assert torch.equal(of.attribute(x, target), expected)


@pytest.mark.parametrize("name", CATALOGUE)
def test_several_classes_equal_each_class(name: str) -> None:
    x, of = images(2).double(), made(name, "resnet", torch.float64)
    expected = torch.stack([attribute(of, x, c) for c in (0, 4, 2)])
    found = of.attribute_classes(x, [0, 4, 2])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    per_image = torch.tensor([[0, 4], [2, 0]])
    torch.testing.assert_close(
        of.attribute_classes(x, per_image)[1, 0], expected[2, 0], rtol=1e-6, atol=1e-9
    )


BAD_TARGETS: list[tuple[Any, str]] = [
    (5, "0 to 4, got 5"),
    (-1, "got -1"),
    ([0, 7], "got 7"),
    ([0, 1, 2], r"\(3,\)"),
    (1.5, "float"),
    (torch.tensor([0.0, 1.0]), "float"),
    (True, "True"),
    ("cat", "cat"),
    (torch.zeros(2, 2, dtype=torch.int64), r"\(2, 2\)"),
    ([], r"\(0,\)|float"),
]


@pytest.mark.parametrize(("target", "came"), BAD_TARGETS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_targets(name: str, target: Any, came: str) -> None:
    of = made(name, "resnet")
    with pytest.raises(TargetError, match=came):
        of.attribute(images(2), target)


BAD_INPUTS: list[tuple[Any, type[AfmiError], str]] = [
    (images()[0], ShapeError, r"\(3, 20, 20\)"),
    (images().mul(255).byte(), ShapeError, "uint8"),
    (images()[:0], ShapeError, r"\(0, 3, 20, 20\)"),
    (images().numpy(), ShapeError, "ndarray"),
    ("dog.jpg", ShapeError, "str"),
    (images() / 0, UsageError, "NaN or infinity"),
]


@pytest.mark.parametrize(("inputs", "error", "came"), BAD_INPUTS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_inputs(name: str, inputs: Any, error: type[AfmiError], came: str) -> None:
    with pytest.raises(error, match=came):
        made(name, "resnet").attribute(inputs)


@pytest.mark.parametrize("name", CATALOGUE)
def test_model_that_is_no_module(name: str) -> None:
    with pytest.raises(ModelError, match="function"):
        CATALOGUE[name](lambda x: x).attribute(images())  # type: ignore[arg-type]


class OneClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))


@pytest.mark.parametrize("name", CATALOGUE)
def test_model_without_class_logits(name: str) -> None:
    with pytest.raises(AfmiError):
        method(name, OneClass()).attribute(images())


@pytest.mark.parametrize("name", CATALOGUE)
def test_description(name: str) -> None:
    kind = CATALOGUE[name]
    for text in (kind.name, kind.scores, kind.cost, kind.paper, kind.__doc__):
        assert text
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    of = made(name, "resnet")
    assert of.work(images(1)).forwards >= 1
    assert "TinyResNet" not in repr(of)
    with pytest.raises(AttributeError):
        of.model = None  # type: ignore[misc]


@pytest.mark.parametrize("name", CATALOGUE)
def test_copies_explain_alike(name: str) -> None:
    of, x = made(name, "resnet"), images(1)
    assert torch.equal(attribute(copy.deepcopy(of), x, 0), attribute(of, x, 0))


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.network(x)


@pytest.mark.parametrize("name", ["Random", "Gradient", "GradCAM", "AFMI"])
def test_passes_are_as_many_as_the_cost_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counted(build("resnet"))
    of = method(name, model, layer="network.layer1")
    of.attribute(images())  # a cached reference is run here
    forwards, backwards = model.forwards, 0
    gradient = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal backwards
        backwards += 1
        return gradient(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    of.attribute(images())
    assert model.forwards - forwards == 1
    assert backwards == (0 if name == "Random" else 1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_goes_through_the_network_as_often_as_it_foretells(name: str) -> None:
    # By this number `compare` says beforehand how long a method will take.
    model, x = build("resnet"), images(1)
    if name == "KernelSHAP":
        of: Method = CATALOGUE[name](model, samples=20)
    else:
        of = method(name, model)
    of.attribute(x, 0)  # the reference's own pass is made once and kept
    rows = 0

    def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(args[0])

    handle = model.register_forward_pre_hook(count)
    of.attribute(x, 0)
    handle.remove()
    assert rows == pytest.approx(of.work(x).forwards, abs=4)
