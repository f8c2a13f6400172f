"""Experiments: they are listed, say what they need, load the paper's networks, write files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from afmi.errors import ModelError, UsageError
from afmi.experiments import CATALOGUE, Request, experiment_named
from afmi.experiments.shared import base, published
from afmi.experiments.shared.base import networks, write_csv
from afmi.files import as_json
from afmi.methods import chosen_methods
from afmi.models import model_names
from afmi.progress import duration
from afmi.report.words import counted


def test_every_figure_is_found_in_order():
    figures = [name for name in CATALOGUE if name.startswith("figure")]
    assert figures == [f"figure{number}" for number in range(1, 15)]
    assert experiment_named("Figure 4") is experiment_named("figure-4") is CATALOGUE["figure4"]
    with pytest.raises(UsageError, match="no experiment is called 'figur4'; did you mean"):
        experiment_named("figur4")


@pytest.mark.parametrize("name", CATALOGUE)
def test_models_and_methods_exist_under_their_names(name):
    experiment = CATALOGUE[name]
    assert experiment.shows and experiment.section and experiment.finding
    if experiment.methods:
        chosen = chosen_methods(nn.Identity(), experiment.methods)
        assert list(chosen) == list(experiment.methods)
    known = {*model_names(), "mnist-cnn"}
    assert set(experiment.models) <= known or experiment.data == "MNIST"


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_is_missing_is_said_before_a_network_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "load_model", lambda *_, **__: pytest.fail("loaded"))
    needs = {"pictures": "--image FILE", "ImageNet": "--imagenet DIR", "MNIST": "--mnist DIR"}
    experiment = CATALOGUE[name]()
    with pytest.raises(UsageError, match=needs[experiment.data]):
        experiment.run(Request(tmp_path))
    with pytest.raises(UsageError, match="there is no '"):
        experiment.run(Request(tmp_path, imagenet=tmp_path / "no", mnist=tmp_path / "no"))


def test_the_papers_networks_have_the_weights_of_its_time(tmp_path, monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options))

    monkeypatch.setattr(base, "load_model", load)
    monkeypatch.setattr(base, "_check_classes", lambda *_: None)
    experiment = CATALOGUE["figure7"]()
    networks(experiment, Request(tmp_path, network={"weights": "default", "device": "cpu"}))
    assert [name for name, _ in asked] == list(published.ARCHITECTURES)
    assert {(o["weights"], o["device"]) for _, o in asked} == {("IMAGENET1K_V1", "cpu")}
    asked.clear()
    networks(experiment, Request(tmp_path, models=("resnet50",), network={"weights": "default"}))
    assert asked == [("resnet50", {"weights": "default"})]
    asked.clear()
    request = Request(tmp_path, models=("a", "b"), network={"weights": "a.pth, default"})
    networks(experiment, request)
    assert asked == [("a", {"weights": "a.pth"}), ("b", {"weights": "default"})]
    with pytest.raises(UsageError, match="expected weights for each of a, b, joined by commas"):
        networks(experiment, Request(tmp_path, models=("a", "b"), network={"weights": "a.pth"}))


def test_weights_that_cannot_be_had_are_named_with_their_addresses(tmp_path, monkeypatch):
    def load(name, **_):
        raise ModelError(f"{name} cannot be downloaded")

    monkeypatch.setattr(base, "load_model", load)
    with pytest.raises(ModelError) as caught:
        networks(CATALOGUE["figure7"](), Request(tmp_path))
    text = str(caught.value)
    assert "\n" not in text
    for file in ("vgg16-397923af.pth", "vgg19-dcbb9e9d.pth", "resnet50-0676ba61.pth"):
        assert file in text
    assert "--model photos" in text
    # A network that the user named gives its own reason.
    with pytest.raises(ModelError, match=r"^x cannot be downloaded$"):
        networks(CATALOGUE["figure1"](), Request(tmp_path, models=("x",)))


def test_published_numbers_are_those_of_table_1():
    printed = {
        "vgg19": "0.0854 0.1657 0.1673 0.2177 0.3460 0.3269 0.1775 0.2596 0.5343 0.5908",
        "resnet50": "0.0854 0.2236 0.1812 0.2857 - - 0.2613 0.2970 0.6380 0.6513",
    }
    columns = ["Random", *published.METHODS]
    for network, row in printed.items():
        values = [float(n) if n != "-" else None for n in row.split()]
        assert [published.ACCURACY_AUC[network].get(method) for method in columns] == values
    seconds = "0.0354 0.0669 1.5908 0.9719 14.6469 14.1818 10.8123 0.0291 0.1392"
    assert [published.SECONDS[method] for method in published.METHODS] == [
        float(n) for n in seconds.split()
    ]


def test_tables_keep_every_digit_and_leave_cells_empty(tmp_path: Path):
    rows = [{"a": 0.1 + 0.2, "b": float("nan")}, {"a": "x, y", "c": None}]
    assert write_csv(tmp_path / "t.csv", rows).read_text() == (
        'a,b,c\n0.30000000000000004,,\n"x, y",,\n'
    )
    assert json.loads(as_json({"a": [float("inf"), {"b": (1.5, "ü")}]})) == {
        "a": [None, {"b": [1.5, "ü"]}]
    }


def test_words_for_numbers():
    assert [duration(s) for s in (0.1, 89, 90, 5399, 5400)] == [
        "1 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]
    assert [counted(n, "map") for n in (0, 1, 2)] == ["0 maps", "1 map", "2 maps"]


def test_a_limit_is_at_least_one(tmp_path):
    with pytest.raises(UsageError, match="at least 1 picture, got 0"):
        Request(tmp_path, limit=0)
