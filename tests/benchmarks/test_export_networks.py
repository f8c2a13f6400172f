"""The table of exported networks: its order, resumed runs, and processes that end badly."""

from __future__ import annotations

import csv
import operator
import sys
from pathlib import Path

import pytest

from benchmarks import export_networks


def _known(path: Path) -> None:
    sizes = {"large": ("a", "9.0"), "small": ("a", "1.0"), "other": ("b", "5.0")}
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(export_networks.COLUMNS[:3])
        table.writerows((name, *of_it) for name, of_it in sizes.items())


def test_the_smallest_of_each_family_comes_first(tmp_path: Path) -> None:
    _known(tmp_path / "known.csv")
    rows = export_networks.read(tmp_path / "known.csv").values()
    assert export_networks.ordered(rows) == ["small", "other", "large"]


def test_it_goes_on_after_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _known(tmp_path / "known.csv")
    monkeypatch.setattr(export_networks, "KNOWN", tmp_path / "known.csv")
    done: list[str] = []

    def interrupted(name: str, limit: float) -> dict[str, str]:
        if name in stopping:
            raise KeyboardInterrupt
        done.append(name)
        return {"outcome": "exported" if limit == 7 else "failed"}

    monkeypatch.setattr(export_networks, "row_within", interrupted)
    out = tmp_path / "exports.csv"
    monkeypatch.setattr(sys, "argv", ["export_networks", "--limit", "7", "--out", str(out)])
    stopping = {"other"}
    with pytest.raises(KeyboardInterrupt):
        export_networks.main()
    stopping = set()
    export_networks.main()
    assert done == ["small", "other", "large"]
    rows = export_networks.read(out)
    assert list(rows) == done
    assert {row["outcome"] for row in rows.values()} == {"exported"}
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--again", "oth"])
    export_networks.main()
    assert done[3:] == ["other"]


@pytest.mark.slow
def test_a_process_that_ends_badly_or_late_is_a_row() -> None:
    row = export_networks.row_within("resnet18", 60, operator.truediv)
    assert row == {"outcome": "failed", "reason": "the process ended with 1"}
    row = export_networks.row_within("torchvision:resnet18", 0.01)
    assert row == {"outcome": "failed", "reason": "took longer than 0.01 seconds"}
