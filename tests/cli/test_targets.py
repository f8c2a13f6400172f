"""``--target``, ``--versus``, ``--output`` and ``--output-key`` in every command that has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NETS = """
import torch
from torch import nn

from afmi import Classifier


def body(outputs):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs)
    )


def dogs():
    labels = ["malamute", "Eskimo dog", "output:index=3", "cat"]
    return Classifier(body(4), labels=labels, resize=16, crop=16, name="dogs")


def price():
    return body(1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes, self.tags = body(3), body(4)

    def forward(self, x):
        return {"classes": self.classes(x), "tags": self.tags(x)}
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "of_targets.py"
    path.write_text(NETS)
    return path


@pytest.fixture
def dogs(nets: Path, tmp_path: Path) -> list[str]:
    return ["--model", f"{nets}:dogs", "--out", str(tmp_path / "out")]


@pytest.fixture
def price(nets: Path, tmp_path: Path) -> list[str]:
    options = ["--output", "value", "--resize", "16", "--crop", "16"]
    return ["--model", f"{nets}:price", "--out", str(tmp_path / "out"), *options]


def records(result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_class_rather_than_another(afmi, dogs, pictures, tmp_path):
    args = ["explain", pictures / "a.png", *dogs, "--target", "malamute", "--versus", "Eskimo dog"]
    (record,) = records(afmi(*args, "--json"))
    assert record["target"] == "difference:of=0:versus=1"
    assert record["label"] == "malamute rather than Eskimo dog"
    assert (record["unit"], record["class"], record["probability"]) == ("margin", None, None)
    first, second = record["compared"]
    assert [first["label"], second["label"]] == ["malamute", "Eskimo dog"]
    assert first["score"] - second["score"] == pytest.approx(record["score"], rel=1e-4)
    assert 0 < first["probability"] < 1 and 0 < second["probability"] < 1
    with Image.open(record["files"]["figure"]) as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 5
    result = afmi(*args)
    assert "malamute rather than Eskimo dog, margin" in result.stdout
    assert "% against " in result.stdout


@pytest.mark.usefixtures("small_figures")
def test_the_predicted_class_rather_than_another(afmi, dogs, pictures):
    (predicted,) = records(afmi("explain", pictures / "a.png", *dogs, "--json"))
    other = (predicted["class"] + 1) % 4
    args = ["explain", pictures / "a.png", *dogs, "--versus", other, "--json"]
    (record,) = records(afmi(*args))
    assert record["target"] == f"difference:of={predicted['class']}:versus={other}"


@pytest.mark.usefixtures("small_figures")
def test_targets_in_text_and_labels_first(afmi, dogs, pictures):
    wanted = ["output:index=2", "difference:of=cat", "output:index=3", "cat"]
    options = [word for one in wanted for word in ("--target", one)]
    found = records(afmi("explain", pictures / "a.png", *dogs, *options, "--json"))
    assert [(one["target"], one["class"]) for one in found] == [
        ("output:index=2", None),
        ("difference:of=3", None),
        ("class:of=2", 2),  # which is called so
        ("class:of=3", 3),
    ]


@pytest.mark.usefixtures("small_figures")
def test_a_value_has_no_percentage(afmi, price, pictures):
    result = afmi("explain", pictures / "a.png", *price)
    assert result.exit_code == 0, result.stderr
    assert "the output, value " in result.stdout
    assert "%" not in result.stdout.partition("residual")[0]
    (record,) = records(afmi("explain", pictures / "a.png", *price, "--json"))
    assert record["probability"] is None and record["predicted"] is None
    assert record["target"] == "output:index=0"


@pytest.mark.usefixtures("small_figures")
def test_what_is_assumed_is_said_once(afmi, nets, pictures, tmp_path):
    options = ("--resize", 16, "--crop", 16, "--out", tmp_path / "out")
    done = afmi("explain", pictures, "--model", f"{nets}:price", *options)
    assert done.exit_code == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "taken for a value" in warnings[0]
    assert "%" not in done.stdout.replace("residual +0.0%", "").partition("residual")[0]


@pytest.mark.usefixtures("small_figures")
def test_sigmoid_and_the_key_of_an_output(afmi, nets, pictures, tmp_path):
    model = ["--model", f"{nets}:Two", "--resize", "16", "--crop", "16"]
    args = ["explain", pictures / "a.png", *model, "--out", tmp_path / "out", "--json"]
    refused = afmi(*args)
    assert refused.exit_code == 2 and "output_key" in refused.stderr
    refused = afmi(*args, "--output-key", "2")
    assert refused.exit_code == 2 and "there is no output_key=2" in refused.stderr
    three = records(afmi(*args, "--output-key", "classes", "--top-k", 3))
    assert sum(one["probability"] for one in three) == pytest.approx(1, abs=1e-5)
    tags = records(afmi(*args, "--output-key", "tags", "--output", "sigmoid", "--top-k", 4))
    for one in tags:
        assert one["probability"] == pytest.approx(1 / (1 + 2.718281828 ** -one["score"]), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--versus", "cat", "--top-k", "2"], "--versus and --top-k go one at a time"),
        (["--versus", "wolf"], "no class is called 'wolf'"),
        (["--target", "cat", "--versus", "cat"], "expected two classes, got 'cat' twice"),
        (["--target", "output:index=1", "--versus", "cat"], "output:index=1 is no class"),
        (["--target", "output:index=9"], "expected an index into outputs of shape (4,), got 9"),
        (["--target", "output:place=1"], "Output takes no parameter 'place'"),
        (["--output", "percent"], "'percent' is not one of"),
    ],
)
def test_errors_fit_the_case(afmi, dogs, pictures, options, message):
    result = afmi("explain", pictures / "a.png", *dogs, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("afmi: ") and result.stderr.count("\n") == 1


@pytest.mark.usefixtures("small_figures")
def test_compare(afmi, dogs, pictures, tmp_path):
    args = ["compare", pictures / "a.png", *dogs, "--methods", "a-fmi,random", "--json"]
    result = afmi(*args, "--target", "malamute", "--versus", "cat")
    assert result.exit_code == 0, result.stderr
    for one in json.loads(result.stdout)["methods"]:
        assert one["target"] == "difference:of=0:versus=3"
        assert len(one["inserted_responses"]) == 6


def test_evaluate_a_value_without_labels(afmi, price, pictures, tmp_path):
    args = ["evaluate", "--data", pictures, *price, "--methods", "gradient,random"]
    refused = afmi(*args)
    assert refused.exit_code == 2 and "--target output" in refused.stderr
    result = afmi(*args, "--target", "output")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all("Value-AUC" in line and "Accuracy" not in line for line in lines[:2])
    report = afmi("report", tmp_path / "out")
    assert report.exit_code == 0, report.stderr
    assert "Value-AUC" in report.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The number is the score explained" in page


def test_evaluate_refuses_metrics_of_classes(afmi, dogs, pictures):
    args = ["evaluate", "--data", pictures, *dogs, "--methods", "random", "--metrics", "insertion"]
    result = afmi(*args, "--target", "malamute", "--versus", "cat")
    assert result.exit_code == 2
    assert "use value-insertion in its place" in result.stderr
