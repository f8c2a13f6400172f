"""A network's own error becomes one that says what to do, where what it was given is to blame."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import nn

import afmi.network.checking as checking
from afmi.errors import AfmiError, ModelError, OperationError, ShapeError, UsageError
from afmi.network.checking import (
    check_images,
    check_model,
    check_run,
    named_failures,
    opaque_part,
)


def test_ordinary_networks_and_images_pass() -> None:
    model, x = build("resnet"), images(2)
    check_model(model)
    check_images(model, x)
    check_images(nn.Identity(), x.double())
    assert opaque_part(model) is None
    assert check_run(x[:, 0, 0], x) is not None


@pytest.mark.parametrize("model", [lambda x: x, None, "resnet50", nn.ReLU])
def test_what_is_no_network(model: object) -> None:
    with pytest.raises(ModelError, match=r"expected a model that is an nn.Module, got \w+"):
        check_model(model)


def test_images_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_like", lambda model: torch.empty(1, device="meta"))
    with pytest.raises(ShapeError, match=r"model's device meta, got cpu; move them with"):
        check_images(build("vgg"), images(1))


def test_buffers_tell_the_device_where_there_are_no_parameters() -> None:
    norm = nn.BatchNorm2d(3, affine=False).to("meta")
    with pytest.raises(ModelError, match=r"'running_mean'.*'meta'"):
        check_model(norm)
    with pytest.raises(ShapeError, match="device meta, got cpu"):
        check_images(norm, images(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pixels_that_are_not_finite(value: float) -> None:
    x = images(2)
    x[1, 2, 3, 4] = value
    with pytest.raises(UsageError, match="got NaN or infinity"):
        check_images(build("vgg"), x)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("something of the network's own"),
        KeyError("feature"),
        ZeroDivisionError(),
        ValueError("bad"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: size"),
        torch.OutOfMemoryError("CUDA out of memory. Sizes of tensors must match"),
        ModelError("one of ours"),
    ],
)
def test_other_errors_go_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, named_failures(build("vgg"), images(1)):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "named", "message"),
    [
        (AssertionError("Wrong image height!"), ShapeError, "Wrong image height!.*bring them to"),
        (
            RuntimeError("Sizes of tensors must match except in dimension 1"),
            ShapeError,
            r"cannot run images of shape \(1, 3, 20, 20\)",
        ),
        (
            TypeError("Net.forward() takes 1 positional argument but 2 were given"),
            ModelError,
            "called with images alone",
        ),
    ],
)
def test_errors_of_what_was_given(error: Exception, named: type[AfmiError], message: str) -> None:
    with pytest.raises(named, match=message) as caught, named_failures(build("vgg"), images(1)):
        raise error
    assert caught.value.__cause__ is error


def test_assertions_of_this_package_are_no_fault_of_the_images() -> None:
    with (
        pytest.raises(AssertionError, match="a fault"),
        named_failures(build("vgg"), images(1)),
    ):
        exec("raise AssertionError('a fault')", {"__name__": "afmi.network.graph"})


def test_weights_on_several_devices() -> None:
    model = build("vgg")
    model.classifier.to("meta")
    error = RuntimeError("Expected all tensors to be on the same device, but found at least two")
    with (
        pytest.raises(ModelError, match=r"several devices, cpu, meta; move them to one"),
        named_failures(model, images(1)),
    ):
        raise error


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_hidden_parts_are_named_where_they_are_to_blame() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.ReLU())).eval()
    with (
        pytest.raises(OperationError, match="part '1' is TorchScript"),
        named_failures(model, images(1)),
    ):
        raise OperationError("no rule")
    for other in (ModelError("must return logits"), ShapeError("another shape")):
        with pytest.raises(type(other), match=str(other)), named_failures(model, images(1)):
            raise other
