"""Quantus measures our methods by the function that it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from afmi.compat.quantus import explain_func
from afmi.errors import TargetError, UsageError
from afmi.methods import AFMI


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)


CLASSES = np.array([0, 1, 2, 3])


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
def test_maps_are_ours(wrap: Any) -> None:
    network = _network()
    maps = explain_func(network, wrap(_images()), wrap(CLASSES), averaged=False, reference="white")
    method = AFMI(network, averaged=False, reference="white")
    expected = method.attribute(torch.from_numpy(_images()), torch.from_numpy(CLASSES))
    assert isinstance(maps, np.ndarray) and maps.dtype == np.float32
    np.testing.assert_array_equal(maps, expected.numpy())


def test_images_in_numpy_s_own_precision() -> None:
    """Float64, as arithmetic in numpy often gives it: Quantus' own functions take it."""
    maps = explain_func(_network(), _images().astype("float64"), CLASSES)
    assert maps.dtype == np.float64
    np.testing.assert_array_equal(maps, explain_func(_network(), _images(), CLASSES))


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda"):
        explain_func(_network(), _images(), CLASSES, device="cuda")
    with pytest.raises(UsageError, match="samples"):
        explain_func(_network(), _images(), CLASSES, samples=5)
    with pytest.raises(TargetError, match="from 0 to 4, got 9"):
        explain_func(_network(), _images(), CLASSES + 6)
    with pytest.raises(TargetError, match=r"got \[True, 0, 1\]"):
        explain_func(_network(), _images(), [True, 0, 1])


@pytest.fixture(scope="module")
def quantus() -> Any:
    return pytest.importorskip("quantus", reason="quantus, the peer, is not installed")


def _measured(metric: Any, **parameters: Any) -> np.ndarray:
    values = metric(
        model=_network(),
        x_batch=_images(),
        y_batch=CLASSES,
        a_batch=None,
        device="cpu",
        explain_func=explain_func,
        explain_func_kwargs=parameters,
    )
    return np.array(values)


def test_sparseness_is_the_gini_index_of_our_maps(quantus: Any) -> None:
    values = _measured(quantus.Sparseness(disable_warnings=True), method="layer-cam")
    maps = explain_func(_network(), _images(), CLASSES, method="layer-cam").reshape(4, -1)
    sizes = np.sort(np.abs(maps), axis=1)
    count = sizes.shape[1]
    ranks = 2 * np.arange(1, count + 1) - count - 1
    np.testing.assert_allclose(values, (ranks * sizes).sum(1) / count / sizes.sum(1), atol=1e-4)


def test_pixel_flipping_begins_with_the_pixels_that_count(quantus: Any) -> None:
    """On a network that adds up pixels the exact map has what each adds, so the curve is known."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 5, bias=False)).eval()
    metric = quantus.PixelFlipping(features_in_step=32, perturb_baseline=0.0, disable_warnings=True)
    images = _images()[:, :1]
    curves = metric(
        model=network,
        x_batch=images,
        y_batch=CLASSES,
        a_batch=None,
        softmax=False,
        explain_func=explain_func,
        explain_func_kwargs={"method": "input-x-gradient"},
    )
    weights = network[1].weight.detach().numpy()
    for curve, image, of in zip(curves, images.reshape(4, 256), CLASSES, strict=True):
        adds = weights[of] * image
        left = adds.sum() - np.cumsum(np.sort(adds)[::-1].reshape(-1, 32).sum(1))
        np.testing.assert_allclose(np.ravel(curve), left, atol=1e-4)
