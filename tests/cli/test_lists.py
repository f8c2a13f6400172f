"""``afmi methods``, ``afmi metrics`` and ``afmi models``."""

from __future__ import annotations

import json

from afmi.methods import CATALOGUE
from afmi.metrics import CATALOGUE as METRICS
from afmi.models import model_names


def test_methods_lists_the_catalogue(afmi):
    result = afmi("methods")
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["name", "family", "features", "scores", "cost", "paper"]
    assert [row.split("  ")[0] for row in rows] == [cls.name for cls in CATALOGUE.values()]
    assert rows[-1].endswith(CATALOGUE["AFMI"].paper)


def test_methods_as_json_have_their_parameters(afmi):
    records = {r["class"]: r for r in json.loads(afmi("methods", "--json").stdout)}
    assert set(records) == set(CATALOGUE)
    assert records["AFMI"]["parameters"] == ["layer", "reference", "averaged"]
    assert records["AFMI"]["features"] == "feature maps"
    assert records["AFMI"]["signed"] is True
    assert records["GradCAM"]["signed"] is False
    assert records["Random"]["features"] == "none"
    assert records["IntegratedGradients"]["cost"] == "102 forwards + 100 backwards"
    assert records["GradCAM"]["cost"] == "1 forward + 1 backward behind the layer"


def test_metrics_lists_the_catalogue(afmi):
    result = afmi("metrics")
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["name", "measures", "better", "standard", "paper"]
    assert [row.split("  ")[0] for row in rows] == [cls.name for cls in METRICS.values()]
    cells = {row.split("  ")[0]: [cell for cell in row.split("  ") if cell] for row in rows}
    assert [cell.strip() for cell in cells["Insertion"]] == [
        "Insertion",
        METRICS["Insertion"].columns[0].measures,
        "higher",
        "yes",
        METRICS["Insertion"].paper,
    ]
    assert [cell.strip() for cell in cells["Deletion"]][2:4] == ["lower", "–"]


def test_metrics_as_json_have_their_parameters(afmi):
    records = {r["class"]: r for r in json.loads(afmi("metrics", "--json").stdout)}
    assert list(records) == list(METRICS)
    assert records["Insertion"]["parameters"] == ["fractions", "canvas", "batch_size"]
    assert records["Insertion"]["better"] == "higher"
    assert records["GridPointing"]["columns"] == ["own_share"]
    assert [name for name, r in records.items() if r["standard"]] == [
        "Insertion",
        "Completeness",
        "Cost",
    ]


def test_models_lists_all_or_those_that_contain_a_word(afmi):
    names = [line.split()[0] for line in afmi("models").stdout.splitlines()]
    assert names == ["name", *model_names()]
    some = json.loads(afmi("models", "VGG1", "--json").stdout)
    assert [record["name"] for record in some][:2] == ["vgg11", "vgg11_bn"]
    assert some[0]["parameters"] > 100


def test_labels_of_a_network(afmi, nets):
    lines = afmi("models", f"{nets}:build", "--labels").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:]][2:] == [
        ["2", "collie"],
        ["3", "Border collie"],
    ]
    assert json.loads(afmi("models", "photos", "--labels", "--json").stdout)[3] == {
        "index": 3,
        "label": "cat",
    }
    assert json.loads(afmi("models", "imagenet", "--labels", "--json").stdout)[249] == {
        "index": 249,
        "label": "malamute",
    }
    result = afmi("models", f"{nets}:unlabelled", "--labels")
    assert result.exit_code == 2
    assert "has no labels" in result.stderr


def test_layers_of_a_network_mark_the_one_found(afmi, nets):
    lines = afmi("models", f"{nets}:build", "--layers").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert [line for line in lines if "← found automatically" in line] == [lines[2]]
    assert "4 × 14 × 14" in lines[2]


def test_layers_show_an_activation_that_is_no_module(afmi):
    records = json.loads(afmi("models", "densenet121", "--layers", "--json").stdout)
    assert records[-1] == {
        "layer": "features+relu",
        "module": "relu",
        "maps": [1024, 7, 7],
        "chosen": True,
    }
    assert sum(record["chosen"] for record in records) == 1
