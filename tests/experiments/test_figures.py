"""Figures: which pictures are chosen, what the maps and numbers say, what is written."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from afmi.comparison import Comparison
from afmi.errors import AfmiError, UsageError
from afmi.experiments import experiment_named
from afmi.experiments.shared import insertions
from afmi.methods import BlankMapWarning, chosen_methods
from afmi.pictures import figures


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_of(result):
    (path,) = [file for file in result.files if file.suffix == ".json"]
    return json.loads(path.read_text())


def test_figure1_takes_the_dogsled_and_inserts_a_tenth(request_for, folder):
    request, lines = request_for(imagenet=folder, methods="random,grad-cam,a-fmi")
    result = experiment_named("figure1")().run(request)
    assert f"picture {folder / 'val' / 'n03218198' / 'a.png'}" in lines
    assert [file.name for file in result.files] == ["figure1.png", "figure1.csv", "figure1.json"]
    assert [(row["class"], row["method"]) for row in result.rows] == [
        ("dogsled", "Random"),
        ("dogsled", "Grad-CAM"),
        ("dogsled", "A-FMI"),
    ]
    assert {row["inserted"] for row in result.rows} == {0.1}
    written = rows_of(result.files[1])
    assert [float(row["probability"]) for row in written] == [
        row["probability"] for row in result.rows
    ]
    # Blue rises downwards, so the rows at the bottom come first for A-FMI.
    kept = np.load(next((request.out / "figure1").glob("*a-fmi*-map.npy")))
    assert kept.argmax() // 16 == 15
    assert record_of(result)["pictures"] == [str(folder / "val" / "n03218198" / "a.png")]


def test_figure2_shows_the_papers_saturated_gradient(request_for, tmp_path):
    # Section 3: ReLU(−ReLU(−α + 1) + 2) is 1 at α = 0 and 2 at α = 2, where its gradient is 0.
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "red.png")
    request, _ = request_for("saturated", images=(tmp_path / "red.png",), methods="random")
    result = experiment_named("figure2")().run(request)
    gradient, importance = result.rows
    assert gradient["change of the score"] == importance["change of the score"] == 1
    assert gradient["accounts for"] == gradient["share"] == 0
    assert importance["share"] == pytest.approx(1)
    (only,) = record_of(result)["feature maps"][0]
    # The map is 2 at 256 places, each of which has a 256th of the mean's weight of 1/2.
    assert only == {"feature map": 0, "FMI": 0.5 / 256, "gradient": 0.0, "change": 512.0}


def test_figure2_finds_both_weights_equal_where_the_head_is_linear(request_for, folder):
    request, lines = request_for(imagenet=folder, limit=1)
    result = experiment_named("figure2")().run(request)
    assert lines[0] == f"{str(folder)!r} has no 'English springer', so 'collie' stands in"
    assert [file.name for file in result.files] == ["figure2.png", "figure2.csv", "figure2.json"]
    for row in result.rows:
        assert row["share"] == pytest.approx(1) and row["cosine with FMI"] == pytest.approx(1)
    # Red counts 8 times as much as the sum of all three, which is the fourth map.
    assert record_of(result)["feature maps"][0][0]["feature map"] == 0


def test_the_first_picture_that_the_network_gets_right_is_taken(request_for, folder):
    request, lines = request_for(imagenet=folder, methods="a-fmi")
    experiment_named("figure4")().run(request)
    assert f"picture {folder / 'val' / 'n02106030' / 'b.png'}" in lines
    assert f"picture {folder / 'val' / 'n02091244' / 'a.png'}" in lines


def test_another_class_stands_in_where_the_papers_is_missing(request_for, folder):
    request, lines = request_for(imagenet=folder, methods="a-fmi", limit=1)
    result = experiment_named("figure3")().run(request)
    assert lines[0] == f"{str(folder)!r} has no 'Samoyed', so 'collie' stands in"
    assert {row["class"] for row in result.rows} == {"collie"}


def test_figure4_tells_the_halves_of_a_picture_apart(request_for, both):
    request, lines = request_for(
        images=(both,), methods="a-fmi", targets=("collie", "Ibizan hound")
    )
    result = experiment_named("figure4")().run(request)
    assert "classes: collie, Ibizan hound, white" in lines
    by_pair = {(r["class"], r["other class"]): r["rank correlation"] for r in result.rows}
    assert by_pair[("collie", "Ibizan hound")] < -0.5
    assert len(by_pair) == 3
    assert [row["other class"] for row in rows_of(result.files[-1])] == [
        "Ibizan hound",
        "white",
        "white",
    ]
    for label, half in (("collie", slice(0, 8)), ("ibizan-hound", slice(8, 16))):
        (path,) = (request.out / "figure4").glob(f"both-{label}-a-fmi-map.npy")
        positions = np.load(path).ravel().argsort()[::-1][:26] % 16
        assert set(positions) <= set(range(half.start, half.stop))


@pytest.mark.parametrize(("network", "width"), [("build", 32), ("flat", 16)])
def test_two_pictures_stand_side_by_side(request_for, folder, network, width):
    # A network for one size of images only gets half of each picture's width.
    request, lines = request_for(network, imagenet=folder, methods="gradient")
    if network == "build":
        # Each class's gradient is the same everywhere.
        with pytest.warns(BlankMapWarning):
            result = experiment_named("figure4")().run(request)
    else:
        result = experiment_named("figure4")().run(request)
    assert "put side by side, because no picture of both classes was given" in lines
    sizes = [c["methods"][0]["image"] for c in record_of(result)["comparisons"]]
    assert [(size["height"], size["width"]) for size in sizes] == [(16, width)] * 3


def test_figure4_takes_the_two_most_probable_classes_of_one_picture(request_for, both):
    request, lines = request_for(images=(both,), methods="a-fmi")
    experiment_named("figure4")().run(request)
    (line,) = [line for line in lines if line.startswith("classes: ")]
    assert set(line.removeprefix("classes: ").split(", ")[:2]) == {"collie", "Ibizan hound"}


def test_figure5_has_a_row_for_each_picture_and_fraction(request_for, folder, both):
    images = (folder / "val" / "n02106030" / "b.png", both)
    request, _ = request_for(images=images, methods="a-fmi,random")
    result = experiment_named("figure5")().run(request)
    assert [(row["picture"], row["inserted"], row["method"]) for row in result.rows] == [
        (picture, fraction, method)
        for picture in ("b", "both")
        for fraction in (0.05, 0.5)
        for method in ("A-FMI", "Random")
    ]


def test_figure10_inserts_5_to_50_percent_by_black_and_white_references(
    request_for, both, monkeypatch
):
    columns = []

    def grid(*_, column_titles=(), **__):
        columns.extend(column_titles)
        return Figure()

    monkeypatch.setattr(figures, "grid", grid)
    request, _ = request_for(images=(both,), methods="a-fmi,a-fmi:reference=white")
    result = experiment_named("figure10")().run(request)
    assert columns == ["picture", "A-FMI (B)", "A-FMI (W)"]
    assert [(row["inserted"], row["method"]) for row in result.rows] == [
        (fraction, method)
        for fraction in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
        for method in ("A-FMI", "A-FMI (reference=white)")
    ]
    black, white = (np.load(next(request.out.rglob(f"*{m}-map.npy"))) for m in ("fmi", "white"))
    assert not np.allclose(black, white)


def test_figures_10_to_14_differ_in_the_picture_only():
    five = [experiment_named(f"figure{number}") for number in range(10, 15)]
    assert len({one.classes for one in five}) == 5
    assert {one.methods for one in five} == {insertions.ALL_METHODS}
    # Whatever is compared with a reference names it above its column: not LRP's, which is none, and
    # not what RISE covers pixels with.
    with_reference = {
        label
        for label, method in chosen_methods(nn.Identity(), insertions.ALL_METHODS).items()
        if hasattr(method, "reference")
    }
    assert with_reference - {"LRP", "RISE"} == set(insertions._HEADINGS)


def test_methods_that_the_network_cannot_have_are_named(request_for, both):
    request, lines = request_for("flat", images=(both,), methods="cam,a-fmi")
    result = experiment_named("figure1")().run(request)
    assert [row["method"] for row in result.rows] == ["A-FMI"]
    assert any(line.startswith("CAM left out: CAM needs global average pooling") for line in lines)


def test_figure3_finds_a_method_that_does_not_mind_the_reference(request_for, both):
    request, _ = request_for(images=(both,), methods="a-fmi,deeplift", targets=("collie",))
    result = experiment_named("figure3")().run(request)
    assert [(row["method"], row["references"]) for row in result.rows] == [
        (method, pair)
        for method in ("A-FMI", "DeepLIFT")
        for pair in ("black-white", "black-random", "white-random")
    ]
    # One linear layer behind constant references: the maps differ by a constant.
    assert result.rows[0]["rank correlation"] == pytest.approx(1)
    assert result.rows[0]["SSIM"] == pytest.approx(1, abs=1e-4)
    maps = [
        np.load(request.out / "figure3" / f"both-{reference}-collie-deeplift-map.npy").ravel()
        for reference in ("white", "random")
    ]
    expected = spearmanr(*maps).statistic
    assert result.rows[5]["rank correlation"] == pytest.approx(expected)
    assert expected < 0.99
    references = [e["reference"] for e in record_of(result)["explanations"]]
    assert references == ["black", "white", "random"] * 2
    with pytest.raises(UsageError, match="Grad-CAM uses no reference"):
        experiment_named("figure8")().run(request_for(images=(both,), methods="grad-cam")[0])


def test_figure7_explains_the_same_class_on_every_network(request_for, both):
    request, _ = request_for("build,small", images=(both,), targets=("Ibizan hound",))
    result = experiment_named("figure7")().run(request)
    assert [row["class"] for row in result.rows] == ["Ibizan hound"] * 2
    assert [e["image"]["width"] for e in record_of(result)["explanations"]] == [16, 12]
    # Global average pooling and one linear layer: the map sums to the change of the score.
    assert result.rows[0]["residual"] == pytest.approx(0, abs=1e-5)


def test_what_was_finished_stays_when_the_work_is_interrupted(request_for, both, monkeypatch):
    request, _ = request_for(images=(both,), methods="a-fmi,grad-cam")
    monkeypatch.setattr(Comparison, "to_dict", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        experiment_named("figure1")().run(request)
    assert len(list((request.out / "figure1").glob("*-map.npy"))) == 2
    assert not (request.out / "figure1.png").exists()


def test_the_figure_is_a_picture_with_a_column_for_each_method(request_for, both):
    request, _ = request_for(images=(both,), methods="a-fmi")
    one = experiment_named("figure1")().run(request).files[0]
    with Image.open(one) as narrow:
        width = narrow.width
    request, _ = request_for(images=(both,), methods="a-fmi,grad-cam,random")
    three = experiment_named("figure1")().run(request).files[0]
    with Image.open(three) as wide:
        assert wide.format == "PNG"
        assert wide.width == width + 2 * (300 + 28)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": 3}, "expected one picture of two classes, or two pictures"),
        ({"images": 1, "targets": ("collie",)}, "1 pictures and 1 --target"),
        ({"images": 1, "targets": ("collie", "collie")}, "got 'collie' twice"),
        ({"images": 1, "targets": ("collie", "cat")}, "no class is called 'cat'"),
    ],
)
def test_figure4_refuses(request_for, both, given, message):
    given = {**given, "images": (both,) * given["images"]}
    with pytest.raises(AfmiError, match=message):
        experiment_named("figure4")().run(request_for(methods="a-fmi", **given)[0])


def test_as_many_targets_as_pictures(request_for, both):
    request, _ = request_for(images=(both,) * 3, targets=("collie", "dogsled"), methods="a-fmi")
    with pytest.raises(UsageError, match="one --target for all pictures or one for each of 3"):
        experiment_named("figure1")().run(request)
