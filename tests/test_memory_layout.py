"""The fast memory layout: same numbers, and networks that need the usual one still get it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afmi.memory_layout import FastLayout


class Viewing(nn.Module):
    """Takes a view of its feature maps, having overwritten its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        x.mul_(2)
        return self.conv(x).view(x.shape[0], -1)


def test_channels_lie_side_by_side() -> None:
    seen: list[Tensor] = []
    images = torch.rand(2, 3, 5, 5)
    FastLayout()(seen.append, images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen[0], images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_the_usual_layout(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []
    FastLayout()(seen.append, torch.rand(2, 3, 5, 5).to(dtype))
    assert seen[0].is_contiguous()


def test_network_that_takes_views() -> None:
    network = Viewing()
    images = torch.rand(2, 3, 5, 5)
    expected = network.conv(images * 2).flatten(1)
    layout = FastLayout()
    with torch.no_grad():
        torch.testing.assert_close(layout(network, images.clone()), expected)
        torch.testing.assert_close(layout(network, images.clone()), expected)
    assert network.layouts == [True, False, False]


def test_other_errors_are_raised() -> None:
    calls: list[int] = []

    def fail(_: Tensor) -> None:
        calls.append(1)
        raise RuntimeError("sizes do not fit")

    layout = FastLayout()
    with pytest.raises(RuntimeError, match="sizes do not fit"):
        layout(fail, torch.rand(1, 3, 2, 2))
    assert len(calls) == 2


def test_too_little_memory_is_no_reason_for_another_layout() -> None:
    layouts: list[bool] = []

    def fail(x: Tensor) -> None:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        raise torch.OutOfMemoryError

    layout = FastLayout()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            layout(fail, torch.rand(2, 3, 5, 5))
    assert layouts == [True, True]
