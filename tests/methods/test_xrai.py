"""XRAI: the merging by hand and by sets, the segments, and the authors' package."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from networks import build, images
from scipy import ndimage
from scipy.stats import spearmanr
from skimage.data import chelsea
from skimage.morphology import disk
from skimage.transform import resize

from afmi.errors import CompletenessWarning, UsageError
from afmi.methods.regions.xrai import XRAI, merge_regions


def test_merging_by_hand() -> None:
    attribution = np.array([[4.0, 2.0, 0.0], [1.0, 1.0, -3.0]])
    masks = np.zeros((3, 2, 3), dtype=bool)
    masks[0, 0, :2] = True  # mean 3, first
    masks[1, :, 0] = True  # its one new pixel has 1
    masks[2, :, 1:] = True  # then new: 0, 1, -3; or, before mask 1 and with it covered, mean -2/3
    expected = np.array([[3.0, 3.0, -2 / 3], [1.0, -2 / 3, -2 / 3]])
    np.testing.assert_allclose(merge_regions(attribution, masks, least_gain=1), expected)


def test_small_gains_are_dropped_and_the_rest_gets_its_mean() -> None:
    attribution = np.array([[4.0, 2.0, 0.0], [1.0, 1.0, -3.0]])
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 0, :2] = True
    masks[1, :, 0] = True
    expected = np.array([[3.0, 3.0, -0.25], [-0.25, -0.25, -0.25]])
    np.testing.assert_allclose(merge_regions(attribution, masks, least_gain=2), expected)


def by_sets(attribution: np.ndarray, masks: np.ndarray, least_gain: int) -> np.ndarray:
    """Algorithm 1 with sets of pixels, everything counted anew in every round."""
    pixels = {p: attribution[p] for p in np.ndindex(attribution.shape)}
    regions = [{p for p in pixels if mask[p]} for mask in masks]
    covered: set[tuple[int, ...]] = set()
    result = np.zeros_like(attribution)
    while True:
        regions = [r for r in regions if len(r - covered) >= least_gain]
        if not regions:
            break
        gains = [np.mean([pixels[p] for p in sorted(r - covered)]) for r in regions]
        best = regions[int(np.argmax(gains))]
        for p in best - covered:
            result[p] = max(gains)
        covered |= best
    rest = set(pixels) - covered
    for p in rest:
        result[p] = np.mean([pixels[q] for q in sorted(rest)])
    return result


@pytest.mark.parametrize("seed", range(4))
def test_merging_equals_the_algorithm_with_sets(seed: int) -> None:
    generator = np.random.default_rng(seed)
    attribution = generator.normal(size=(12, 10))
    masks = generator.random((15, 12, 10)) < generator.uniform(0.05, 0.5, (15, 1, 1))
    np.testing.assert_allclose(
        merge_regions(attribution, masks, least_gain=3), by_sets(attribution, masks, 3)
    )


def test_segments_cover_the_image_and_are_widened() -> None:
    picture = images(1, 40)[0]
    plain = XRAI(build("resnet"), scales=(100, 500), dilation=0).segments(picture)
    assert plain.shape[1:] == (40, 40)
    assert (plain.sum(0) == 2).all()
    wide = XRAI(build("resnet"), scales=(100, 500)).segments(picture)
    expected = [ndimage.binary_dilation(mask, disk(5).astype(bool)) for mask in plain]
    np.testing.assert_array_equal(wide, np.stack(expected))


@pytest.mark.parametrize("side", [(120, 200), pytest.param((224, 224), marks=pytest.mark.slow)])
def test_segments_are_those_of_the_authors_package(side: tuple[int, int]) -> None:
    package = pytest.importorskip("saliency.core.xrai")
    picture = resize(chelsea() / 255, side, anti_aliasing=True)
    theirs = package._get_segments_felzenszwalb(picture)
    ours = XRAI(build("resnet")).segments(torch.from_numpy(np.moveaxis(picture, -1, 0)))
    np.testing.assert_array_equal(ours, np.stack(theirs))


class Failing(torch.nn.Module):
    """Fails in backward passes only."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no backward passes")
        return self.network(x)


def test_a_failing_network_ends_the_segmentation_too() -> None:
    before = threading.active_count()
    network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
    with pytest.raises(RuntimeError, match="backward"):
        XRAI(Failing(network)).attribute(images(3, 32))
    assert threading.active_count() == before


def package_map(x: np.ndarray, base: np.ndarray, masks: np.ndarray) -> np.ndarray:
    core = pytest.importorskip("saliency.core")
    return core.XRAI().GetMask(
        x, call_model_function=None, base_attribution=base, segments=list(masks)
    )


def test_equals_the_authors_package_with_the_same_attributions_and_segments() -> None:
    pytest.importorskip("saliency.core")
    generator = np.random.default_rng(0)
    picture = generator.random((48, 48, 3))
    base = generator.normal(size=(48, 48, 3))
    image = torch.from_numpy(np.moveaxis(picture, -1, 0))
    masks = XRAI(build("resnet"), scales=(50, 250)).segments(image)
    theirs = package_map(picture, base, masks)
    ours = merge_regions(base.max(-1), masks, least_gain=50)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_ranks_like_the_authors_package_from_end_to_end() -> None:
    core = pytest.importorskip("saliency.core")
    model, x = build("resnet"), images(1, 64)

    def gradients(batch: np.ndarray, call_model_args: object = None, expected_keys: object = None):
        tensor = torch.from_numpy(np.moveaxis(batch, -1, 1)).float().requires_grad_()
        (gradient,) = torch.autograd.grad(model(tensor)[:, 1].sum(), tensor)
        return {core.base.INPUT_OUTPUT_GRADIENTS: np.moveaxis(gradient.numpy(), 1, -1)}

    method = XRAI(model, steps=20)
    picture = np.moveaxis(x[0].numpy(), 0, -1)
    theirs = core.XRAI().GetMask(
        picture,
        gradients,
        segments=list(method.segments(x[0])),
        baselines=[np.zeros_like(picture), np.ones_like(picture)],
        batch_size=20,
        extra_parameters=core.XRAIParameters(steps=20),
    )
    ours = method.attribute(x, 1)[0, 0].numpy()
    assert spearmanr(ours.ravel(), theirs.ravel()).statistic >= 0.95


def test_says_where_the_gradients_miss_the_change_and_takes_a_tolerance() -> None:
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )
    x = images(1, 32)
    with torch.no_grad():
        model[1].weight.fill_(0.01)
        model[3].weight.fill_(1.0)
    with pytest.warns(CompletenessWarning, match="XRAI: Integrated Gradients misses the change"):
        coarse = XRAI(model, steps=1).attribute(x, 1)
    fine = XRAI(model, steps=1, tolerance=0.01).attribute(x, 1)
    ninefold = XRAI(model, steps=27).attribute(x, 1)
    torch.testing.assert_close(fine, ninefold)
    assert not torch.allclose(coarse, fine)


@pytest.mark.filterwarnings("ignore:XRAI. Integrated Gradients misses the change")
def test_takes_networks_that_view_their_maps() -> None:
    """They refuse maps with the channels of a pixel in a row, which are quicker on a CPU."""

    class Viewing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = torch.nn.Conv2d(3, 4, 3)
            self.head = torch.nn.Linear(4 * 30 * 30, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.maps(x).relu()
            return self.head(x.view(x.shape[0], -1))

    model, x = Viewing(), images(1, 32)
    maps = XRAI(model, steps=3).attribute(x, 1)
    wide = XRAI(model.double(), steps=3).attribute(x.double(), 1)
    torch.testing.assert_close(maps, wide.float(), rtol=1e-3, atol=1e-6)


def test_channels_batches_and_bad_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 3))
    x = images(2, 32, channels=1)
    together = XRAI(model, steps=3).attribute(x, 1)
    alone = torch.cat([XRAI(model, steps=3, batch_size=2).attribute(i[None], 1) for i in x])
    torch.testing.assert_close(together, alone)
    with pytest.raises(UsageError, match="steps=0"):
        XRAI(model, steps=0)
