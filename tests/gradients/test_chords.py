"""Slopes of single activations: Eq. 2 at any distance, and the derivative where nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.gradients.operation import Operation
from afmi.gradients.rules.elementwise import RULES, Chord

CALLS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "relu": (F.relu, {}),
    "relu6": (F.relu6, {}),
    "hardtanh": (F.hardtanh, {"min_val": -2.0, "max_val": 3.0}),
    "clamp": (torch.clamp, {"min": -0.5}),
    "abs": (torch.abs, {}),
    "silu": (F.silu, {}),
    "gelu": (F.gelu, {}),
    "gelu tanh": (F.gelu, {"approximate": "tanh"}),
    "tanh": (torch.tanh, {}),
    "leaky_relu": (F.leaky_relu, {"negative_slope": 0.1}),
    "hardswish": (F.hardswish, {}),
}


def slopes(name: str, x: Tensor, reference: Tensor) -> Tensor:
    function, keywords = CALLS[name]
    rule = RULES[name.partition(" ")[0]]
    assert isinstance(rule, Chord)

    def call(first: Tensor) -> Operation:
        return Operation(name, function, (first,), keywords)

    entry = rule.entry(call(reference), [reference], rule.call(call(reference)))
    _, ((slope,),) = rule.run(call(x), [x], [entry])
    assert torch.equal(slope, rule.slope(call(x), x, call(x)(), entry))
    return slope


def derivative(name: str, x: Tensor) -> Tensor:
    function, keywords = CALLS[name]
    leaf = x.double().requires_grad_(True)
    (slope,) = torch.autograd.grad(function(leaf, **keywords).sum(), leaf)
    return slope


def points(dtype: torch.dtype) -> Tensor:
    return (6 * torch.randn(4000, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_the_derivative_where_nothing_changed(name: str, dtype: torch.dtype) -> None:
    x = points(dtype)
    x[:3] = torch.tensor([0.0, -0.0, 1.5])
    slope = slopes(name, x, x.clone())
    assert slope.dtype == dtype
    if name == "abs":  # has none at 0
        x, slope = x[2:], slope[2:]
    bound = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(slope.double(), derivative(name, x), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", range(-16, 3))
@pytest.mark.parametrize("name", CALLS)
def test_the_chord_at_any_distance(name: str, exponent: int, dtype: torch.dtype) -> None:
    function, keywords = CALLS[name]
    x = points(dtype)
    reference = x + 10.0**exponent * torch.randn(
        4000, dtype=dtype, generator=torch.Generator().manual_seed(1)
    )
    slope = slopes(name, x, reference).double()
    eps = torch.finfo(dtype).eps
    y, before = function(x, **keywords).double(), function(reference, **keywords).double()
    change = x.double() - reference.double()
    # The sum: right to the rounding of what was subtracted.
    rounding = eps * (y.abs() + before.abs() + x.abs().double() + reference.abs().double())
    assert ((slope * change - (y - before)).abs() <= 8 * rounding + 1e-30).all()
    # The slope: between the derivatives' extremes, but for the rounding of a small quotient.
    assert slope.isfinite().all()
    assert float(slope.abs().max()) <= 1.7
