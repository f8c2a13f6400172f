"""What changes of images do to predictions, on a network whose answers are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shortcuts import SHORTCUT, SIDE, images, network

from afmi import AFMI
from afmi.auditing.interventions import FILLS, intervention_on
from afmi.auditing.regions import Marked, distinguishing_maps, marked


@pytest.fixture(scope="module")
def group() -> Marked:
    """Cats with the shortcut, which lies in the lower right corner."""
    pictures = [image[None] for image, _ in images(40, 0, 12)]
    maps = np.array([SHORTCUT])
    method = AFMI(network())
    rest = marked(method, pictures[12:], 0, maps)
    return marked(method, pictures[:12], 0, maps, rest)


def corner() -> torch.Tensor:
    area = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    area[-4:, -4:] = True
    return area


def test_the_region_is_where_the_shortcut_lies(group):
    assert all(torch.equal(region[0], corner()) for region in group.regions)
    assert group.cluster_maps.shape == group.exact_maps.shape == (12, 1, SIDE, SIDE)
    inside = group.cluster_maps.masked_select(corner()).sum()
    assert float(inside / group.cluster_maps.clamp_min(0).sum()) == pytest.approx(1, abs=1e-4)


def test_a_region_covers_a_quarter_of_an_image_at_most():
    pictures = [torch.full((1, 3, SIDE, SIDE), 0.9) * torch.linspace(0.5, 1, SIDE)]
    dark = [torch.zeros(1, 3, SIDE, SIDE)]
    method, maps = AFMI(network()), np.array([SHORTCUT])
    region = marked(method, pictures, 0, maps, marked(method, dark, 0, maps)).regions
    assert int(region.sum()) == SIDE * SIDE // 4
    assert bool(region[..., -4:].all())


def test_what_is_marked_decides(group):
    dogs = [image[None] for image, _ in images(0, 20, 0)]
    done = intervention_on(network(), group, 0, dogs)
    assert done.area == pytest.approx(16 / SIDE**2)
    assert done.pasted is not None
    assert done.pasted.marked.value == done.pasted.difference.value == 1
    assert done.pasted.control.value < 0.5
    assert done.pasted.marked.count == 64
    assert done.pasted.clear
    assert done.confirmed


def test_shares_are_those_of_the_predictions(group):
    """Removing the blue corner leaves a cat: it is green, too."""
    done = intervention_on(network(), group, 0, [])
    assert done.pasted is None
    assert [change.what for change in done.removed] == [*FILLS]
    assert [change.marked.value for change in done.removed] == [0, 0, 0]
    assert not done.confirmed
    # Without its green, nothing but the corner makes it a cat.
    bare = group.images.clone()
    bare[:, 1] = 0
    bare[:, 0] = 0.25
    only = Marked(bare, group.cluster_maps, group.exact_maps, group.regions)
    done = intervention_on(network(), only, 0, [])
    changed = {change.what: change.marked.value for change in done.removed}
    # In so small an image a blur leaves the corner blue.
    assert changed == {"inpainted": 1, "blurred": 0, "mean": 1}
    assert [change.control.value for change in done.removed] == [0, 0, 0]
    assert [change.clear for change in done.removed] == [True, False, True]
    assert not done.confirmed  # by every way of removing it


def test_images_that_are_predicted_as_the_class_are_not_pasted_into(group):
    cats = [image[None] for image, _ in images(6, 0, 0)]
    assert intervention_on(network(), group, 0, cats).pasted is None


def test_images_of_other_sizes_are_pasted_into(group):
    dogs = [torch.nn.functional.interpolate(image[None], 24) for image, _ in images(0, 4, 0)]
    pasted = intervention_on(network(), group, 0, dogs).pasted
    assert pasted is not None
    assert pasted.marked.value == 1


def test_the_same_seed_gives_the_same_numbers(group):
    dogs = [image[None] for image, _ in images(0, 5, 0)]
    one, other = (intervention_on(network(), group, 0, dogs, seed=3) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("name", FILLS)
def test_fills_are_images(name):
    pictures = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    areas = torch.zeros(2, 1, 20, 30, dtype=torch.bool)
    areas[:, :, 5:9, 10:20] = True
    filled = FILLS[name](pictures, areas)
    assert filled.shape == pictures.shape
    assert 0 <= float(filled.min()) <= float(filled.max()) <= 1
    plain = torch.full_like(pictures, 0.25)
    plain[:, :, 5:9, 10:20] = 0.25 if name != "inpainted" else 1.0
    # What is removed has no say in what is inpainted.
    assert torch.allclose(FILLS[name](plain, areas), torch.full_like(pictures, 0.25), atol=1e-5)


def test_distinguishing_maps_carry_half_of_the_lead():
    rest = np.zeros((3, 5))
    group = np.array([[1.0, 5, 0, 3, -9]] * 4)
    assert distinguishing_maps(group, rest).tolist() == [1]
    assert distinguishing_maps(group * [1, 0.6, 1, 1, 1], rest).tolist() == [1, 3]
    assert distinguishing_maps(rest, rest).tolist() == []
