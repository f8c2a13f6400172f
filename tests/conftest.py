"""Fixtures for all tests, and the summary of what was skipped because data is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from afmi.methods.regions import xrai

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


@pytest.fixture(autouse=True)
def _small_segments(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let XRAI cut small pictures into segments, but where its segments are tested."""
    side = xrai._SIDE
    if request.path.name != "test_xrai.py":
        xrai._SIDE = 64
    yield
    xrai._SIDE = side


@pytest.fixture
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a figure of a few pixels with each explanation, where only the files matter."""
    from matplotlib.figure import Figure

    import afmi.explanation

    monkeypatch.setattr(afmi.explanation.Explanation, "figure", lambda self: Figure((1, 1), dpi=20))


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
