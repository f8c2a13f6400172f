"""The helpers of the perturbing methods: batches, interpolation, superpixels, progress."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import build, images
from torch import nn

from afmi.errors import ShapeError, UsageError
from afmi.gradients.passes import (
    Grid,
    Passes,
    Quickshift,
    Slic,
    at_224,
    gaussian,
    interpolation,
    replacements,
    superpixels,
)
from afmi.methods import Gradient
from afmi.network.outputs import probabilities
from afmi.pictures.references import Black, Blurred, Random
from afmi.progress import reporting, track

# As a GPU says it, and as a CPU does.
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
    passes = Passes(model, some, batch_size=16)
    torch.testing.assert_close(passes.logits(some), some.flatten(1)[:, :4] * 2)
    assert model.sizes == [1] + [2] * 8  # one alone, to find out how to run the network
    assert passes.ranges(5) == [(0, 2), (2, 4), (4, 5)]


def test_one_image_that_does_not_fit_raises() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Passes(_SmallMemory(0), torch.rand(1, 3, 8, 8)).logits(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_images_that_do_not_fit_together_are_explained_in_parts(error: RuntimeError) -> None:
    some = torch.rand(7, 3, 8, 8)
    expected = Gradient(_SmallMemory(7)).explain(some)
    found = Gradient(model := _SmallMemory(2, error)).explain(some)
    assert model.sizes == [1] * 7
    for name in ("maps", "target", "logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    classes = torch.randint(4, (2, 7))
    several = Gradient(_SmallMemory(2, error)).attribute_classes(some, classes)
    torch.testing.assert_close(several, Gradient(_SmallMemory(7)).attribute_classes(some, classes))
    with pytest.raises(RuntimeError, match="memory"):
        Gradient(_SmallMemory(0, error)).attribute(some)


def test_the_batch_size_follows_the_image_size() -> None:
    assert Passes(nn.Identity(), torch.empty(1, 3, 224, 224)).size == 8
    assert Passes(nn.Identity(), torch.empty(1, 1, 28, 28)).size == 512
    assert Passes(nn.Identity(), torch.empty(1, 3, 2000, 2000)).size == 1
    with pytest.raises(UsageError, match="batch_size"):
        Passes(nn.Identity(), torch.empty(1, 3, 8, 8), batch_size=0)


def test_gradients_are_those_of_autograd_and_leave_the_model() -> None:
    model, some = build("resnet", torch.float64), images(5).double()
    cotangent = torch.rand(5, 5, dtype=torch.float64)
    passes = Passes(model, some, batch_size=2)
    logits, found = passes.gradients(some, lambda _, i, j: cotangent[i:j])
    leaf = some.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((model(leaf) * cotangent).sum(), leaf)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits, model(some).detach())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("cells", "size"), [(7, 35), (3, 20), (5, 5), (6, 4), (1, 3)])
def test_interpolation_is_bilinear(cells: int, size: int) -> None:
    grid = torch.rand(1, 1, cells, cells, dtype=torch.float64)
    matrix = interpolation(cells, size)
    expected = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(matrix @ grid[0, 0] @ matrix.T, expected[0, 0])


def test_gaussian_blurs_as_the_reference_does() -> None:
    image = torch.rand(1, 1, 9, 12, dtype=torch.float64)
    blurred = gaussian(9, 1.5) @ image[0, 0] @ gaussian(12, 1.5).T
    torch.testing.assert_close(blurred, Blurred(1.5)(image)[0, 0])


def test_lengths_scale_with_the_shorter_side() -> None:
    assert at_224(21, torch.empty(1, 3, 112, 300)) == 10.5


def test_probabilities_are_double() -> None:
    found = probabilities(torch.tensor([[0.0, 0.0], [1000.0, 0.0]]))
    assert found.dtype == torch.float64
    assert found.tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_replacements_belong_to_images() -> None:
    some = images(3)
    assert replacements(Black(), some).shape == (3, 1, 3, 20, 20)
    assert replacements(Random(samples=2), some).shape == (3, 2, 3, 20, 20)
    own = replacements(Blurred(), some)
    torch.testing.assert_close(own[1, 0], Blurred()(some[1:2])[0])


@pytest.mark.parametrize("segmentation", [Quickshift(), Slic(), Grid(3)])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 8), (3, 40), (5, 16)])
def test_superpixels_cover_every_picture(segmentation, channels: int, size: int) -> None:
    image = images(1, size, channels)[0]
    labels = superpixels(segmentation, image)
    assert labels.shape == (size, size)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert int(labels.max()) + 1 >= 9
    assert torch.equal(labels, superpixels(segmentation, image))


def test_superpixels_of_normalised_images_are_those_of_the_picture() -> None:
    image = images(1, 32)[0].double()
    image[0, 0, :2] = torch.tensor([0.0, 1.0])
    assert torch.equal(superpixels(Slic(), image), superpixels(Slic(), image * 4 - 2))


def test_superpixels_may_come_from_any_callable() -> None:
    labels = superpixels(lambda a: (a[:, :, 0] > 0.5) * 7, images(1)[0])
    assert labels.unique().tolist() == [0, 1]
    with pytest.raises(ShapeError, match="superpixel labels"):
        superpixels(lambda a: np.zeros(3), images(1)[0])


def test_grid_cells_are_equal() -> None:
    labels = superpixels(Grid(2), images(1, 8)[0])
    assert labels.flatten().bincount().tolist() == [16] * 4
    assert labels[0, 0] == 0
    assert labels[-1, -1] == 3


def test_progress_is_reported_only_inside_the_block() -> None:
    seen: list[tuple[str, int, int]] = []
    assert list(track(range(2), "quiet")) == [0, 1]
    with reporting(lambda *step: seen.append(step)):
        assert list(track(range(2), "loud")) == [0, 1]
        with reporting(None):
            list(track(range(2), "quiet"))
    list(track(range(2), "quiet"))
    assert seen == [("loud", 0, 2), ("loud", 1, 2), ("loud", 2, 2)]
