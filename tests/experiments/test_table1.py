"""Table 1 and Figures 6 and 9 on a small network, which share what they measure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afmi.errors import ModelError, UsageError
from afmi.experiments import Request, experiment_named
from afmi.experiments.shared.published import ACCURACY_AUC

FACTORY = """
import torch
from torch import nn
from afmi import Classifier

def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    return Classifier(net, labels=["cat", "dog", "newt"], resize=16, crop=16, name="{name}")
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0)
    for label in ("cat", "dog", "newt"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = drawn.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def request(tmp_path: Path, photos: Path, *names: str, lines: list[str]) -> Request:
    for name in names:
        (tmp_path / f"{name}.py").write_text(FACTORY.replace("{name}", name))
    return Request(
        out=tmp_path / "out",
        imagenet=photos,
        models=tuple(f"{tmp_path / name}.py:build" for name in names),
        methods="random,gradient,a-fmi",
        limit=6,
        report=lines.append,
    )


def test_table_has_the_papers_figures_beside_ours(tmp_path: Path, photos: Path) -> None:
    lines: list[str] = []
    given = request(tmp_path, photos, "vgg19", lines=lines)
    result = experiment_named("table1")().run(given)
    assert {row["method"] for row in result.rows} == {"Random", "Gradient", "A-FMI"}
    for row in result.rows:
        assert row["paper"] == ACCURACY_AUC["vgg19"][row["method"]]
        assert row["low"] <= row["Accuracy-AUC"] <= row["high"] and row["images"] == 6
    table, page = result.files
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert page.read_text().startswith("<!doctype html>")


def test_figures_reuse_what_was_measured(tmp_path: Path, photos: Path) -> None:
    lines: list[str] = []
    given = request(tmp_path, photos, "first", "second", lines=lines)
    experiment_named("table1")().run(given)
    pieces = {p: p.stat().st_mtime_ns for p in given.out.rglob("pieces/*/*.parquet")}
    assert len(pieces) == 6
    for name, panels in (("figure6", 2), ("figure9", 3)):
        result = experiment_named(name)().run(given)
        picture, areas, points = result.files
        assert areas.name == f"{name}.csv" and len(result.rows) == 6
        with Image.open(picture) as drawn:
            assert drawn.width > 500 * panels
        with points.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == panels * 3 * 20
        assert {row["PI"] for row in rows} == {f"{5.0 * i}" for i in range(1, 21)}
    assert pieces == {p: p.stat().st_mtime_ns for p in given.out.rglob("pieces/*/*.parquet")}


def test_missing_data_and_weights_are_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--imagenet DIR"):
        experiment_named("table1")().run(Request(out=tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise ModelError("no network")

    monkeypatch.setattr("afmi.experiments.shared.base.load_model", refuse)
    with pytest.raises(ModelError, match=r"vgg19.*fetch https://.*vgg19.*--weights"):
        experiment_named("table1")().run(Request(out=tmp_path, imagenet=photos))
