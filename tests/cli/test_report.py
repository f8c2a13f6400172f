"""``afmi report``: the table, the files, and refusals in one line."""

from __future__ import annotations

import json

import pytest
from results_folder import make_results


def test_the_table_and_the_paths_are_printed(afmi, tmp_path):
    folder = make_results(tmp_path / "results", refused={"CAM": "needs pooling"}, failed=[1])
    result = afmi("report", folder)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["method", "Accuracy-AUC"]
    names = [line.split("  ")[0] for line in lines[1:7]]
    assert names == ["A-FMI", "Grad-CAM", "XRAI", "DeepLIFT", "Gradient", "Random"]
    assert all(line.endswith("40/40, 1 failed") for line in lines[1:7])
    assert lines[7] == "CAM left out: needs pooling"
    assert lines[8].startswith("Highest on Accuracy-AUC is A-FMI: ")
    files = [line.removeprefix("→ ") for line in lines[9:]]
    assert files == [
        str(folder / name) for name in ("report.html", "table1.csv", "curves.csv", "pairs.csv")
    ]
    assert all((folder / name).stat().st_size for name in files)


def test_json_holds_the_numbers(afmi, tmp_path):
    folder, out = make_results(tmp_path / "results"), tmp_path / "out"
    result = afmi("report", folder, "--json", "--out", out, "--methods", "a-fmi, Gradient")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert [m["method"] for m in record["methods"]] == ["A-FMI", "Gradient"]
    assert record["leading"] == "insertion/accuracy_auc"
    accuracy = record["methods"][0]["averages"]["insertion/accuracy_auc"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert (accuracy["count"], accuracy["missing"]) == (40, 0)
    assert record["methods"][1]["averages"]["completeness/median_residual"] is None
    assert record["finished"] is True
    assert record["files"]["page"] == str(out / "report.html")


def test_an_unfinished_evaluation_is_reported_with_a_warning(afmi, tmp_path):
    result = afmi("report", make_results(tmp_path, done={"XRAI": 3}))
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("afmi: warning: Not finished: XRAI (3 of 40 pictures).")


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("nowhere", [], "no folder is called"),
        (".", [], "holds no evaluation (no manifest.json)"),
        ("results", ["--methods", "gradcamm"], "no method called 'gradcamm'; did you mean"),
        ("results", ["--methods", ","], "expected one method or more, out of Random, "),
        ("results", ["--out", "file/out"], "cannot write into the folder"),
    ],
)
def test_refusals_are_one_line(afmi, tmp_path, monkeypatch, folder, options, message):
    monkeypatch.chdir(tmp_path)
    make_results(tmp_path / "results", images=3)
    (tmp_path / "file").touch()
    result = afmi("report", folder, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "results" / "report.html").exists()
