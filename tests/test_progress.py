"""Progress is reported to whoever asked for it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import afmi
from afmi.progress import Bars, is_shown, reporting, track


def test_progress_is_reported_only_inside_the_block() -> None:
    steps: list[tuple[str, int, int]] = []
    assert list(track(range(2), "quiet")) == [0, 1]
    with reporting(lambda *step: steps.append(step)):
        assert list(track(range(2), "loud")) == [0, 1]
        with reporting(None):
            list(track(range(2), "quiet"))
    list(track(range(2), "quiet"))
    assert steps == [("loud", 0, 2), ("loud", 1, 2), ("loud", 2, 2)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_in(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in place of stderr; within the test, since pytest changes it before."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


def test_long_calls_show_themselves_in_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal_in(monkeypatch)
    assert is_shown(None)
    for reporter in (None, lambda *_: None):
        with reporting(reporter):  # a program shows it already, or wants it silent
            assert not is_shown(None)
            assert is_shown(True)
    assert not is_shown(False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not is_shown(None)
    assert is_shown(True)


def test_notebooks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    notebook = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert is_shown(None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not is_shown(None)


@pytest.fixture
def model() -> afmi.Classifier:
    return afmi.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))


def test_explain_many_counts_its_images(
    monkeypatch: pytest.MonkeyPatch, model: afmi.Classifier
) -> None:
    terminal = terminal_in(monkeypatch)
    images = torch.rand(5, 3, 4, 4)
    silent = list(afmi.explain_many(model, images, method="gradient", progress=False))
    assert terminal.getvalue() == ""
    counts: list[tuple[int, int | None]] = []
    show = Bars.show
    record = lambda bars, *step: counts.append(step[1:]) or show(bars, *step)  # noqa: E731
    monkeypatch.setattr(Bars, "show", record)
    some = afmi.explain_many(model, images, method="gradient", batch_size=2)
    steps: list[tuple[str, int, int]] = []
    shown = [next(some)]
    with reporting(lambda *step: steps.append(step)):  # of the caller's own, between two images
        list(track(range(1), "mine"))
    shown += some
    assert "images explained" in terminal.getvalue()
    assert counts == [(n, 5) for n in range(6)]
    assert steps == [("mine", 0, 1), ("mine", 1, 1)]
    for one, other in zip(silent, shown, strict=True):
        assert isinstance(one, afmi.Explanation) and isinstance(other, afmi.Explanation)
        assert torch.equal(one.map, other.map)


def test_other_long_calls_show_how_far_they_came(
    monkeypatch: pytest.MonkeyPatch, model: afmi.Classifier, tmp_path: Path
) -> None:
    terminal = terminal_in(monkeypatch)
    image = torch.rand(3, 4, 4)
    afmi.compare(model, image, methods="gradient,random", fractions=[0.5], progress=True)
    assert "methods compared" in terminal.getvalue()
    data = [(image, 0), (image, 1)]
    afmi.evaluate(
        model, data, tmp_path / "r", methods="random", metrics="cost", examples=0, progress=True
    )
    assert "passes through the network" in terminal.getvalue()
    pixels = [np.zeros((4, 4, 3), np.uint8)] * 3
    afmi.explain_dataset(model, pixels, tmp_path / "d", method="gradient", progress=True)
    assert "images explained" in terminal.getvalue()
    before = terminal.getvalue()
    afmi.explain_dataset(model, pixels, tmp_path / "e", method="gradient", progress=False)
    assert terminal.getvalue() == before
