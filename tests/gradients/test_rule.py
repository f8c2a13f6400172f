"""The base of all rules: CONTRIBUTING's ten lines make one that sums to delta in every form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import afmi.gradients as engine
from afmi.gradients.rules import _table
from afmi.pictures.references import Black, Several, White

ROOT = Path(__file__).parents[2]


class Network(nn.Module):
    def __init__(self, cube: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cube = cube
        self.first = nn.Conv2d(3, 4, 3).double()
        self.head = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cube(self.first(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def cube() -> Iterator[None]:
    before = dict(_table)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"<!-- example: rule -->\n```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    exec(example[1], {"__name__": "example"})
    assert type(_table["pow"]).__name__ == "Cube"
    yield
    _table.clear()
    _table.update(before)


@pytest.mark.parametrize("call", [lambda x: x.pow(3), lambda x: x.pow_(3)], ids=["new", "in place"])
def test_a_rule_of_ten_lines_sums_to_delta(call: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Network(call)
    images = torch.rand(3, 3, 6, 6, dtype=torch.float64)
    gradient = engine.modified_gradient(
        network, images, layer=None, reference=Several([Black(), White()])
    )
    targets = torch.tensor([[0, 1, 0], [1, 1, 1]])
    for reference, value in enumerate((0.0, 1.0)):
        slopes = gradient.gradients(targets, reference)
        explained = (slopes * (images - value)).flatten(2).sum(2)
        before = network(torch.full_like(images[:1], value))
        change = (network(images) - before).gather(1, targets.T).T
        torch.testing.assert_close(explained, change, rtol=1e-12, atol=1e-12)
        # One class at a time, and with the factors' memory given up, the same.
        alone = gradient.gradients(targets[:1], reference, last=reference == 1)
        torch.testing.assert_close(alone, slopes[:1], rtol=1e-12, atol=1e-12)


def test_a_rule_gets_operands_as_they_were_before_an_in_place_call() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    new = Network(lambda x: x.pow(3))
    overwriting = Network(lambda x: x.pow_(3))
    overwriting.load_state_dict(new.state_dict())
    targets = torch.tensor([[0, 1]])
    slopes = []
    for network in (new, overwriting):
        run = engine.modified_gradient(network, images, layer=None, reference=White())
        slopes.append(run.gradients(targets))
    assert torch.equal(*slopes)
