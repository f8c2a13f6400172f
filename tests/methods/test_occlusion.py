"""Occlusion: by hand, patch by patch, what covers, and Captum."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from afmi import Classifier
from afmi.errors import UsageError
from afmi.methods import Occlusion


class Sums(nn.Module):
    """Two classes, whose log odds are the image's pixels weighted."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Buffer(weights) if hasattr(nn, "Buffer") else weights

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1)
        return torch.stack([0 * score, score], 1)


def test_by_hand() -> None:
    """Patches of two pixels at 0, 1 and 2 of a row of four: the middle pixels lie in two each."""
    weights = torch.tensor([1.0, 0.0, -1.0, 2.0]).double()
    model, x = Sums(weights.view(1, 1, 4)), torch.ones(1, 1, 4).double()
    p = torch.sigmoid(torch.tensor([2.0, 2 - 1, 2 + 1, 2 - 1]).double())
    a, b, c = p[0] - p[1:]
    maps = Occlusion(model, patch=2, stride=1).attribute(x, 1)
    torch.testing.assert_close(maps[0, 0], torch.stack([a, (a + b) / 2, (b + c) / 2, c]))


def slow(model: nn.Module, image: Tensor, target: int, patch: int, stride: int) -> Tensor:
    """Pixel by pixel, over the patches that cover it."""
    starts = sorted({*range(0, 20 - patch, stride), 20 - patch})
    drops = {}
    with torch.no_grad():
        plain = model(image[None]).softmax(1)[0, target]
        for top in starts:
            for left in starts:
                covered = image.clone()
                covered[:, top : top + patch, left : left + patch] = 0
                drops[top, left] = plain - model(covered[None]).softmax(1)[0, target]
    result = torch.zeros(20, 20, dtype=torch.float64)
    for i in range(20):
        for j in range(20):
            over = [
                drop
                for (top, left), drop in drops.items()
                if 0 <= i - top < patch and 0 <= j - left < patch
            ]
            result[i, j] = torch.stack(over).mean()
    return result


@pytest.mark.parametrize(("patch", "stride"), [(8, 4), (7, 5)])
def test_equals_the_formula(patch: int, stride: int) -> None:
    model, x = build("resnet", torch.float64), images(2).double()
    expected = torch.stack([slow(model, image, 3, patch, stride) for image in x])
    maps = Occlusion(model, patch=patch, stride=stride, batch_size=3).attribute(x, 3)
    torch.testing.assert_close(maps[:, 0], expected)


def test_by_default_a_7th_of_each_side_by_half_of_that() -> None:
    model, x = build("resnet", torch.float64), images(1).double()
    torch.testing.assert_close(
        Occlusion(model).attribute(x, 1), Occlusion(model, patch=3, stride=2).attribute(x, 1)
    )
    assert Occlusion(model).cost == "171 forwards"


def test_a_stride_beyond_the_default_patch_leaves_pixels_out() -> None:
    with pytest.raises(UsageError, match="at most the patch's 3 pixels"):
        Occlusion(build("resnet"), stride=9).attribute(images(1), 1)


def test_covers_with_what_the_network_takes_as_zero_or_the_reference() -> None:
    network = build("resnet", torch.float64)
    model, x = Classifier(network, mean=[0.5, 0.2, 0.4], std=[0.5] * 3), images(1).double()
    normalised = (x - model.mean) / model.std
    expected = Occlusion(network, patch=10).attribute(normalised, 1)
    torch.testing.assert_close(Occlusion(model, patch=10).attribute(x, 1), expected)
    same = Occlusion(model, patch=10, reference="white").attribute(x, 1)
    white = Occlusion(network, patch=10, reference=((1 - model.mean) / model.std).expand(3, 20, 20))
    torch.testing.assert_close(same, white.attribute(normalised, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 0}, "at least 1 pixel, or None, got patch=0"),
        ({"stride": -1}, "stride=-1"),
        ({"patch": 4, "stride": 5}, "at most the patch's 4 pixels.*got stride=5"),
    ],
)
def test_patches_that_leave_pixels_out(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Occlusion(nn.Identity(), **options)


def test_equals_captum() -> None:
    captum = pytest.importorskip("captum.attr")
    model, x = build("resnet", torch.float64), images(2).double()
    theirs = captum.Occlusion(lambda images: model(images).softmax(1)).attribute(
        x, sliding_window_shapes=(3, 8, 8), strides=(3, 4, 4), target=2
    )
    ours = Occlusion(model, patch=8, stride=4).attribute(x, 2)
    torch.testing.assert_close(ours.float(), theirs[:, :1].float(), rtol=1e-3, atol=1e-8)
