"""Reading a folder of results: alignment, missing values, and every kind of damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from results_folder import curve_rows, make_results, write_folder, write_piece

from afmi.errors import AfmiError, UsageError
from afmi.evaluation.results import Results
from afmi.metrics import Insertion
from afmi.report.summary import summarise

NAN = float("nan")


@pytest.fixture
def folder(tmp_path):
    """Three pictures; two pieces of A-FMI, none of CAM, which was refused, none of XRAI yet."""
    path = write_folder(
        tmp_path / "results",
        {"XRAI": {}, "A-FMI": {}, "CAM": {"refused": "needs pooling"}},
        ["a.png", "b.png", "c.png"],
        [2, 0, 1],
    )
    # The second piece in another order than the pictures.
    write_piece(path, "A-FMI", 0, [(0, "m/x", 0.25, None), (0, "m/y", 1.0, None)])
    write_piece(path, "A-FMI", 1, [(2, "m/x", 0.75, None), (1, "error", NAN, "cut short")])
    return path


def test_values_stand_at_their_pictures(folder):
    results = Results.open(folder)
    assert results.methods == ("XRAI", "A-FMI")
    assert results.refused == {"CAM": "needs pooling"}
    assert results.images.keys == ("a.png", "b.png", "c.png")
    assert results.images.labels.tolist() == [2, 0, 1]
    values = results.values("A-FMI")
    assert set(values) == {"m/x", "m/y"}
    assert values["m/x"].dtype == np.float64
    np.testing.assert_array_equal(values["m/x"], [0.25, NAN, 0.75])
    np.testing.assert_array_equal(values["m/y"], [1.0, NAN, NAN])
    assert results.errors("A-FMI") == {1: "cut short"}
    assert results.complete("A-FMI") == 1.0
    assert (results.complete("XRAI"), results.values("XRAI")) == (0.0, {})


def test_results_show_themselves_in_a_notebook(folder, tmp_path):
    page = Results.open(folder)._repr_html_()
    assert "<td>A-FMI</td><td>3 of 3</td><td>1</td>" in page
    assert "<td>XRAI</td><td>0 of 3</td><td>0</td>" in page
    assert "CAM was not measured: needs pooling" in page
    results = Results.open(make_results(tmp_path / "<b>"))
    page = results._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    summary = summarise(results)
    for one in summary.methods:
        key = f"insertion/{results.metrics['insertion'].headline.name}"
        row = page.partition(f"<td>{one.label}</td>")[2].partition("</tr>")[0]
        shown = float(row.split("</td><td>")[2].partition("<")[0])
        assert shown == pytest.approx(one.averages[key].value, abs=6e-4)


def test_unfinished_is_told(tmp_path):
    results = Results.open(make_results(tmp_path, done={"XRAI": 10}))
    assert results.complete("XRAI") == 0.25
    read = results.read("XRAI")
    assert read.done.tolist() == [True] * 10 + [False] * 30
    assert np.isfinite(read.values["cost/seconds"]).tolist() == read.done.tolist()


def test_areas_of_a_picture_worked_by_hand():
    # Right from 55 % on: ten segments, the first of which is half a trapezoid.
    rows = curve_rows(0, [False] * 10 + [True] * 10, [0.5] * 20)
    values = {name: value for _, name, value, _ in rows}
    assert values["insertion/accuracy_auc"] == pytest.approx(0.05 * 9.5)
    assert values["insertion/softmax_ratio_auc"] == pytest.approx(0.95)


def test_methods_are_named_in_any_spelling(tmp_path):
    results = Results.open(
        make_results(tmp_path, ("Random", "A-FMI (averaged=false)", "A-FMI", "Grad-CAM++"))
    )
    assert results.chosen(["afmi", "gradcamplusplus"]) == ("A-FMI", "Grad-CAM++")
    assert results.chosen(["a-fmi-averaged-false"]) == ("A-FMI (averaged=false)",)
    assert results.chosen(None) == results.methods
    with pytest.raises(UsageError, match="no method called 'gradcam'; did you mean 'Grad-CAM"):
        results.chosen(["gradcam"])
    with pytest.raises(UsageError, match="expected one method or more"):
        results.chosen([])


def test_a_refused_method_cannot_be_chosen(folder):
    with pytest.raises(UsageError, match="CAM was not measured: needs pooling"):
        Results.open(folder).chosen(["cam"])


def test_examples_are_found(tmp_path):
    results = Results.open(make_results(tmp_path, examples=3))
    assert results.examples == (0, 1, 2)
    assert results.example(1, "A-FMI", "map").name == "00000001-a-fmi-map.png"
    assert results.example(1, "A-FMI", "map").is_file()
    assert results.photograph(2).is_file()


def test_metrics_are_as_the_manifest_declares_them(folder):
    metrics = Results.open(folder).metrics
    assert metrics["insertion"] == Insertion().facts()
    assert metrics["insertion"].headline.higher_is_better is True


def test_a_manifest_without_metrics_is_damaged(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["metrics"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AfmiError, match="is damaged"):
        Results.open(folder)


def test_what_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no folder is called '.*nowhere'"):
        Results.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no evaluation"):
        Results.open(tmp_path)


def test_nothing_measured_yet_is_refused(tmp_path):
    folder = write_folder(tmp_path / "new", {"A-FMI": {}}, ["a.png"], [0])
    with pytest.raises(UsageError, match="holds no measurements yet"):
        Results.open(folder)
    folder = write_folder(tmp_path / "none", {"CAM": {"refused": "a deep head"}}, ["a.png"], [0])
    with pytest.raises(UsageError, match=r"CAM was refused \(a deep head\)"):
        Results.open(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"run": {}}', '{"run": 1, "methods": {}, "metrics": {}}']
)
def test_a_damaged_manifest_is_named(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(AfmiError, match=r"manifest.json' is damaged .*; choose another"):
        Results.open(folder)


def test_a_damaged_piece_is_named_with_the_remedy(folder):
    path = folder / "pieces" / "a-fmi" / "00000001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AfmiError, match=r"00000001.parquet' is damaged .*delete it, so that the"):
        Results.open(folder).values("A-FMI")


def test_a_piece_of_another_evaluation_is_named(folder):
    write_piece(folder, "A-FMI", 3, [(7, "m/x", 0.5, None)])
    with pytest.raises(AfmiError, match=r"00000003.parquet' holds picture 7, which"):
        Results.open(folder).values("A-FMI")


def test_missing_or_damaged_pictures_are_named(folder):
    path = folder / "images.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(AfmiError, match=r"images.parquet' is damaged"):
        Results.open(folder)
    path.unlink()
    with pytest.raises(AfmiError, match=r"images.parquet' is missing"):
        Results.open(folder)
