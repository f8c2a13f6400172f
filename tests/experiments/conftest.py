"""A network that distinguishes colours, in a file, and pictures of one and of two colours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afmi.experiments import Request

NETS = '''
import torch
from torch import nn

from afmi import Classifier

LABELS = ["collie", "Ibizan hound", "dogsled", "white"]


def build(head=None, size=16):
    """Logits: the mean of red, of green, of blue, and of all three against a constant."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[:3, :, 0, 0] = torch.eye(3)
        network[0].weight[3] = 1.0
        network[0].bias.zero_()
        network[4].weight.copy_(torch.diag(torch.tensor([8.0, 8.0, 8.0, 1.0])))
        network[4].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -9.0]))
    return Classifier(network, labels=LABELS, resize=size, crop=size, name="colours")


def small():
    return build(size=12)


def saturated():
    """The paper's example of Section 3 behind the mean of 2 x red: its gradient at 2 is 0."""
    convolution, first, second, last = nn.Conv2d(3, 1, 1), *(nn.Linear(1, n) for n in (1, 1, 2))
    for layer, weight, bias in (
        (convolution, [[[[2.0]], [[0.0]], [[0.0]]]], [0.0]),
        (first, [[-1.0]], [1.0]),
        (second, [[-1.0]], [2.0]),
        (last, [[1.0], [0.0]], [0.0, 0.0]),
    ):
        layer.weight.data = torch.tensor(weight)
        layer.bias.data = torch.tensor(bias)
    network = nn.Sequential(
        *(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(first, nn.ReLU(), second, nn.ReLU(), last),
    )
    return Classifier(network, labels=LABELS[:2], resize=16, crop=16, name="saturated")


def flat():
    """Takes 16x16 pixels only."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4))
    return Classifier(network, labels=LABELS, resize=16, crop=16, name="flat")
'''

COLOURS = {"collie": (200, 20), "Ibizan hound": (20, 200), "dogsled": (10, 30)}


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File whose functions ``build``, ``small``, ``saturated`` and ``flat`` make networks."""
    path = tmp_path_factory.mktemp("nets") / "colour_nets.py"
    path.write_text(NETS)
    return path


def picture(left: str, right: str | None = None) -> Image.Image:
    """Paint the halves in the colours of classes; blue increases from top to bottom."""
    image = Image.new("RGB", (16, 16))
    for x in range(16):
        red, green = COLOURS[left if x < 8 or right is None else right]
        for y in range(16):
            blue = 90 + 10 * y if left == "dogsled" else 2 * y + x // 4
            image.putpixel((x, y), (red + x % 3, green + x % 5, blue))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of ImageNet's layout with two pictures of each of three classes.

    The first collie by name is none: the network takes it for the Ibizan hound.
    """
    root = tmp_path / "imagenet"
    for wnid, label in (
        ("n02091244", "Ibizan hound"),
        ("n02106030", "collie"),
        ("n03218198", "dogsled"),
    ):
        (root / "val" / wnid).mkdir(parents=True)
        first = "Ibizan hound" if label == "collie" else label
        picture(first).save(root / "val" / wnid / "a.png")
        picture(label).save(root / "val" / wnid / "b.png")
    return root


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A picture whose left half is a collie and whose right half is an Ibizan hound."""
    path = tmp_path / "both.png"
    picture("collie", "Ibizan hound").save(path)
    return path


@pytest.fixture
def request_for(nets: Path, tmp_path: Path) -> Callable[..., tuple[Request, list[str]]]:
    """Make a request for the network of colours; what is reported ends up in the list."""

    def make(network: str = "build", **given: object) -> tuple[Request, list[str]]:
        lines: list[str] = []
        models = tuple(f"{nets}:{name}" for name in network.split(","))
        options = {"out": tmp_path / "out", "models": models, "report": lines.append, **given}
        return Request(**options), lines  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's files with easy digits: each class has a bright bar at another height."""
    folder = tmp_path_factory.mktemp("mnist")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for prefix, count in (("train", 160), ("t10k", 60)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = drawn.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for i, label in enumerate(labels):
            pixels[i, 2 + 2 * label : 5 + 2 * label, 3:25] = 250
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + labels.tobytes()
        )
    return folder
