"""The batch runner: batches that fit, gradients, probabilities."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods import Gradient

# As a GPU reports it, and as a CPU does.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


class _SmallMemory(nn.Module):
    """Fails on more images than fit."""

    def __init__(self, fits: int, error: RuntimeError = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.fits, self.error, self.sizes = fits, error, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.fits:
            raise self.error
        self.sizes.append(len(x))
        return x.flatten(1)[:, :4] * 2


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_for_good(error: RuntimeError) -> None:
    model, some = _SmallMemory(3, error), torch.rand(16, 3, 8, 8)
    runner = BatchRunner(model, some, batch_size=16)
    runner.logits(some[:1])  # tries the network, once
    model.sizes.clear()
    torch.testing.assert_close(runner.logits(some), some.flatten(1)[:, :4] * 2)
    assert model.sizes == [2] * 8
    assert runner.ranges(5) == [(0, 2), (2, 4), (4, 5)]


def test_one_image_that_does_not_fit_raises() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        BatchRunner(_SmallMemory(0), torch.rand(1, 3, 8, 8)).logits(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_images_that_do_not_fit_together_are_explained_in_parts(error: RuntimeError) -> None:
    some = torch.rand(7, 3, 8, 8)
    expected = Gradient(_SmallMemory(7)).attribution(some)
    attribution = Gradient(model := _SmallMemory(2, error)).attribution(some)
    assert model.sizes == [2] * 4 + [1] * 7  # the network is tried first
    for name in ("maps", "target", "logits"):
        torch.testing.assert_close(getattr(attribution, name), getattr(expected, name))
    classes = torch.randint(4, (2, 7))
    several = Gradient(_SmallMemory(2, error)).attribute_classes(some, classes)
    torch.testing.assert_close(several, Gradient(_SmallMemory(7)).attribute_classes(some, classes))
    with pytest.raises(RuntimeError, match="memory"):
        Gradient(_SmallMemory(0, error)).attribute(some)


def test_the_batch_size_follows_the_image_size() -> None:
    assert BatchRunner(nn.Identity(), torch.empty(1, 3, 224, 224)).size == 8
    assert BatchRunner(nn.Identity(), torch.empty(1, 1, 28, 28)).size == 512
    assert BatchRunner(nn.Identity(), torch.empty(1, 3, 2000, 2000)).size == 1
    with pytest.raises(UsageError, match="batch_size"):
        BatchRunner(nn.Identity(), torch.empty(1, 3, 8, 8), batch_size=0)


def test_gradients_are_those_of_autograd_and_leave_the_model() -> None:
    model, some = build("resnet", torch.float64), images(5).double()
    cotangent = torch.rand(5, 5, dtype=torch.float64)
    runner = BatchRunner(model, some, batch_size=2)
    logits, gradients = runner.gradients(some, lambda _, i, j: cotangent[i:j])
    leaf = some.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((model(leaf) * cotangent).sum(), leaf)
    torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close(logits, model(some).detach())
    assert all(p.grad is None for p in model.parameters())


def test_responses_are_double() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    some = torch.rand(3, 3, 2, 2)
    values = BatchRunner(model, some).responses(some)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, model(some).double().softmax(1).detach())
