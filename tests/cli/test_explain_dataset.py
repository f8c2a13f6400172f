"""``afmi explain-dataset``: its lines, exit codes, refusals, and resuming."""

from __future__ import annotations

import os

import pytest

import afmi as package
from afmi.cli.runs import PiecePrinter, ProgressPrinter
from afmi.cli.terminal import Progress as Bar
from afmi.datasets.folder import DatasetFolder
from afmi.datasets.run import Progress


def test_lines_and_exit_codes(afmi, pictures, small, tmp_path):
    out = tmp_path / "out"
    result = afmi("explain-dataset", pictures, *small)
    count = len(package.open_explanations(out))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{count} explanations → {out}\n"
    manifest = package.open_explanations(out).manifest
    assert manifest["command"].startswith("afmi")
    assert manifest["run"]["method"]["class"] == "AFMI"
    assert afmi("explain-dataset", pictures, *small, "--quiet").stdout == ""

    (pictures / "bad.png").write_bytes(b"no picture")
    refused = afmi("explain-dataset", pictures, *small)
    assert refused.exit_code == 2
    assert f"data: images was {count}, now {count + 1}" in refused.stderr
    more = ["--target", "collie", "--vectors", "contribution", "--no-maps", "--pictures"]
    options = [*small[:2], "--out", tmp_path / "more", *more, "--batch-size", "2", "--threads", "1"]
    result = afmi("explain-dataset", pictures, *options)
    assert result.exit_code == 1
    assert result.stdout == f"{count} explanations → {tmp_path / 'more'}\n"
    assert f"1 of {count + 1} pictures could not be read or explained" in result.stderr
    explained = package.open_explanations(tmp_path / "more")
    assert [*explained.errors] == ["bad.png"]
    assert {*explained.table().column_names} >= {"contribution", "predicted"}
    assert len([*(tmp_path / "more" / "pictures").iterdir()]) == count


def test_ctrl_c_keeps_what_was_finished(afmi, pictures, small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "write_piece", interrupted)
        result = afmi("explain-dataset", pictures, *small)
    assert result.exit_code == 130
    assert "the same command resumes" in result.stderr
    assert not package.open_explanations(tmp_path / "out").complete
    assert afmi("explain-dataset", pictures, *small).exit_code == 0
    assert package.open_explanations(tmp_path / "out").complete


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "a-fm"], "no method is called"),
        (["--method", "gradient", "--vectors", "importance"], "as the vectors of Gradient"),
        (["--layer", "network.99"], "network.99"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker needs --engine ray"),
    ],
)
def test_what_cannot_be_done_is_refused(afmi, pictures, small, options, message):
    result = afmi("explain-dataset", pictures, *small, *options)
    assert result.exit_code == 2
    assert message.casefold() in result.stderr.casefold()


def test_tables_in_a_store(afmi, pictures, small, tmp_path):
    url = f"memory://{tmp_path.name}/explained"
    result = afmi("explain-dataset", pictures, *small[:2], "--out", url)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f" explanations → {url}\n")
    assert package.open_explanations(url).complete


@pytest.mark.skipif(os.name == "nt", reason="processes need Linux or macOS")
@pytest.mark.usefixtures("quick_workers")
def test_workers_give_the_same_tables(afmi, pictures, small, tmp_path):
    options = ["explain-dataset", pictures, *small[:2], "--out"]
    assert afmi(*options, tmp_path / "one").exit_code == 0
    assert afmi(*options, tmp_path / "two", "--workers", "2").exit_code == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / out / "pieces").iterdir()}
        for out in ("one", "two")
    )
    assert one == two


def test_time_left_is_told_where_there_is_no_terminal(capsys):
    times = iter([0.0, 10.0, 40.0, 80.0])
    bar = ProgressPrinter(Bar(1, shown=True), quiet=False, clock=lambda: next(times))
    printer = PiecePrinter(bar)
    for done, total in ((100, 1000), (150, 1000), (300, 1000), (500, None)):
        printer.show(Progress(done, 2, done - 100, total))
    assert (printer.done, printer.failed) == (500, 2)
    assert capsys.readouterr().err.splitlines() == [
        "300 of 1,000 pictures explained, about 2 min left",
        "500 pictures explained",
    ]
