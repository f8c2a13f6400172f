"""Commands with networks of timm's and transformers': names with a colon and slashes, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from afmi.evaluation import Results

pytestmark = pytest.mark.usefixtures("small_figures")


@pytest.fixture
def timms(tmp_path: Path) -> list[str]:
    """Options for a network of timm's whose weights lie in a file."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    save_file(network.state_dict(), tmp_path / "three.safetensors")
    (tmp_path / "names.txt").write_text("collie\npug\ncat\n")
    return [
        *(
            "--model",
            "timm:test_resnet.r160_in1k",
            "--weights",
            str(tmp_path / "three.safetensors"),
        ),
        *("--labels", str(tmp_path / "names.txt"), "--resize", "48", "--crop", "48"),
    ]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Folder with a saved small vision transformer and its processor."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, id2label={0: "wren", 1: "robin", 2: "crow"},
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "birds")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "birds")
    return tmp_path / "birds"


def test_explaining_by_a_network_of_timms(afmi, timms, pictures, tmp_path):
    out = tmp_path / "out"
    result = afmi("explain", pictures / "a.png", *timms, "--target", "pug", "--json", "--out", out)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["model"], record["label"]) == ("timm:test_resnet.r160_in1k", "pug")
    assert record["layer"] == "layer4"
    assert {path.name for path in out.iterdir()} >= {"a-pug-a-fmi.png", "a-pug-a-fmi.json"}


def test_explaining_by_a_folder_of_transformers(afmi, birds, pictures, tmp_path):
    command = ["explain", pictures / "a.png", "--model", f"hf:{birds}", "--target", "crow"]
    result = afmi(*command, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["model"], record["label"]) == ("hf:birds", "crow")
    assert record["layer"] == "vit.layers.0"


def test_an_evaluation_goes_on_with_the_same_network(afmi, timms, pictures, tmp_path):
    data = tmp_path / "labels.csv"
    data.write_text("image,label\npictures/a.png,pug\npictures/b.png,cat\n")
    command = ["evaluate", "--data", data, *timms, "--methods", "a-fmi", "--out", tmp_path / "out"]
    first = afmi(*command)
    assert first.exit_code == 0, first.stderr
    again = afmi(*command)
    assert again.exit_code == 0, again.stderr
    other = afmi(*command, "--weights", "none")
    assert other.exit_code == 2
    manifest = Results.open(tmp_path / "out").manifest
    assert manifest["run"]["model"]["name"] == "timm:test_resnet.r160_in1k"


def test_comparing_methods_on_such_a_network(afmi, birds, pictures, tmp_path):
    command = ["compare", pictures / "a.png", "--methods", "a-fmi,gradient", "--out", tmp_path]
    result = afmi(*command, "--model", f"hf:{birds}")
    assert result.exit_code == 0, result.stderr


def test_figures_are_made_again_on_such_a_network(afmi, birds, pictures, tmp_path):
    out = tmp_path / "out"
    command = ["reproduce", "figure7", "--image", pictures / "a.png", "--target", "crow"]
    result = afmi(*command, "--model", f"hf:{birds}", "--out", out)
    assert result.exit_code == 0, result.stderr
    # The name holds a colon, which no file of ours does.
    assert not [path for path in out.rglob("*") if ":" in path.name]
    assert list(out.rglob("a-hf-birds-crow*.png"))


def test_layers_and_labels_of_such_networks(afmi, birds):
    rows = json.loads(afmi("models", "timm:test_resnet", "--layers", "--json").stdout)
    assert [row["layer"] for row in rows if row["chosen"]] == ["layer4"]
    labels = json.loads(afmi("models", f"hf:{birds}", "--labels", "--json").stdout)
    assert [row["label"] for row in labels] == ["wren", "robin", "crow"]


def test_lists_of_timms_and_of_transformers(afmi):
    lines = afmi("models", "timm:resnet18.a").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "name",
        *(f"timm:resnet18.a{i}_in1k" for i in (1, 2, 3)),
    ]
    assert lines[1].split()[1:] == ["–", "–", "224", "timm/resnet18.a1_in1k"]
    names = [record["name"] for record in json.loads(afmi("models", "hf:vit", "--json").stdout)]
    assert names == ["hf:vit", "hf:vit_msn"]
    result = afmi("models", "timm:resnet19")
    assert result.exit_code == 2
    assert "no model's name contains 'timm:resnet19'; did you mean 'timm:" in result.stderr
