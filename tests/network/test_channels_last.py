"""The fast memory layout: same numbers, and networks that need the usual one still get it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afmi.methods import AFMI
from afmi.network.channels_last import in_fast_layout, is_fast


class Viewing(nn.Module):
    """Takes a view of its feature maps, having overwritten its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # unseen, unlike a network's own question
            self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        x.mul_(2)
        return self.conv(x).view(x.shape[0], -1)


LARGE = (2, 3, 160, 160)


def laid_out(images: Tensor, **options: bool) -> Tensor:
    """Return what a network is handed for these images."""
    recorded: list[Tensor] = []

    def run(handed: Tensor, fast: bool) -> None:
        assert fast == (not handed.is_contiguous())
        recorded.append(handed)

    in_fast_layout(nn.Identity(), run, images, **options)
    assert torch.equal(recorded[0], images)
    assert recorded[0].data_ptr() != images.data_ptr()
    return recorded[0]


def test_channels_lie_side_by_side() -> None:
    tensor = laid_out(torch.rand(LARGE))
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    tensor = laid_out(torch.rand(2, 3, 5, 5), fast=True)
    assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_the_usual_layout(dtype: torch.dtype) -> None:
    assert laid_out(torch.rand(LARGE).to(dtype)).is_contiguous()


def test_few_pixels_keep_the_usual_layout() -> None:
    assert laid_out(torch.rand(1, 3, 224, 224)).is_contiguous()


def test_one_image_for_depthwise_convolutions() -> None:
    depthwise, norm = nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)
    one = torch.rand(1, 4, 224, 224)
    assert is_fast(nn.Sequential(depthwise, norm), one)
    assert not is_fast(nn.Sequential(depthwise), one)
    assert not is_fast(nn.Sequential(nn.Conv2d(4, 4, 3), norm), one)
    assert not is_fast(nn.Sequential(depthwise, norm), one[..., :100, :100])


def test_network_that_takes_views() -> None:
    network = Viewing()
    images = torch.rand(LARGE)
    expected = network.conv(images * 2).flatten(1)
    with torch.no_grad():
        assert is_fast(network, images)
        for _ in range(2):
            logits = in_fast_layout(network, lambda x, _: network(x), images)
            torch.testing.assert_close(logits, expected)
    assert network.layouts == [True, False, False]
    assert not is_fast(network, images)


def test_explanations_of_a_network_that_takes_views() -> None:
    network = nn.Sequential(Viewing(), nn.Linear(4 * 158 * 158, 3))
    method = AFMI(network, layer="0.conv", averaged=False)
    images = torch.rand(LARGE)
    maps = method.attribute(images, 1)
    assert not any(network[0].layouts[-2:])  # the reference, and the images
    alone = torch.cat([method.attribute(image[None], 1) for image in images])
    torch.testing.assert_close(maps, alone)


def test_other_errors_are_raised() -> None:
    calls: list[int] = []

    def fail(_: Tensor, fast: bool) -> None:
        calls.append(1)
        raise RuntimeError("sizes do not fit")

    network = nn.Identity()
    with pytest.raises(RuntimeError, match="sizes do not fit"):
        in_fast_layout(network, fail, torch.rand(LARGE))
    assert len(calls) == 2
    assert is_fast(network, torch.rand(LARGE))


def test_too_little_memory_is_no_reason_for_another_layout() -> None:
    calls: list[int] = []

    def fail(_: Tensor, fast: bool) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_fast_layout(nn.Identity(), fail, torch.rand(LARGE))
    assert len(calls) == 1
