"""Matrices along one side: interpolation, blur, and masks that they spread over pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from afmi.pictures.maps import upsample
from afmi.pictures.matrices import CellsToPixels, at_224, crops, gaussian, interpolation
from afmi.pictures.references import Blurred


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


def test_crops_are_all_runs_of_rows() -> None:
    matrix = torch.arange(10.0).view(5, 2)
    expected = torch.stack([matrix[:3], matrix[1:4], matrix[2:]])
    assert torch.equal(crops(matrix, 3), expected)


@pytest.mark.parametrize(
    ("cells", "size"), [((4,), (9,)), ((4, 3), (9, 7)), ((4, 3, 2), (9, 7, 5))]
)
def test_gradients_by_cells_are_those_of_autograd(
    cells: tuple[int, ...], size: tuple[int, ...]
) -> None:
    spread = CellsToPixels(tuple(map(torch.rand, size, cells)))
    masks, gradient = torch.rand(2, *cells, requires_grad=True), torch.rand(2, 1, *size)
    assert spread(masks).shape == gradient.shape
    (expected,) = torch.autograd.grad(spread(masks), masks, gradient)
    torch.testing.assert_close(spread.pull_back(gradient), expected)


@pytest.mark.parametrize("size", [(9,), (9, 12), (5, 9, 12)])
def test_cells_become_pixels_by_linear_interpolation(size: tuple[int, ...]) -> None:
    """Along each side, in any number of dimensions; also with other matrices for each mask."""
    masks = torch.rand(2, *[3] * len(size), dtype=torch.float64)
    expected = upsample(masks[:, None], size)
    sides = tuple(interpolation(3, n) for n in size)
    torch.testing.assert_close(CellsToPixels(sides)(masks), expected)
    of_each = CellsToPixels(tuple(side.expand(2, -1, -1) for side in sides))
    torch.testing.assert_close(of_each(masks), expected)


@pytest.mark.parametrize("size", [(30,), (20, 30), (12, 20, 30)])
def test_a_blur_spreads_a_point_along_each_side(size: tuple[int, ...]) -> None:
    x = torch.zeros(1, 1, *size, dtype=torch.float64)
    middle = tuple(n // 2 for n in size)
    x[(0, 0, *middle)] = 1
    expected = torch.ones((), dtype=torch.float64)
    for n in size:
        expected = expected[..., None] * gaussian(n, 1.0)[:, n // 2]
    torch.testing.assert_close(Blurred(1.0)(x)[0, 0], expected)


def test_the_blur_across_few_slices_goes_by_their_number() -> None:
    x = torch.zeros(1, 1, 20, 60, 80, dtype=torch.float64)
    x[0, 0, 10] = 1
    torch.testing.assert_close(Blurred()(x)[0, 0, :, 30, 40], gaussian(20, 2.0)[:, 10])
    assert torch.equal(Blurred()(x[:, :, 10]), Blurred(6.0)(x[:, :, 10]))
