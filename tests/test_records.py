"""Records of explanations: opened again anywhere, by a published schema, or refused in one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import networks
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import afmi
from afmi import Explanation, records
from afmi.errors import RecordError
from afmi.files import as_json
from afmi.network.fingerprint import fingerprint_of, remembered_fingerprint
from afmi.pictures import figures
from afmi.targets import Difference, RecordedTarget, Region, Scalar

LABELS = ("cat", "dog", "newt", "owl", "church")


@pytest.fixture(scope="module")
def model() -> afmi.Classifier:
    network = networks.build("vgg")
    return afmi.Classifier(network, labels=LABELS, resize=24, crop=20, name="tiny")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def written(
    model: afmi.Classifier, photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Explanation, Path]:
    one = afmi.explain(model, photo, "newt")
    return one, one.save(tmp_path_factory.mktemp("written"))["record"]


@pytest.fixture
def saved(written: tuple[Explanation, Path], tmp_path: Path) -> tuple[Explanation, Path]:
    one, record = written
    shutil.copytree(record.parent, tmp_path / "here")
    return one, tmp_path / "here" / record.name


def assert_same(one: Explanation, other: Explanation) -> None:
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.map, other.map)
    assert one.to_dict() == other.to_dict()
    assert np.array_equal(np.asarray(one.overlay()), np.asarray(other.overlay()))
    assert (repr(one), one.alt_text) == (repr(other), other.alt_text)


def test_a_record_opens_on_another_machine(saved: tuple[Explanation, Path], tmp_path: Path) -> None:
    one, record = saved
    shutil.move(record.parent, tmp_path / "there")
    again = Explanation.load(tmp_path / "there")
    assert_same(again, one)
    assert_same(Explanation.load(str(tmp_path / "there" / record.name)), one)
    assert again.figure().get_size_inches().tolist() == one.figure().get_size_inches().tolist()
    # What is opened can be saved, and is known as the same.
    files = again.save(tmp_path / "there")
    assert files["record"] == tmp_path / "there" / record.name


def test_the_record_tells_how_to_come_to_it_again(
    saved: tuple[Explanation, Path], model: afmi.Classifier, photo: Path
) -> None:
    one, path = saved
    record = json.loads(path.read_text())
    with torch.no_grad():
        logits = model(model.prepare(photo))[0]
    assert record["scores"]["meaning"] == "logits"
    assert torch.equal(torch.tensor(record["scores"]["values"]), logits)
    assert record["fingerprint"] == fingerprint_of(model)
    assert record["preparation"]["resize"] == 24
    assert record["preparation"]["interpolation"] == "bilinear"
    assert (record["target"], record["source"]) == ("class:of=2", str(photo))
    assert one.scores is not None and torch.equal(one.scores, logits)


def _network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(layers[0], nn.Tanh(), *layers[1:], nn.Flatten())


CASES: dict[str, Callable[[afmi.Classifier], Explanation]] = {
    "rounded by PNG": lambda m: afmi.explain(m, torch.rand(3, 20, 20), 1, method="gradient"),
    "signal": lambda _: afmi.explain(
        _network(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1)),
        torch.rand(2, 9),
        1,
        method="deeplift",
    ),
    "volume": lambda _: afmi.explain(
        _network(nn.Conv3d(2, 3, 3), nn.AdaptiveAvgPool3d(1)),
        torch.rand(2, 4, 5, 6),
        1,
        method="deeplift",
    ),
    "rather than": lambda m: afmi.explain(
        m, torch.rand(3, 20, 20), Difference("dog", "newt"), method="gradient"
    ),
    "region": lambda _: afmi.explain(
        nn.Conv2d(3, 4, 3, padding=1),
        torch.rand(3, 8, 8),
        Region(2, mask=torch.rand(8, 8) > 0.5),
        method="gradient",
    ),
    "function": lambda m: afmi.explain(
        m,
        torch.rand(3, 20, 20),
        Scalar(lambda logits: logits[:, 0] ** 2, "its square", unit="nats"),
        method="gradient",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_everything_that_can_be_explained_is_opened(
    case: str, model: afmi.Classifier, tmp_path: Path
) -> None:
    one = CASES[case](model)
    files = one.save(tmp_path)
    again = Explanation.load(tmp_path)
    assert_same(again, one)
    record = json.loads(files["record"].read_text())
    jsonschema.validate(record, records.schema())
    assert files["image"].suffix == ".npy"
    if case in ("region", "function"):
        assert isinstance(again.target, RecordedTarget)
    else:
        assert again.target == one.target


def test_numbers_that_json_cannot_hold_are_missing(
    saved: tuple[Explanation, Path], tmp_path: Path
) -> None:
    one = replace(saved[0], score=math.inf, scores=torch.tensor([math.nan, 1.0]))
    one.save(tmp_path / "lost")
    again = Explanation.load(tmp_path / "lost")
    assert math.isnan(again.score)
    assert again.to_dict() == one.to_dict()


def test_the_record_has_a_field_for_each_attribute(saved: tuple[Explanation, Path]) -> None:
    """So that nothing that is added to an explanation is forgotten on disk."""
    record = saved[0].to_dict()
    elsewhere = {"meaning"}  # beside the scores
    assert {f.name for f in fields(Explanation)} - set(record) == elsewhere
    assert set(records.schema()["required"]) == set(record)
    assert set(records.schema()["properties"]) == {*record, "files"}


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def _with(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("label"), "it: 'label' is a required property"),
        (_without("image", "digest"), "image: 'digest' is a required property"),
        (_without("image", "height"), "neither length nor height"),
        (_with(2, "schema"), "has schema 2, and this version of afmi reads schema 1; install a"),
        (_with(True, "schema"), "schema: 1 was expected"),
        (_with("1", "score"), "score: '1' is not of type 'number', 'null'"),
        (_with(True, "score"), "score: True is not of type 'number', 'null'"),
        (_with(1.5, "probability"), "probability: 1.5 is greater than the maximum of 1"),
        (_with(["for"], "ends"), r"ends: \['for'\] is too short"),
        (_with([{"class": 1}], "compared"), r"compared\[0\]: 'label' is a required property"),
        (_with("odds", "scores", "meaning"), "scores.meaning: 'odds' is not one of .'logits'"),
        (_with("x", "map", "digest"), "map.digest: 'x' does not match"),
        (_with("0" * 32, "map", "digest"), "its map, .* is not the one that it was saved with"),
        (_with("../a.npy", "files", "map"), "expected a file beside it"),
        (_with("..\\a.npy", "files", "map"), "expected a file beside it"),
        (_with("gone.npy", "files", "map"), "gone.npy' cannot be read: No such file"),
        (_without("files"), "names no file of its image, as records that were printed"),
        (_with([3], "area"), "its area has 3 pixels"),
        (_with(7, "versions", "afmi"), "versions.afmi: 7 is not of type 'string'"),
    ],
)
def test_foreign_records_are_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], says: str, saved: tuple[Explanation, Path]
) -> None:
    path = saved[1]
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=says) as caught:
        Explanation.load(path)
    assert "\n" not in str(caught.value)
    try:  # where the schema itself tells, it is another program's verdict as well
        jsonschema.validate(record, records.schema())
        assert "(schema 1)" not in str(caught.value)
    except jsonschema.ValidationError:
        assert "schema" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{}", b'{"schema": NaN}', b"\xff\xfe", b"[" * 100_000]
)
def test_files_of_others_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.json' is no whole record of an explanation"):
        Explanation.load(path)
    with pytest.raises(RecordError, match="holds no record"):
        Explanation.load(tmp_path)
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        Explanation.load(tmp_path / "none.json")


@pytest.mark.parametrize("kind", ["map", "image"])
@pytest.mark.parametrize("how", ["short", "other", "pickle", "gone"])
def test_damaged_numbers_are_refused(
    kind: str, how: str, saved: tuple[Explanation, Path], tmp_path: Path
) -> None:
    path = saved[1]
    file = path.with_name(json.loads(path.read_text())["files"][kind])
    content = file.read_bytes()
    if how == "short":
        file.write_bytes(content[: len(content) // 2])
    elif how == "other":
        changed = bytearray(content)
        changed[-5 if kind == "map" else 60] ^= 1
        file.write_bytes(bytes(changed))
    elif how == "pickle":
        np.save(file.with_suffix(".npy"), np.array([{}], object), allow_pickle=True)
        file.with_suffix(".npy").replace(file)
    else:
        file.unlink()
    with pytest.raises(RecordError, match=r"\.(npy|png|json)'") as caught:
        Explanation.load(path)
    assert "\n" not in str(caught.value)


def test_a_folder_of_several_records_asks_which(
    saved: tuple[Explanation, Path], model: afmi.Classifier, photo: Path
) -> None:
    path = saved[1]
    other = afmi.explain(model, photo, "owl")
    other.save(path.parent)
    (path.parent / "notes.json").write_text("{}")
    with pytest.raises(RecordError, match=r"holds 2 records \(photo-newt.*photo-owl.*Gallery"):
        Explanation.load(path.parent)
    opened = afmi.Gallery.load(path.parent)
    assert [each.label for each in opened] == ["newt", "owl"]


def test_networks_that_differ_have_records_of_their_own(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks.build("vgg")
    model = afmi.Classifier(network, labels=LABELS, resize=24, crop=20, name="tiny")
    monkeypatch.setattr(figures, "figure_png", lambda _, file: file.write(b"drawn"))
    first = afmi.explain(model, photo, "newt").save(tmp_path)
    with torch.no_grad():
        network.features[0].weight.mul_(1.5)  # type: ignore[union-attr]
    second = afmi.explain(model, photo, "newt").save(tmp_path)
    assert second["record"] != first["record"]
    assert Explanation.load(first["record"]).fingerprint != fingerprint_of(model)


def _by_data(weight: Tensor) -> None:
    weight.data[0] += 0.5


def _by_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[0] += 0.5


def _in_place(weight: Tensor) -> None:
    with torch.no_grad():
        weight[0] += 1e-9 * weight[0]


@pytest.mark.parametrize("change", [_by_data, _by_numpy, _in_place])
def test_a_remembered_fingerprint_is_that_of_the_weights(change: Callable[[Tensor], None]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5000))
    weight = network[2].weight
    assert isinstance(weight, Tensor)
    before = remembered_fingerprint(network)
    assert before == remembered_fingerprint(network) == fingerprint_of(network)
    change(weight)
    assert remembered_fingerprint(network) == fingerprint_of(network)
    with torch.inference_mode():
        assert remembered_fingerprint(network) == fingerprint_of(network)


def test_weights_are_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(3, 4)
    counted: list[int] = []
    import afmi.network.fingerprint as module

    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda tensors: counted.append(1) or digest(tensors))
    for _ in range(3):
        remembered_fingerprint(network)
    assert len(counted) == 1
    with afmi.unchanged(network):
        remembered_fingerprint(network)
        monkeypatch.setattr(module, "checksum", lambda _: pytest.fail("it was promised"))
        remembered_fingerprint(network)


def test_lists_of_numbers_stay_on_a_line() -> None:
    text = as_json({"a": [1, -2.5e-7, None], "b": ["[1,\n2]"], "c": [[1], []]}, indent=2)
    assert '"a": [1, -2.5e-07, null],' in text
    assert json.loads(text) == {"a": [1, -2.5e-7, None], "b": ["[1,\n2]"], "c": [[1], []]}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(records.schema())
