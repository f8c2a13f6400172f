"""Eigen-CAM: by hand, the best map of rank one, signs, and why a package differs."""

from __future__ import annotations

import pytest
import torch
from layer_maps import PLACES, maps_and_gradients, pooled
from networks import build, images

from afmi.methods import EigenCAM
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    """Maps a u and b u have the first component √(a² + b²) u."""
    u = torch.tensor([[1.0, 0.0], [2.0, 5.0]]).double()
    x = torch.stack([3 * u, 4 * u])[None]
    for target in (0, 1):
        maps = EigenCAM(pooled(), layer="1").attribute(x, target)
        torch.testing.assert_close(maps[0, 0], 5 * u)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    features = maps_and_gradients(model, layer, x, 1)[0].flatten(2).mT  # (N, hw, K)
    # v_1 by power iteration, from the vector whose entries are equal.
    v = torch.ones(2, features.shape[2], 1, dtype=torch.float64)
    for _ in range(3000):
        v = features.mT @ (features @ v)
        v = v / v.norm(dim=1, keepdim=True)
    side = int(features.shape[1] ** 0.5)
    expected = (features @ v).view(2, 1, side, side)
    torch.testing.assert_close(
        EigenCAM(model).attribute(x, 1), upsample(expected, (20, 20)), rtol=1e-6, atol=1e-8
    )


def test_the_sign_makes_the_sum_positive() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 2, 1, bias=False), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(-torch.eye(2)[:, :, None, None])
    maps = EigenCAM(model, layer="0").attribute(images(4, 6, channels=2).double(), 0)
    assert bool((maps.sum((1, 2, 3)) > 0).all())


def test_the_grad_cam_package_centres_the_maps() -> None:
    """Which the paper does not; with that it is the same map but for its sign."""
    package = pytest.importorskip("pytorch_grad_cam.utils.svd_on_activations")
    features = images(1, 6, channels=5).double()
    centred = features - features.mean((2, 3), keepdim=True)
    from afmi.methods.feature_maps.eigen_cam import _component

    theirs = torch.from_numpy(package.get_2d_projection(features.numpy())).double()[0]
    ours = _component(centred)[0, 0]
    assert min(float((ours - theirs).abs().max()), float((ours + theirs).abs().max())) < 1e-5
    plain = torch.stack([_component(features).flatten(), theirs.flatten()])
    assert abs(float(torch.corrcoef(plain)[0, 1])) < 0.9
