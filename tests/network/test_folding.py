"""Folded networks give the same numbers, by fewer operations, and are left as they were."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from completeness import torchvision_classifier
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.gradients.passes import BatchRunner
from afmi.network.folding import FoldedExecution, folded_execution, run_folded


class Norms(TorchFunctionMode):
    """Counts the batch norms that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.batch_norm
        return func(*args, **(kwargs or {}))


def norms_run(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    # Entered first, so that it receives the calls that the other modes make.
    with Norms() as counted, torch.no_grad():
        output = run()
    return counted.count, output


def folded_run(folded: FoldedExecution, model: nn.Module, images: Tensor) -> Tensor:
    """Run the network once, folded, without another attempt."""
    folded.prepare(model, images)
    with folded.intercepting():
        return model(images)


@pytest.mark.parametrize(
    ("name", "left"), [("mobilenet_v2", 0), ("resnet18", 0), ("densenet121", 62), ("alexnet", 0)]
)
def test_torchvision(name: str, left: int) -> None:
    model = torchvision_classifier(name, 64).double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = folded_execution(model)
    folded.prepare(model, images)
    with torch.no_grad():
        expected = model(images)
    count, output = norms_run(lambda: folded_run(folded, model, images))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert count == left
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Net(nn.Module):
    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.own = nn.Conv2d(3, 3, 3, padding=1), forward
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
        for norm in (self.norm, self.other):
            norm.running_mean, norm.running_var = torch.rand(3), torch.rand(3) + 0.5
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


FORWARDS: dict[str, tuple[Callable[[Net, Tensor], Tensor], int]] = {
    "pair": (lambda n, x: n.norm(n.conv(x)), 0),
    "without gains": (lambda n, x: n.other(n.conv(x)), 0),
    "functional": (
        lambda n, x: F.batch_norm(
            F.conv2d(input=x, weight=n.conv.weight), n.norm.running_mean, n.norm.running_var
        ),
        0,
    ),
    "in place behind": (lambda n, x: n.norm(n.conv(x)).relu_() + x, 0),
    "another norm behind": (lambda n, x: n.other(n.norm(n.conv(x)).relu_()), 1),
    "in place between": (lambda n, x: n.norm(n.conv(x).relu_()), 1),
    "used twice": (lambda n, x: n.norm(y := n.conv(x)) + y, 1),
    "two norms": (lambda n, x: n.norm(y := n.conv(x)) + n.other(y), 2),
    "shared convolution": (lambda n, x: n.norm(n.conv(n.other(n.conv(x)))), 2),
    "weights made anew": (
        lambda n, x: n.norm(F.conv2d(x, n.conv.weight * 2, n.conv.bias, padding=1)),
        1,
    ),
    "norm first": (lambda n, x: n.conv(n.norm(x)), 1),
    "asked for its form": (lambda n, x: _asked(n, x), 0),
}


def _asked(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if y.dim() == 4 and y.shape[1] == 3 else y


@pytest.mark.parametrize("name", FORWARDS)
def test_only_what_is_a_pair_is_folded(name: str) -> None:
    forward, left = FORWARDS[name]
    model = Net(forward)
    folded = folded_execution(model)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    folded.prepare(model, images)
    with torch.no_grad():
        expected = model(images)
    for _ in range(2):
        count, output = norms_run(lambda: folded_run(folded, model, images))
        torch.testing.assert_close(output, expected)
        assert count == left


def test_new_weights_in_old_places() -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)))
    folded = folded_execution(model)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = folded_run(folded, model, images)
        model.conv.weight.mul_(2)
        model.norm.running_mean.add_(1)
        new = folded_execution(model)
        count, output = norms_run(lambda: folded_run(new, model, images))
        torch.testing.assert_close(output, model(images))
        assert count == 0
        assert torch.equal(folded_run(folded, model, images), before)


@pytest.mark.parametrize(
    "way", ["used besides", "not normed", "given out", "another norm", "normed twice"]
)
def test_a_network_that_goes_another_way_later(way: str) -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)))
    folded = folded_execution(model)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    runs: list[Tensor] = []

    def attempt(folded: FoldedExecution) -> Tensor:
        copy = images.clone()
        runs.append(copy)
        return folded_run(folded, model, copy)

    with torch.no_grad():
        run_folded(model, attempt, images, folded)
        model.own = {
            "used besides": lambda n, x: n.norm(y := n.conv(x)) + y,
            "not normed": lambda n, x: n.conv(x) * 2,
            "given out": lambda n, x: n.conv(x),
            "another norm": lambda n, x: n.other(n.conv(x)),
            "normed twice": lambda n, x: n.norm(y := n.conv(x)) + n.norm(y),
        }[way]
        for expected in (3, 4):
            torch.testing.assert_close(run_folded(model, attempt, images, folded), model(images))
            assert len(runs) == expected


def test_training_statistics_are_left_alone() -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)))
    model.norm.train()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    folded = folded_execution(model)
    folded.prepare(model, images)
    for _ in range(2):
        assert norms_run(lambda: folded_run(folded, model, images))[0] == 1


def test_compiled_networks_are_left_to_their_compiler() -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)))
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = folded_run(folded_execution(model), model, images)
        model.compile(backend="eager")
        now = folded_execution(model)
        assert isinstance(now.intercepting(), nullcontext)
        torch.testing.assert_close(folded_run(now, model, images), expected)


def test_it_is_found_once_and_kept_for_the_weights_as_they_are() -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)).mean((2, 3)))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    kept = folded_execution(model)
    assert folded_execution(model) is kept
    first = BatchRunner(model, images).logits(images)
    count, again = norms_run(lambda: BatchRunner(model, images).logits(images))
    assert count == 0
    assert torch.equal(first, again)  # to the bit, though the first run had to find all this out
    with torch.no_grad():
        model.norm.running_var.data.mul_(2)  # which no version counts
    assert folded_execution(model) is not kept
    count, output = norms_run(lambda: BatchRunner(model, images).logits(images))
    assert count == 0
    torch.testing.assert_close(output, model(images).detach())


def test_another_epsilon_is_noticed() -> None:
    model = Net(lambda n, x: n.norm(n.conv(x)).mean((2, 3)))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        BatchRunner(model, images).logits(images)
        model.norm.eps = 0.5
        torch.testing.assert_close(BatchRunner(model, images).logits(images), model(images))


def test_a_network_for_more_than_one_image_runs_as_it_is() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("one image alone")
        return net.norm(net.conv(x)).mean((2, 3))

    model = Net(forward)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(BatchRunner(model, images).logits(images), model(images))
        with pytest.raises(ValueError, match="one image alone"):
            BatchRunner(model, images).logits(images[:1])
