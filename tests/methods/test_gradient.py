"""Gradient: a closed form, and autograd."""

from __future__ import annotations

import pytest
import torch
from networks import TINY, build, images
from torch import nn

from afmi.methods import Gradient


def test_closed_form() -> None:
    """A linear network's gradient is its weights: the largest magnitude over the channels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data = torch.tensor([[1.0, -2.0, -3.0, 0.5], [0.0, 0.0, 0.0, 4.0]])
    x = torch.rand(1, 2, 1, 2)
    assert Gradient(model).attribute(x, 0).flatten().tolist() == [3.0, 2.0]
    assert Gradient(model).attribute(x, 1).flatten().tolist() == [0.0, 4.0]


@pytest.mark.parametrize("network", TINY)
def test_equals_autograd(network: str) -> None:
    model, x = build(network, torch.float64), images().double()
    leaf = x.clone().requires_grad_(True)
    model(leaf)[:, 3].sum().backward()
    assert leaf.grad is not None
    expected = leaf.grad.abs().amax(1, keepdim=True)
    torch.testing.assert_close(Gradient(model).attribute(x, 3), expected, rtol=1e-12, atol=0)
