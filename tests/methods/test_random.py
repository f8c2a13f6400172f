"""Random: uniform, seeded, the same for an image in any batch."""

from __future__ import annotations

import torch
from networks import build, images

from afmi.methods import Random


def test_values_are_uniform() -> None:
    maps = Random(build("vgg")).attribute(images(1, size=100))
    assert maps.min() >= 0
    assert maps.max() < 1
    counts = torch.histc(maps, 10, 0, 1)
    assert (counts - 1000).abs().max() < 130  # four standard deviations


def test_images_differ_and_batches_do_not_matter() -> None:
    x = images(3)
    maps = Random(build("vgg")).attribute(x)
    assert not torch.equal(maps[0], maps[1])
    assert torch.equal(Random(build("vgg")).attribute(x[1:2])[0], maps[1])
    assert torch.equal(Random(build("vgg")).attribute(x.double().float()), maps)
    assert not torch.equal(Random(build("vgg"), seed=1).attribute(x), maps)
    assert Random(build("vgg"), seed=-1).attribute(x).shape == maps.shape
