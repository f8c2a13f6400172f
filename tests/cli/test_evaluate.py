"""``afmi evaluate``: its lines, exit codes, refusals, resuming, and a report of the results."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from shards import shards_of

import afmi.evaluation.job as job_module
import afmi.evaluation.plan as plan_module
from afmi.cli import runs
from afmi.cli.evaluate import _MethodPrinter
from afmi.cli.runs import EVERY
from afmi.cli.terminal import Progress
from afmi.evaluation import Piece, Results


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures of each of three classes of the small network."""
    drawn = np.random.default_rng(0)
    for label in ("tabby cat", "collie", "Border collie"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = drawn.integers(0, 256, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def command(data: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # Lines that depend on how fast the machine is.
    monkeypatch.setattr(runs, "EVERY", math.inf)
    return ["evaluate", "--data", str(data), *small, "--methods", "a-fmi,CAM,gradient"]


def test_lines_and_then_the_report(afmi, command, tmp_path):
    out = tmp_path / "out"
    result = afmi(*command)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["A-FMI:", "Gradient:"]
    assert all("  Accuracy-AUC 0." in line and " s per picture" in line for line in lines[:2])
    assert lines[2:] == [f"results → {out}; `afmi report {out}` makes the tables"]
    # The small network has a deep head, which CAM does not support and the others do.
    progress = result.stderr.splitlines()
    assert len(progress) == 1, progress
    assert progress[0].startswith("afmi: CAM left out: CAM needs global average pooling")

    report = afmi("report", out)
    assert report.exit_code == 0, report.stderr
    rows = report.stdout.splitlines()
    assert {rows[1].split()[0], rows[2].split()[0]} == {"A-FMI", "Gradient"}
    assert rows[1].endswith("9/9") and rows[3].startswith("CAM left out: ")
    record = json.loads(afmi("report", out, "--json").stdout)
    areas = Results.open(out).values("A-FMI")["insertion/accuracy_auc"]
    key = "insertion/accuracy_auc"
    accuracy = {m["method"]: m["averages"][key]["value"] for m in record["methods"]}
    assert accuracy["A-FMI"] == pytest.approx(areas.mean())
    assert f"A-FMI:  Accuracy-AUC {areas.mean():.4f}" in lines[0]


def test_quiet(afmi, command):
    result = afmi(*command, "--methods", "gradient", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_options_reach_the_run(afmi, command, tmp_path):
    options = ["--metrics", "insertion:canvas=mean", "--limit", "4", "--layer", "0"]
    result = afmi(*command, *options, "--batch-size", "3", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    manifest = Results.open(tmp_path / "out").manifest
    assert list(manifest["run"]["metrics"]) == ["insertion(canvas=mean)"]
    assert manifest["run"]["batch_size"] == 3 and manifest["run"]["data"]["images"] == 4
    assert manifest["command"].startswith("afmi")


def test_ctrl_c_keeps_what_was_finished(afmi, command, data, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 2)
    command = [*command, "--methods", "gradient,random"]
    whole = ["--out", tmp_path / "whole"]
    assert afmi(*command, *whole).exit_code == 0
    measure, calls = job_module.evaluate_shard, []

    def stop(shard: Any) -> Any:
        calls.append(shard)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(shard)

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "evaluate_shard", stop)
        result = afmi(*command)
        assert result.exit_code == 130
        out = tmp_path / "out"
        (line,) = result.stderr.splitlines()
        assert line == (
            f"afmi: interrupted; what was finished is in {out}, and the same command resumes"
        )
        assert len(list(out.rglob("pieces/*/*.parquet"))) == 3
        result = afmi(*command)
    assert result.exit_code == 0, result.stderr
    assert len(calls) == 4 + 7  # five pieces for each method; none of the three is done again
    before, after = (Results.open(folder) for folder in (tmp_path / "whole", out))
    for label in ("Gradient", "Random"):
        expected, actual = before.values(label), after.values(label)
        for name in (name for name in expected if not name.startswith("cost/")):
            np.testing.assert_array_equal(actual[name], expected[name])


def test_a_picture_that_cannot_be_read_is_counted(afmi, command, data):
    (data / "collie" / "1.png").write_bytes(b"not a picture")
    result = afmi(*command, "--methods", "gradient")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line == (
        "afmi: warning: 1 of 9 pictures could not be read or explained; the report says why"
    )
    assert result.stdout.splitlines()[0].endswith("  1 of 9 pictures failed")


def test_a_network_that_gives_nan_scores_nothing(afmi, command, nets, tmp_path):
    file = tmp_path / "nan.py"
    network = (
        "class NaN(nn.Module):\n    def forward(self, x):\n        return net(x) * torch.nan\n"
    )
    file.write_text(
        f"{nets.read_text()}\nnet = build().network\n\n{network}\n"
        "def nan():\n    return Classifier(NaN(), labels=list('abcd'), resize=16, crop=16)\n"
    )
    labelled = tmp_path / "labels.csv"
    pictures = sorted((tmp_path / "data").rglob("*.png"))
    labelled.write_text("image,label\n" + "".join(f"{path},a\n" for path in pictures))
    options = ["--model", f"{file}:nan", "--data", str(labelled), "--methods", "random"]
    result = afmi(*command, *options)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "Random:  9 of 9 pictures failed"
    results = Results.open(tmp_path / "out")
    assert all("NaN instead of logits" in why for why in results.errors("Random").values())
    assert not results.values("Random")


def test_a_damaged_piece_is_named_and_keeps_no_method_waiting(afmi, command, tmp_path):
    command = [*command, "--methods", "gradient,random"]
    assert afmi(*command).exit_code == 0
    (piece,) = (tmp_path / "out" / "pieces" / "gradient").iterdir()
    piece.write_bytes(b"PAR1 damaged within PAR1")
    shutil.rmtree(tmp_path / "out" / "pieces" / "random")
    result = afmi(*command)
    assert result.exit_code == 2
    assert result.stdout.startswith("Random:  Accuracy-AUC")
    warning, error = result.stderr.splitlines()
    assert warning.startswith(f"afmi: warning: '{piece}' is damaged")
    assert error.startswith(f"afmi: '{piece}' is damaged") and "delete it" in error
    piece.unlink()
    assert afmi(*command).exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "gradcamm"], "no method is called 'gradcamm'; did you mean 'gradcam'"),
        (["--methods", ","], "expected one method or more, or 'all'"),
        (["--methods", "a-fmi:avraged=no"], "A-FMI takes no parameter 'avraged'; did you mean"),
        (["--methods", "a-fmi:averaged=3"], "averaged of A-FMI as true or false, got '3'"),
        (["--methods", "CAM"], "holds no measurements: CAM was refused (CAM needs global"),
        (["--metrics", "insertoin"], "no metric is called 'insertoin'; did you mean"),
        (["--metrics", "insertion:canvas=grey"], "expected a reference out of black"),
        (["--metrics", "grid-pointing"], "needs pictures of 4 classes, got 3"),
        (["--data", "nowhere"], "there is no 'nowhere'"),
        (["--data", "empty"], "no image in the folder"),
        (["--data", "dogs"], "'poodle'"),
        (["--layer", "9"], "no layer"),
        (["--model", "squeezenut"], "squeezenut"),
        (["--limit", "0"], "0 is not in the range"),
        (["--out", "file/out"], "cannot be written"),
        (["--out", "file"], "it is a file"),
        (["--out", "."], "it holds other files"),
    ],
)
def test_refusals_are_one_line(afmi, command, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for label in ("collie", "poodle"):
        (tmp_path / "dogs" / label).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "dogs" / label / "a.png")
    methods = [] if "--methods" in args else ["--methods", "grad-cam"]
    result = afmi(*command, *methods, *args)
    assert result.exit_code == 2
    *progress, line = result.stderr.splitlines()
    assert message in line and line.startswith("afmi: ") and "Traceback" not in result.stderr
    # A method that is left out is reported before the end.
    assert len(progress) == (args == ["--methods", "CAM"])


def test_folder_of_another_run(afmi, command):
    command = [*command, "--methods", "gradient"]
    assert afmi(*command, "--limit", "3").exit_code == 0
    result = afmi(*command, "--limit", "4")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "holds results of another run (data: " in line and "--out" in line


def test_an_edited_factory_is_another_run(afmi, command, nets, tmp_path):
    file, code = tmp_path / "edited.py", nets.read_text()
    command = [*command, "--model", f"{file}:build", "--methods", "gradient"]
    file.write_text(code)
    assert afmi(*command).exit_code == 0
    file.write_text(code.replace("nn.ReLU()", "nn.GELU()"))
    result = afmi(*command)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "another run (model: modules: network.1 has changed; model: outputs differ by" in line
    file.write_text(f"# the same again\n{code}")
    assert afmi(*command).exit_code == 0


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_without_a_terminal_now_and_then(capsys):
    clock = Clock()
    clock.now = 1e6  # what happened before the first piece does not count
    printer = _MethodPrinter(Progress(1, shown=True), quiet=False, clock=clock)
    for i in range(9):
        printer.begin(Piece("A-FMI", 4 * i, 4 * i + 4, 100), 100 * i, 900)
        clock.now += 0.4 * EVERY
    out, err = capsys.readouterr()
    assert out == ""
    # 36 s after the beginning, and 36 s after that: a piece takes 12 s.
    assert err.splitlines() == [
        "A-FMI: from picture 12; 33% of this run, about 72 s left",
        "A-FMI: from picture 24; 67% of this run, about 36 s left",
    ]


def test_no_lines_at_once_nor_when_quiet(capsys):
    for quiet in (False, True):
        clock = Clock()
        printer = _MethodPrinter(Progress(1, shown=not quiet), quiet=quiet, clock=clock)
        printer.begin(Piece("A-FMI", 0, 4, 100), 0, 900)
        clock.now = 10 * EVERY if quiet else EVERY / 2
        printer.begin(Piece("A-FMI", 4, 8, 100), 100, 900)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_and_no_lines(capsys, monkeypatch):
    clock, shown = Clock(), []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(1, shown=False)
    monkeypatch.setattr(progress, "within", lambda *step: shown.append(step))
    printer = _MethodPrinter(progress, quiet=False, clock=clock)
    for i in range(3):
        printer.begin(Piece("A-FMI", 4 * i, 4 * i + 4, 100), 100.5 * i, 301.5)
        clock.now += 2 * EVERY
    assert shown == [("passes through the network", done, 301) for done in (0, 100, 201)]
    assert capsys.readouterr() == ("", "")


def test_tar_files_and_urls_give_the_lines_of_the_folder(afmi, command, data, small, tmp_path):
    labels = {folder.name: folder.name for folder in data.iterdir()}
    (content,) = shards_of(data, 99, labels).values()
    (tmp_path / "a.tar").write_bytes(content)
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}.tar", content)
    rows = []
    for number, source in enumerate((data, tmp_path / "a.tar", f"memory://{tmp_path.name}.tar")):
        options = ["--out", tmp_path / f"out{number}", "--metrics", "insertion"]
        result = afmi(*command, "--data", source, *options, "--methods", "gradient,random")
        assert result.exit_code == 0, result.stderr
        rows.append(result.stdout.splitlines()[:2])
    assert rows[0] == rows[1] == rows[2]
    result = afmi(*command, "--data", tmp_path / "a.tar", "--label-key", "json")
    assert result.exit_code == 2
    assert "label_key= (--label-key)" in result.stderr


def test_progress_of_data_whose_length_nobody_knows(capsys, monkeypatch):
    times = iter([0.0, 60.0])
    printer = _MethodPrinter(Progress(1, shown=True), quiet=False, clock=lambda: next(times))
    printer.begin(Piece("A-FMI", 0, 4, 100), 0, math.inf)
    printer.begin(Piece("A-FMI", 4, 8, 1000), 1000, math.inf)
    expected = "A-FMI: from picture 4; 1,000 passes through the network so far\n"
    assert capsys.readouterr().err == expected


def test_an_endless_bar_is_shown_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(1, shown=True) as progress:
        progress.within("passes", 3, None)
        progress.within("passes", 4, None)
    assert "passes" in capsys.readouterr().err
