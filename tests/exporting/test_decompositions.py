"""What stands for PyTorch's operations in a file gives their numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from afmi.errors import OperationError
from afmi.exporting.decompositions import DECOMPOSITIONS, MeansOfWholeSides, by_rows
from afmi.pictures.matrices import along_each


class Decomposed(TorchDispatchMode):
    """Runs what stands for an operation in its place, and notes its name."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in DECOMPOSITIONS:
            self.met.add(str(func))
            return DECOMPOSITIONS[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


NORM = torch.nn.BatchNorm2d(4).double().eval()
with torch.no_grad():
    for tensor in (NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias):
        tensor.uniform_(0.5, 2)
WEIGHT = torch.linspace(-1, 1, 4 * 2 * 9, dtype=torch.float64).reshape(4, 2, 3, 3)

CASES = {
    "mean pooling": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean pooling of what is there": lambda x: F.avg_pool2d(
        x, 3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "mean pooling, unequal sides": lambda x: F.avg_pool2d(x, (2, 3), (2, 1)),
    "mean pooling of volumes": lambda x: F.avg_pool3d(x[:, :, None].expand(-1, -1, 4, -1, -1), 2),
    "adaptive mean": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive mean to the sides that there are": lambda x: F.adaptive_avg_pool2d(x * x, (7, 8)),
    "adaptive mean of volumes": lambda x: F.adaptive_avg_pool3d(x.unflatten(1, (2, 2)), (1, 2, 3)),
    "interpolation": lambda x: F.interpolate(x, (11, 13), mode="bilinear", align_corners=False),
    "interpolation by corners": lambda x: F.interpolate(
        x, (11, 13), mode="bilinear", align_corners=True
    ),
    "interpolation of signals": lambda x: F.interpolate(x[..., 0], 11, mode="linear"),
    "nearest": lambda x: F.interpolate(x, (14, 15), mode="nearest"),
    "convolution": lambda x: F.conv2d(x, WEIGHT, None, 2, 1, 1, groups=2),
    "dilated convolution": lambda x: F.conv2d(x, WEIGHT, None, 1, 2, 2, groups=2),
    "narrow convolution": lambda x: F.conv2d(x, WEIGHT[..., :1], None, 1, 0, 1, groups=2),
    "wide margin": lambda x: F.conv2d(x, WEIGHT, None, 1, 4, 1, groups=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, WEIGHT, None, 2, 1, 1, groups=2),
    "batch norm": NORM,
    "bounds": lambda x: F.hardtanh((4 * x).round(), 1, 3) + F.relu6(9 * x),
    "silu": lambda x: F.silu(200 * x - 100),
    "mish": lambda x: F.mish(200 * x - 100),
    "limits": lambda x: x.clamp(0.2, 1 - 1e-15) * x.clamp(min=0.5) * x.clamp(max=0.5),
    "slice": lambda x: x[:, 1:3, 2:],
    "place": lambda x: x[:, -1, 2],
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_pytorchs(name: str) -> None:
    def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        y = CASES[name](x)
        cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        return y, torch.autograd.grad(y, x, cotangent)[0]

    x = torch.rand(2, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    with Decomposed() as mode:
        results = gradient(x)
    assert mode.met
    torch.testing.assert_close(results, gradient(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("activation", [F.silu, F.mish])
def test_slopes_of_numbers_of_any_size(activation: Any, dtype: torch.dtype) -> None:
    largest = float(torch.finfo(dtype).max)
    x = torch.tensor([0, 1e-3, 1, 5, 12, 90, 1e3, largest], dtype=dtype)
    x = torch.cat([x, -x]).requires_grad_()
    with Decomposed() as mode:
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
    assert mode.met
    (right,) = torch.autograd.grad(activation(x.double()).sum(), x)
    torch.testing.assert_close(slope, right, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_every_entry_is_met() -> None:
    met: set[str] = set()
    for operation in (
        *CASES.values(),
        lambda x: F.interpolate(x[:, :, None], (3, 9, 9), mode="trilinear"),
        lambda x: F.interpolate(x[:, :, None], (3, 14, 16), mode="nearest"),
        lambda x: F.interpolate(x[..., 0], 14, mode="nearest"),
    ):
        x = torch.rand(1, 4, 7, 8, dtype=torch.float64, requires_grad=True)
        with Decomposed() as mode:
            operation(x).sum().backward()
        met |= mode.met
    assert met == {str(operation) for operation in DECOMPOSITIONS}


def test_a_divisor_of_ones_own_is_refused() -> None:
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    with pytest.raises(OperationError, match="divisor_override"), Decomposed():
        F.avg_pool2d(x, 2, divisor_override=3).sum().backward()


def test_the_mean_of_tokens_is_recorded_without_addresses() -> None:
    """PyTorch's own pooling of turned tokens to one place sets strides, also on the way back."""

    def gradient(tokens: Tensor) -> Tensor:
        tokens = tokens.requires_grad_()
        pooled = F.adaptive_avg_pool1d(tokens.transpose(1, 2), 1).flatten(1)
        return torch.autograd.grad((pooled * pooled).sum(), tokens)[0]

    tokens = torch.rand(2, 5, 3)
    assert "as_strided" in make_fx(gradient)(tokens).code
    with MeansOfWholeSides():
        graph = make_fx(gradient)(tokens)
    assert "as_strided" not in graph.code
    torch.testing.assert_close(graph(tokens), gradient(tokens.clone()))


@pytest.mark.parametrize("size", [1, (1, 1), [1, None], (2, 1)])
def test_only_means_of_whole_sides_are_taken_as_such(size: Any) -> None:
    x = torch.rand(2, 3, 4, 5)
    with MeansOfWholeSides():
        y = F.adaptive_avg_pool2d(x, output_size=size)
    torch.testing.assert_close(y, F.adaptive_avg_pool2d(x, size))


def test_products_with_rows_are_those_along_each_side() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    matrices = [torch.rand(n, m) for n, m in ((7, 4), (2, 5), (9, 6))]
    torch.testing.assert_close(by_rows(matrices, x), along_each(matrices, x))
