"""An audit finds a shortcut that was built in, says what it is, and leaves clean classes alone."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from shortcuts import SHORTCUT, images, network

import afmi
from afmi import AFMI
from afmi.errors import ImageError, TargetError, UsageError

PLANTED = 14


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audit")
    return afmi.audit(network(), images(60, 40, PLANTED), folder / "out")


def test_a_planted_shortcut_is_found_and_confirmed(audited):
    cat, dog = audited.classes
    assert (cat.label, dog.label) == ("cat", "dog")
    assert cat.suspicious
    assert cat.confirmed
    assert cat.verdict == "a second reason, confirmed"
    (group,) = cat.groups
    assert {*group.images} == {f"item/{n}" for n in range(PLANTED)}
    assert group.share == pytest.approx(PLANTED / 60)
    assert group.maps[0].number == SHORTCUT
    assert group.maps[0].share > 0.9
    assert audited.suspicious == (cat,)
    assert audited["cat"] is cat
    with pytest.raises(KeyError):
        audited["newt"]


def test_a_clean_class_is_not_suspicious(audited, tmp_path):
    assert audited["dog"].verdict == "one reason"
    clean = afmi.audit(network(), images(40, 40, 0), tmp_path)
    assert not clean.suspicious
    assert clean.finding == "None of 2 classes has a second reason."
    assert "None of 2 classes" in clean.page.read_text()


def test_numbers_are_those_of_the_network(audited):
    (group,) = audited["cat"].groups
    data = images(60, 40, PLANTED)
    cats = torch.stack([image for image, label in data if label == 0])
    vectors = AFMI(network()).attribution(cats, 0).vectors["contribution"].numpy()
    inside = np.arange(60) < PLANTED
    lead = group.maps[0]
    assert lead.group == pytest.approx(vectors[inside, SHORTCUT].mean(), rel=1e-5)
    assert lead.rest == pytest.approx(vectors[~inside, SHORTCUT].mean(), abs=1e-5)
    assert group.carried == pytest.approx(
        vectors[inside, SHORTCUT].sum() / vectors[inside].sum(), rel=1e-5
    )
    scores = network()(cats)[:, 0].detach().numpy()
    difference = scores[inside].mean() - scores[~inside].mean()
    assert group.score.value == pytest.approx(difference, rel=1e-5)
    assert group.score.low < difference < group.score.high
    pasted = group.intervention.pasted
    assert pasted.marked.value > 0.9
    assert pasted.marked.value - pasted.control.value == pytest.approx(pasted.difference.value)


def test_files_say_what_the_record_says(audited):
    record = json.loads((audited.folder / "audit.json").read_text())
    assert record == json.loads(json.dumps(audited.to_dict()))
    assert record["classes"][0]["groups"][0]["intervention"]["confirmed"]
    with (audited.folder / "classes.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["label"], first["images"], first["confirmed"]) == ("cat", "60", "True")
    assert second["suspicious"] == "False"
    with (audited.folder / "images.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["group"] for row in rows] == ["1"] * PLANTED + ["0"] * 86
    assert {row["predicted"] for row in rows[:60]} == {"0"}
    page = audited.page.read_text()
    assert "a second reason, confirmed" in page
    assert "Pasted into 64 images of other classes" in page
    assert page.count("<img") == 1 + 7 + 7
    shown = audited._repr_html_()
    assert "a second reason, confirmed" in shown
    assert str(audited.page) in shown


def test_a_second_call_resumes_and_says_the_same(audited, monkeypatch):
    def computed(*_):
        raise AssertionError("computed again")

    before = {path.name: path.read_bytes() for path in audited.folder.iterdir() if path.is_file()}
    monkeypatch.setattr("afmi.datasets.job.DatasetJob.run", computed)
    again = afmi.audit(network(), images(60, 40, PLANTED), audited.folder)
    assert again.to_dict() == audited.to_dict()
    assert {name: (audited.folder / name).read_bytes() for name in before} == before


def test_another_network_is_refused(audited):
    other = network()
    with torch.no_grad():
        other.network[4].weight.mul_(2)
    with pytest.raises(UsageError, match="model"):
        afmi.audit(other, images(60, 40, PLANTED), audited.folder)


@pytest.mark.parametrize("options", [{"all_classes": True}, {"versus": "dog"}])
def test_the_shortcut_is_found_by_other_questions(options, tmp_path):
    found = afmi.audit(network(), images(60, 40, PLANTED), tmp_path, confirm=False, **options)
    cat = found.classes[0]
    assert (cat.label, len(cat.groups[0].images)) == ("cat", PLANTED)
    assert cat.groups[0].maps[0].number == SHORTCUT
    assert cat.groups[0].intervention is None
    assert cat.verdict == "a second reason, not confirmed"
    assert len(found.classes) == 2 - ("versus" in options)
    assert found.versus == options.get("versus", "")


def test_some_classes_alone(tmp_path):
    data = images(30, 30, 8)
    found = afmi.audit(network(), data, tmp_path, classes=["cat"])
    assert [one.label for one in found.classes] == ["cat"]
    assert found["cat"].confirmed  # by images of the dogs, which were not audited
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 31


def test_an_unreadable_image_costs_no_other(tmp_path):
    data = images(40, 30, 0)
    data[3] = (torch.full((3, 16, 16), float("nan")), 0)
    found = afmi.audit(network(), data, tmp_path)
    assert (found["cat"].count, found["cat"].failed) == (39, 1)
    with (tmp_path / "images.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert rows[3]["predicted"] == rows[3]["group"] == rows[3]["score"] == ""


def test_few_images_are_said_to_be_few(tmp_path):
    found = afmi.audit(network(), images(8, 30, 3), tmp_path)
    assert found["cat"].verdict == "too few images (fewer than 20)"


def test_contributions_are_read_a_few_classes_at_a_time(audited, tmp_path, monkeypatch):
    monkeypatch.setattr("afmi.auditing.run._HELD_BYTES", 1)
    again = afmi.audit(network(), images(60, 40, PLANTED), tmp_path)
    assert again.to_dict() == audited.to_dict()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": ["newt"]}, TargetError, "newt"),
        ({"versus": "newt"}, TargetError, "newt"),
        ({"classes": ["cat"], "versus": "cat"}, ImageError, "no images of the classes"),
    ],
)
def test_refusals(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        afmi.audit(network(), images(3, 3, 0), tmp_path, **options)


def test_streams_are_refused(tmp_path):
    with pytest.raises(UsageError, match="length"):
        afmi.audit(network(), iter(images(3, 3, 0)), tmp_path)


def test_signals_are_refused(tmp_path):
    signals = torch.nn.Sequential(
        *(torch.nn.Conv1d(2, 3, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1)),
        *(torch.nn.Flatten(), torch.nn.Linear(3, 2)),
    )
    with pytest.raises(UsageError, match="shows and changes pictures"):
        afmi.audit(signals, [(torch.rand(2, 12), 0), (torch.rand(2, 12), 1)], tmp_path)
