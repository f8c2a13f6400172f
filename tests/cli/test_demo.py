"""``afmi demo``: passes its folder on; other tests check what the demo draws."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path


def test_the_demo_runs_in_its_folder(afmi, monkeypatch, tmp_path):
    def run_demo(out: Path, report: Callable[[str], object]) -> None:
        assert out.is_dir()
        report(f"page: {out / 'index.html'}")

    stand_in = types.ModuleType("afmi.demo.run")
    stand_in.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "afmi.demo.run", stand_in)
    result = afmi("demo", "--out", tmp_path / "tour")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"page: {tmp_path / 'tour' / 'index.html'}\n"


def test_an_unwritable_folder_is_refused(afmi, tmp_path):
    (tmp_path / "file").touch()
    result = afmi("demo", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "choose another with --out" in result.stderr
