"""A photograph, and no network connection: every download fails."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from skimage.data import chelsea


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let every download fail as it does without a network, and hide downloads from before."""

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    def no_hub(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    torch_home = tmp_path / "torch_home"
    monkeypatch.setenv("TORCH_HOME", str(torch_home))


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A cat, 451 pixels wide and 300 high."""
    return Image.fromarray(chelsea())
