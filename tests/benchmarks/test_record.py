"""Rows: read back as they were written, joined, and shown as a table and as pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.speed import picture
from benchmarks.speed.record import Row, markdown, merged, missed, read, write

ROW = Row(
    "feature maps",
    "resnet50",
    "A-FMI",
    "forward",
    batch=8,
    size=224,
    ratio=1.04,
    low=1.02,
    high=1.08,
    rounds=5,
    seconds=0.61,
    peak_mib=38.0,
    target=1.05,
    level="quick",
    date="2026-01-01",
    machine="A processor, with a comma",
    threads=2,
    clock="wall",
    versions="torch 2",
)
WRONG = Row("feature maps", "resnet50", "theirs", agreement=0.5, agreement_min=0.25, note="wrong")


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "benchmarks.csv"
    write(path, [ROW, WRONG])
    first, second = read(path)
    assert repr(first) == repr(ROW)
    assert repr(second) == repr(WRONG)


def test_rows_that_were_measured_again_replace_the_old() -> None:
    options, cuda = replace(ROW, scenario="options"), replace(ROW, device="cuda")
    again = replace(ROW, ratio=2.0)
    assert merged([ROW, ROW, options, cuda], [again]) == [options, cuda, again]


def test_a_target_is_met_missed_or_within_the_spread() -> None:
    assert ROW.verdict == "yes"
    near, far = replace(ROW, ratio=1.06), replace(ROW, ratio=1.07, low=1.06)
    assert near.verdict == "within spread"
    assert far.verdict == "**no**"
    assert replace(ROW, target=math.nan).verdict == ""
    assert replace(ROW, ratio=math.nan).verdict == ""
    assert missed([ROW, near, far, WRONG]) == [near, far]


def test_the_table_tells_of_ratios_and_of_failures() -> None:
    lines = markdown([ROW, WRONG, replace(ROW, device="cuda", setting="bf16 autocast")]).split("\n")
    assert lines[2].startswith(
        "| resnet50 | 8 | 224 | A-FMI / forward | 1.040 | 1.020–1.080 | 0.61 | 38 | ≤ 1.05 | yes |"
    )
    assert "| theirs | – |" in lines[3]
    assert "0.5000, least 0.2500 | wrong |" in lines[3]
    assert lines[4].startswith("| resnet50 (cuda, bf16 autocast) |")
    assert len({line.count("|") for line in lines}) == 1


def test_pictures_are_drawn_for_each_scenario_and_for_growth(tmp_path: Path) -> None:
    grown = [
        replace(ROW, scenario="growth: classes", x=float(x), ratio=1 + x / 100, target=math.nan)
        for x in (1, 10)
    ]
    rows = [ROW, WRONG, replace(ROW, target=1.0), replace(ROW, device="cuda"), *grown]
    paths = picture.draw(rows, tmp_path)
    assert [path.name for path in paths] == [
        "benchmarks-feature-maps-cpu.png",
        "benchmarks-feature-maps-cuda.png",
        "benchmarks-growth.png",
    ]
    for path in paths:
        with Image.open(path) as drawn:
            assert min(drawn.size) > 100


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert picture.draw([WRONG], tmp_path) == []
