"""``afmi audit``: its lines, its files, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shortcuts import images

NETS = """
import sys

sys.path.insert(0, {tests!r})
from shortcuts import network as build
"""


@pytest.fixture
def labelled(tmp_path):
    """A folder with a folder of pictures for each class, and options for the network of them."""
    for number, (image, label) in enumerate(images(30, 24, 8)):
        folder = tmp_path / "data" / ("cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    nets = tmp_path / "nets.py"
    nets.write_text(NETS.format(tests=str(Path(__file__).parents[1])))
    return ["--data", tmp_path / "data", "--model", f"{nets}:build", "--out", tmp_path / "out"]


def test_a_shortcut_is_named_first(afmi, labelled, tmp_path):
    result = afmi("audit", *labelled)
    assert result.exit_code == 0, result.stderr
    heading, first, second, finding = result.stdout.splitlines()
    assert heading.split() == ["class", "pictures", "predicted", "as", "it", "isolation", "verdict"]
    assert first.startswith("cat")
    assert first.endswith("a second reason, confirmed")
    assert second.endswith("one reason")
    page = tmp_path / "out" / "audit.html"
    assert finding == f"1 of 2 classes has a second reason: cat (confirmed). → {page}"
    assert page.exists()
    (tmp_path / "data" / "dog" / "bad.png").write_bytes(b"no picture")
    again = afmi("audit", *labelled[:-1], tmp_path / "more", "--json", "--no-confirm")
    assert "1 of 55 pictures could not be read" in again.stderr
    record = json.loads(again.stdout)
    assert record["classes"][0]["verdict"] == "a second reason, not confirmed"
    assert afmi("audit", *labelled[:-1], tmp_path / "more", "--quiet", "--no-confirm").stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "cat, newt"], "newt"),
        (["--threshold", "2"], "--threshold"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_refusals(options, message, afmi, labelled):
    result = afmi("audit", *labelled, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout
