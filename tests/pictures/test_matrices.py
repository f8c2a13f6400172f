"""Matrices along one side: interpolation, blur, and masks that they spread over pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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


def test_gradients_by_cells_are_those_of_autograd() -> None:
    spread = CellsToPixels(torch.rand(9, 4), torch.rand(7, 3))
    masks, gradient = torch.rand(2, 4, 3, requires_grad=True), torch.rand(2, 1, 9, 7)
    (expected,) = torch.autograd.grad(spread(masks), masks, gradient)
    torch.testing.assert_close(spread.pull_back(gradient), expected)
