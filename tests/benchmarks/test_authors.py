"""The comparison with the authors' programs: its facts, its numbers, and the docs' table."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import build
from PIL import Image
from torch import nn

from afmi import Classifier
from afmi.methods import CATALOGUE, RISE, IntegratedGradients
from benchmarks.authors import __main__ as command
from benchmarks.authors.defaults import PROGRAMS, defaults_table
from benchmarks.authors.programs import CALLS, Call

SIDE = 32
DOCS = Path(__file__).parents[2] / "docs" / "authors.md"


def tiny() -> Classifier:
    return Classifier(build("vgg"), mean=[0.4] * 3, std=[0.2] * 3, resize=SIDE, crop=SIDE)


def test_every_default_compared_is_a_field_of_the_method() -> None:
    for name, program in PROGRAMS.items():
        method = CATALOGUE[name](nn.Identity())
        assert set(program.defaults) <= {f.name for f in dataclasses.fields(method)}
        without = {key for key in program.defaults if getattr(method, key) is None}
        assert without == set(program.none)
    assert set(CALLS) <= set(PROGRAMS)


def test_the_docs_show_the_defaults_as_they_are() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for line in defaults_table():
        assert line in text, f"run python -m benchmarks.authors, and put its table into {DOCS.name}"


def test_measures_a_method_without_the_authors_programs() -> None:
    model = tiny()
    image = torch.rand(1, 3, SIDE, SIDE)
    name, written, agreement, seeds, randomised = command.row("RISE", model, [image], 8, {})
    assert (name, written, agreement) == ("RISE", "masks=8", "–")
    assert -1 <= float(seeds) < 1
    assert 0 <= float(randomised) <= 1


def test_calls_a_program_from_its_checkout(tmp_path: Path) -> None:
    """A program with RISE's interface: the probability everywhere but in one pixel."""
    (tmp_path / "explanations.py").write_text(
        "import torch\n"
        "class RISE(torch.nn.Module):\n"
        "    def __init__(self, model, size, gpu_batch):\n"
        "        super().__init__()\n"
        "        self.model, self.size = model, size\n"
        "    def generate_masks(self, N, s, p1, savepath):\n"
        "        self.masks = torch.ones(N, *self.size).cuda()\n"
        "    def forward(self, x):\n"
        "        maps = self.model(x)[0][:, None, None] * self.masks[0]\n"
        "        maps[:, 0, 0] = len(self.masks)\n"
        "        return maps\n"
    )
    model, image = tiny(), torch.rand(1, 3, SIDE, SIDE)
    method = RISE(model, masks=3)
    try:
        found = CALLS["RISE"][1](tmp_path, Call(method, image, 4))
    finally:
        sys.modules.pop("explanations", None)
    assert found[0, 0] == 3
    torch.testing.assert_close(found[1, 1], model(image).softmax(1)[0, 4].detach())
    assert str(tmp_path) not in sys.path


def test_integrated_gradients_agree_with_pairs() -> None:
    """Their package is a test dependency; the path from black is the same, the rule is not."""
    pytest.importorskip("saliency.core")
    model, image = tiny(), torch.rand(1, 3, SIDE, SIDE)
    method = IntegratedGradients(model, steps=60)
    ours = method.attribute(image, 4)
    rho = command.agreement("IntegratedGradients", method, image, 4, ours, {"saliency": Path.cwd()})
    assert rho > 0.98
    assert math.isnan(command.agreement("LRP", method, image, 4, ours, {}))


def test_prints_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photograph)
    monkeypatch.setattr(command, "load_model", lambda *_, **__: tiny())
    monkeypatch.setattr(sys, "argv", ["authors", str(photograph), "--methods", "Gradient"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| Gradient | defaults | – | – | 0.")
    monkeypatch.setattr(sys, "argv", ["authors"])
    command.main()
    assert capsys.readouterr().out.splitlines() == defaults_table()
