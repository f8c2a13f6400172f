"""``afmi reproduce``: the list, a figure, the files beside it, and refusals in one line."""

from __future__ import annotations

import json

import pytest


def test_without_a_name_the_experiments_are_listed(afmi):
    result = afmi("reproduce")
    assert result.exit_code == 0, result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["name", "shows", "needs", "networks", "paper"]
    names = [line.split()[0] for line in lines]
    assert {"figure1", "figure3", "figure4", "figure5", "figure7", "figure8"} <= set(names)
    listed = json.loads(afmi("reproduce", "--json").stdout)
    assert [entry["name"] for entry in listed] == names
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["figure7"]["models"][:2] == ["vgg16", "vgg19"]
    assert by_name["figure1"]["methods"][-1] == "A-FMI"


def test_a_figure_with_the_numbers_and_the_papers_finding(afmi, small, pictures, tmp_path):
    result = afmi(
        *("reproduce", "figure1", "--image", pictures / "a.png", *small),
        *("--methods", "a-fmi,random", "--target", "collie"),
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"picture {pictures / 'a.png'}"
    assert lines[1].startswith("2 methods, 1 map each, about ")
    assert lines[2].startswith("a  collie  A-FMI  ")
    assert any(line.startswith("The paper (Figure 1, Section 1): ") for line in lines)
    out = tmp_path / "out"
    assert lines[-3:] == [f"→ {out / f'figure1.{ending}'}" for ending in ("png", "csv", "json")]
    assert all((out / f"figure1.{ending}").is_file() for ending in ("png", "csv", "json"))


def test_json_holds_the_rows_and_files(afmi, small, pictures):
    result = afmi(
        *("reproduce", "figure5", "--image", pictures, "--limit", 2, *small),
        *("--methods", "random", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["name"] == "figure5"
    assert [(row["picture"], row["inserted"]) for row in record["rows"]] == [
        ("a", 0.05),
        ("a", 0.5),
        ("b", 0.05),
        ("b", 0.5),
    ]
    assert len(record["files"]) == 3


def test_several_networks(afmi, nets, pictures, tmp_path):
    result = afmi(
        *("reproduce", "figure7", "--image", pictures / "a.png", "--target", 2),
        *("--model", f"{nets}:build,{nets}:unlabelled", "--out", tmp_path / "out"),
        *("--resize", 16, "--crop", 16, "--quiet"),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    text = (tmp_path / "out" / "figure7.csv").read_text()
    assert [line.split(",")[1] for line in text.splitlines()] == ["network", "small", "unlabelled"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["figur1"], "no experiment is called 'figur1'; did you mean 'figure1'"),
        (["figure1"], "figure1 needs pictures: give --image FILE (may be repeated), or --imagenet"),
        (["figure1", "--imagenet", "no-such"], "there is no 'no-such'"),
        (["figure1", "--image", "no-such.png"], "'no-such.png' does not exist"),
    ],
)
def test_refusals_are_one_line(afmi, small, args, message):
    result = afmi("reproduce", *args, *small)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_help_says_that_the_networks_are_the_papers(afmi):
    text = " ".join(afmi("reproduce", "--help").stdout.split())
    assert "Several joined by commas, where the paper has several. [default: (the paper's)]" in text
