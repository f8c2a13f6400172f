"""Fixtures for all tests, and the summary of what was skipped because data is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SHARED = Path(os.environ.get("AFMI_SHARED", Path(__file__).parents[2] / "shared"))


def _needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path.name}, which is not on this machine (set AFMI_SHARED)")
    return path


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder of ImageNet photographs ``<index>_<wnid>_<name>.jpg``."""
    return _needed(SHARED / "data" / "imagenet_samples")


@pytest.fixture(scope="session")
def photos11() -> Path:
    """Folder with ``train`` and ``val`` photographs of the embedded network's classes."""
    return _needed(SHARED / "data" / "photos11")


@pytest.fixture(scope="session")
def squeezenet_weights() -> Path:
    """Trained weights of torchvision's squeezenet1_0."""
    return _needed(SHARED / "weights" / "squeezenet1_0_imagenet.safetensors")


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of ``Local(workers=2)`` start in a moment."""
    if os.name == "nt":  # which has no such processes
        return
    import quick_workers

    import afmi.engines.local

    quick_workers.ready()
    quick = SimpleNamespace(**{**vars(subprocess), "Popen": quick_workers.ForkedProcess})
    monkeypatch.setattr(afmi.engines.local, "subprocess", quick)
