"""``afmi train``: its lines, files, exit codes, refusals, and an explanation by its masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import afmi.training.masking_model as training
from afmi.cli.runs import ProgressPrinter
from afmi.cli.terminal import Progress
from afmi.cli.train import _step_printer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures of each of two classes of the small network."""
    drawn = np.random.default_rng(0)
    for label in ("tabby cat", "collie"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = drawn.integers(0, 256, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def command(data: Path, nets: Path, tmp_path: Path) -> list[str]:
    out = str(tmp_path / "masks.safetensors")
    options = ["--data", str(data), "--model", f"{nets}:build", "--out", out]
    return ["train", "masking-model", *options, "--batch-size", "2"]


def test_lines_and_then_an_explanation(afmi, command, nets, data, tmp_path):
    result = afmi(*command)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "masks.safetensors"
    spec = f"masking-model:weights={out}"
    assert result.stdout.splitlines() == [f"masks → {out}; `--method {spec}` explains with them"]
    lines = result.stderr.splitlines()
    assert [line.partition(", loss ")[0] for line in lines] == [
        "class selector: step 2 of 2",
        "masks: step 2 of 2",
    ]
    explain = ["explain", data / "collie/0.png", "--model", f"{nets}:build", "--method", spec]
    explained = afmi(*explain, "--out", tmp_path / "explained", "--json")
    assert explained.exit_code == 0, explained.stderr
    assert json.loads(explained.stdout)["method"].startswith("Masking model")
    other = afmi(*explain[:3], "photos", *explain[4:], "--out", tmp_path / "explained")
    assert other.exit_code != 0 and "were trained for another network than photos" in other.stderr

    again = afmi(*command)  # which is done
    assert (again.exit_code, again.stderr) == (0, "")
    assert afmi(*command, "--quiet").stdout == ""


def test_ctrl_c_and_the_same_command(afmi, command, data, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Clock, "is_due", lambda self: True)
        patch.setattr(training._Training, "_mask_gradients", stop)
        result = afmi(*command)
    assert result.exit_code == 130
    assert "interrupted; the last checkpoint is kept, and the same command resumes" in result.stderr
    out = tmp_path / "masks.safetensors"
    assert not out.exists() and out.with_name(f"{out.name}.checkpoint").exists()
    changed = afmi(*command, "--epochs", "3")
    assert changed.exit_code == 2
    assert "of a training with epochs 1, and this one has 3; give the same" in changed.stderr
    resumed = afmi(*command)
    assert resumed.exit_code == 0, resumed.stderr
    assert "class selector" not in resumed.stderr
    whole = out.read_bytes()
    shutil.move(out, tmp_path / "resumed.safetensors")
    assert afmi(*command).exit_code == 0
    assert out.read_bytes() == whole


def test_ctrl_c_before_the_first_checkpoint(afmi, command, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_selector_gradients", stop)
    result = afmi(*command)
    assert result.exit_code == 130
    assert "there is no checkpoint yet, and the same command begins again" in result.stderr
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["masks"], "'masks' is not 'masking-model'"),
        (["masking-model"], "missing option '--data'"),
        (["masking-model", "--data", "nowhere", "--out", "x"], "there is no 'nowhere'"),
        (
            ["masking-model", "--data", "x", "--out", "x", "--batch-size", "1"],
            "is not in the range",
        ),
    ],
)
def test_refusals(afmi, options, message):
    result = afmi("train", *options)
    assert result.exit_code == 2
    assert message in result.stderr, result.stderr


def test_the_time_left_is_that_of_the_phase(capsys):
    now = [0.0]
    step = _step_printer(
        ProgressPrinter(Progress(1, shown=False), quiet=False, clock=lambda: now[0])
    )
    for phase, done, seconds in (
        ("a", 1, 5),
        ("a", 2, 40),
        ("b", 1, 41),
        ("b", 3, 141),
        ("b", 4, 142),
    ):
        now[0] = seconds
        step(phase, done, 4, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "a: step 2 of 4, loss 0.500, about 70 s left",
        "b: step 3 of 4, loss 0.500, about 50 s left",
        "b: step 4 of 4, loss 0.500",
    ]
