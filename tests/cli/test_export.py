"""``afmi export``: one file, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from afmi.cli import cli
from afmi.cli.export import _classes


def test_a_file_for_one_class(nets: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    arguments = ["export", "--model", f"{nets}:build", "--target", "1", "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["path"] == str(out)
    assert record["inputs"] == ["images"]
    assert record["metadata"]["classes"] == "[1]"
    assert out.stat().st_size > 0


def test_what_cannot_be_written_is_one_line(nets: Path, tmp_path: Path) -> None:
    arguments = ["export", "--model", f"{nets}:build", "--reference", "blurred"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "net.pt2")])
    assert result.exit_code == 2
    assert result.stderr.startswith("afmi: ")
    assert result.stderr.count("\n") == 1


def test_what_the_targets_mean() -> None:
    assert _classes(()) == "given"
    assert _classes(("predicted",)) == "predicted"
    assert _classes(("3", "collie")) == [3, "collie"]
