"""The traceable form of each rule is the twin of the one that explanations run by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import OperationError
from afmi.gradients import modified_gradient
from afmi.gradients.modified import traced_gradient
from afmi.network.layers import Layer
from afmi.pictures.references import Black

Operation = Callable[[Tensor], Tensor]


class Behind(nn.Module):
    """Feature maps, one operation on them, and a linear head."""

    def __init__(self, operation: Operation, size: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.operation = operation
        with torch.no_grad():
            count = operation(torch.rand(1, 4, size, size)).flatten(1).shape[1]
        self.head = nn.Linear(count, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self.features(x) * 2).flatten(1))


def _attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens * 2, tokens + 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x[..., :3, 0].transpose(1, 2))[0]


OPERATIONS: dict[str, Operation] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu_(x * 1),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "leaky relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "power": lambda x: x.abs().pow(1.5),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool, ceil": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "max pool, dilated": lambda x: F.max_pool2d(x, 3, 1, dilation=2),
    "max pool, adaptive": lambda x: F.adaptive_max_pool2d(x, 3),
    "max pool, 1-d": lambda x: F.max_pool1d(x.flatten(2), 4, 3),
    "max pool, 3-d": lambda x: F.max_pool3d(x[:, None], 2),
    "max pool of ties": lambda x: F.max_pool2d(x.relu(), 3, 2),
    "amax": lambda x: x.amax((2, 3)),
    "min": lambda x: x.min(-1).values,
    "maximum": lambda x: torch.maximum(x, x.flip(2)),
    "product": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "contraction": lambda x: torch.einsum("nchw,nkhw->nck", x, x),
    "prod": lambda x: (1 + x[:, :3, :2, :2]).prod(1),
    "quotient": lambda x: x / (x.abs().mean((2, 3), keepdim=True) + 0.1),
    "quotient over the pole": lambda x: x / (x.flip(2) + 0.3),
    "softmax": lambda x: x.flatten(2).softmax(-1),
    "log-sum-exp": lambda x: x.flatten(2).logsumexp(-1),
    "attention": _attention,
    "layer norm": lambda x: F.layer_norm(x, (9,)),
    "group norm": lambda x: F.group_norm(x, 2),
    "rms norm": lambda x: F.rms_norm(x, (9,)),
    "l2 norm": lambda x: F.normalize(x, dim=1),
    "deviation": lambda x: x.std((2, 3)),
}


def _both(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the modified gradients in both forms, and by how much the traced ones miss Δy."""
    model = model.to(dtype).eval()
    images = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    place = (model.features, Layer("features"))
    run = modified_gradient(model, images, layer=place, reference=Black())
    classes = torch.tensor([[0, 1, 2]])
    traced = traced_gradient(model, images, place, run.references)
    (terms,) = traced.stage_terms(classes)
    missed = terms.exact.flatten(2).sum(2) - traced.output_change(classes)
    return run.gradients(classes), terms.gradient, missed


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_traceable_form_gives_the_same_gradients(name: str) -> None:
    """In double precision the two agree to its rounding, and both sum to the change."""
    ordinary, traceable, missed = _both(Behind(OPERATIONS[name]), torch.float64)
    assert float(ordinary.abs().max()) > 0
    torch.testing.assert_close(traceable, ordinary, rtol=1e-9, atol=1e-9)
    assert float(missed.abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["relu6", "silu", "max pool", "layer norm", "softmax", "mish"])
def test_in_single_precision_the_two_differ_by_rounding(name: str) -> None:
    ordinary, traceable, _ = _both(Behind(OPERATIONS[name]), torch.float32)
    torch.testing.assert_close(traceable, ordinary, rtol=1e-4, atol=1e-5)


def test_the_traceable_form_of_a_recurrent_layer() -> None:
    ordinary, traceable, _ = _both(Behind(Recurrent()), torch.float64)
    torch.testing.assert_close(traceable, ordinary, rtol=1e-9, atol=1e-9)


def test_numbers_that_did_not_change_have_their_derivative() -> None:
    """Where image and reference agree, 0/0 is not met in the traceable form either."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(9, 9, dtype=x.dtype)
            mask[:5] = 1
            x = x * mask
            return torch.stack([F.relu(x), F.silu(x), F.relu6(x), F.mish(x), x.abs()], 1)

    ordinary, traceable, _ = _both(Behind(Masked()), torch.float64)
    assert bool(traceable.isfinite().all())
    torch.testing.assert_close(traceable, ordinary, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.adaptive_max_pool2d(x, 4),
    ],
)
def test_what_has_no_traceable_form_is_named(operation: Any) -> None:
    model = Behind(operation)
    place = (model.features, Layer("features"))
    images = torch.rand(2, 3, 9, 9)
    run = modified_gradient(model, images, layer=place, reference=Black())
    with pytest.raises(OperationError, match="max_pool2d"):
        traced_gradient(model, images, place, run.references)
