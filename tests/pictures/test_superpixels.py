"""Superpixels of every size of picture, from every segmentation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from networks import images
from settings import STRANGE_DEFAULTS, defaults
from torch import nn

from afmi.errors import ShapeError
from afmi.methods import XRAI
from afmi.pictures.superpixels import Grid, Quickshift, Slic, superpixels


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


@pytest.mark.parametrize("strange", STRANGE_DEFAULTS, ids=str)
@pytest.mark.parametrize("segmentation", [Quickshift(), Slic(), Grid(3)], ids=str)
def test_default_dtype_and_device_change_nothing(segmentation, strange: dict[str, Any]) -> None:
    image = images(1, 24)[0]
    expected = superpixels(segmentation, image)
    with defaults(**strange):
        assert torch.equal(superpixels(segmentation, image), expected)


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


def test_scikit_image_is_loaded_only_when_a_segmentation_runs() -> None:
    code = "import afmi.methods, sys; print('skimage.segmentation' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("segmentation", [Quickshift(), Slic(16, 3, 0)], ids=str)
def test_edges_count_in_any_number_of_channels(segmentation: Any, channels: int) -> None:
    image = torch.zeros(channels, 40, 40)
    image[:, :, 13:] = 1  # where no grid of 4 × 4 has an edge
    image[:, 27:] = 0.5
    labels = superpixels(segmentation, image)
    for label in labels.unique():
        assert image[0][labels == label].unique().numel() == 1


def test_xrai_cuts_up_bands_as_colours() -> None:
    grey = images(1, 40, 1)
    of = {c: XRAI(nn.Identity(), scales=(50,)).segments(grey[0].expand(c, -1, -1)) for c in (1, 4)}
    assert np.array_equal(of[1], of[4])
    assert np.array_equal(
        of[1], XRAI(nn.Identity(), scales=(50,)).segments(grey[0].expand(3, -1, -1))
    )
