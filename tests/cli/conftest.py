"""A small labelled network in a file, a folder of pictures, and a quick way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from afmi.cli import cli

NETS = """
import time

import torch
from torch import nn

from afmi import Classifier


def build():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 4)
    )
    labels = ["tabby cat", "tiger cat", "collie", "Border collie"]
    return Classifier(network, labels=labels, resize=16, crop=16, name="small")


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build().network

    def forward(self, x):
        time.sleep(0.2)
        return self.inner(x)


def nan_on_white():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build().network

        def forward(self, x):
            white = x.mean((1, 2, 3)) > 0.99
            return torch.where(white[:, None], torch.nan, self.inner(x))

    return Classifier(Strange(), resize=16, crop=16, layer="inner.0")


def bands(channels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4))
    shown = (3, 2, 1) if channels > 3 else None
    return Classifier(network, resize=16, crop=16, name="bands", shown_bands=shown)


def grey():
    return bands(1)


def four():
    return bands(4)


def unlabelled():
    return build().network
"""


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of networks: ``build``, ``grey``, ``four``, ``Slow`` and others make them."""
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return path


@pytest.fixture
def small(nets: Path, tmp_path: Path) -> list[str]:
    """Options that choose the small network and the folder for results, ``tmp_path / "out"``."""
    return ["--model", f"{nets}:build", "--out", str(tmp_path / "out")]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder with ``a.png``, ``b.png`` and, in a subfolder, ``c.png``."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, color in {"a": "red", "b": "green", "more/c": "blue"}.items():
        picture = Image.new("RGB", (24, 20), color)
        picture.paste("white", (4, 4, 12, 9))
        picture.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def afmi() -> Callable[..., Result]:
    """Run ``afmi`` with these arguments, in this process."""

    def run(*args: object) -> Result:
        return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="afmi")

    return run
