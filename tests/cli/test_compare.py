"""``afmi compare``: the figure, the numbers, the estimated time, and unsupported methods."""

from __future__ import annotations

import json

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("small_figures")

METHODS = ["--methods", "a-fmi,CAM,random"]


def test_the_figure_and_each_method_are_saved(afmi, small, pictures, tmp_path):
    result = afmi("compare", pictures / "a.png", *small, *METHODS, "--target", "tiger cat")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 methods, about ")
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["A-FMI", "Random"]
    figure = tmp_path / "out" / "a-comparison.png"
    assert lines[-1] == f"side by side → {figure}"
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
    # The small network has a deep head, which CAM does not support and the others do.
    assert "afmi: CAM left out: CAM needs global average pooling" in result.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2 + 2 * 5
    record = json.loads(figure.with_suffix(".json").read_text(encoding="utf-8"))
    assert [m["method"] for m in record["methods"]] == ["A-FMI", "Random"]


def test_namesakes_of_two_folders_are_both_kept(afmi, small, pictures, tmp_path):
    """And so is a name that is as long as names may be: it is cut before the work begins."""
    out, name = tmp_path / "out", f"{'x' * 251}.png"
    for folder, file in (("one", "a.png"), ("two", "b.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes((pictures / file).read_bytes())
    for folder in ("one", "two", "one"):
        result = afmi("compare", tmp_path / folder / name, *small, "--methods", "random")
        assert result.exit_code == 0, result.stderr
    figures = sorted(out.glob("*comparison*.png"))
    assert len(figures) == 2 and len(list(out.iterdir())) == 2 * (2 + 5)
    assert figures[0].read_bytes() != figures[1].read_bytes()


def test_a_path_that_is_too_long_is_refused_before_the_work(afmi, small, pictures, tmp_path):
    deep = tmp_path
    while len(str(deep)) < 3940:
        deep = deep / ("y" * 60)
    result = afmi("compare", pictures / "a.png", *small[:-1], deep, "--methods", "random")
    assert result.exit_code == 2
    assert "too long" in result.stderr and len(result.stderr.splitlines()) == 1


def test_json_holds_the_numbers(afmi, small, pictures):
    result = afmi("compare", pictures / "a.png", *small, *METHODS, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(result.stdout)
    assert numbers["fractions"] == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [m["method"] for m in numbers["methods"]] == ["A-FMI", "Random"]
    assert all(len(m["inserted_responses"]) == 6 for m in numbers["methods"])
    assert list(numbers["refused"]) == ["CAM"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "a-fmi,gradcamm"], "no method is called 'gradcamm'; did you mean 'gradcam'"),
        (["--methods", ","], "expected one method or more, or 'all'"),
        (["--methods", "cam"], "CAM needs global average pooling"),
        (["--target", "dog"], "no class is called 'dog'"),
    ],
)
def test_refusals_are_one_line(afmi, small, pictures, args, message):
    result = afmi("compare", pictures / "a.png", *small, *args)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
