"""explain, explain_classes, explain_many, explain_files, and the record that saves itself."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import afmi
from afmi.api import explain, explain_classes, explain_files, explain_many
from afmi.errors import AfmiError, ImageError, ModelError, ShapeError, TargetError, UsageError
from afmi.explanation import Explanation
from afmi.methods import AFMI, GradCAM, Gradient, Method, Random
from afmi.pictures.finding import Unreadable
from afmi.pictures.references import White

LABELS = ("tabby cat", "collie", "newt", "Border terrier", "church / tower")


# ReLU leaves Grad-CAM nothing to show for some classes of the tiny network.
blank_is_fine = pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")


@pytest.fixture
def model():
    network = networks.build("vgg")
    return afmi.Classifier(network, labels=LABELS, resize=24, crop=20, name="tiny")


def _file(folder: Path, name: str, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.fixture
def photo(tmp_path):
    return _file(tmp_path, "photo.png")


class Counting(nn.Module):
    """Counts the pictures that go through the network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = networks.build("vgg")
        self.runs: list[int] = []

    def forward(self, x):
        self.runs.append(len(x))
        return self.inner(x)


def test_the_record_holds_what_was_found(model, photo):
    found = explain(model, photo, "newt")
    with Image.open(photo) as picture:
        inputs = model.prepare(picture)
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)[0]
    attribution = AFMI(model).attribution(inputs, 2)
    assert torch.equal(found.image, inputs[0])
    assert torch.equal(found.map, attribution.maps[0, 0])
    assert (found.target, found.label) == (2, "newt")
    assert found.probability == pytest.approx(float(probabilities[2]), rel=1e-5)
    assert found.predicted == int(probabilities.argmax())
    assert found.predicted_label == LABELS[found.predicted]
    assert found.predicted_probability == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert (found.method, found.layer) == ("A-FMI", str(attribution.layer))
    assert (found.reference, found.model, found.source) == ("black", "tiny", str(photo))
    assert found.residual == float(attribution.residual[0])
    assert found.parameters == {"reference": {"class": "Black"}, "averaged": True}
    assert found.versions["torch"] == torch.__version__
    assert found.versions["afmi"] == afmi.__version__
    assert found.versions["python"] == platform.python_version()
    assert set(found.versions) == {"afmi", "torch", "torchvision", "python"}
    with pytest.raises(FrozenInstanceError):
        found.target = 3


def test_the_predicted_class_is_explained_unless_told_otherwise(model, photo):
    found = explain(model, photo)
    assert found.target == found.predicted


@pytest.mark.parametrize("target", [1, "collie", "COLLIE", np.int64(1), torch.tensor(1), "1"])
def test_targets_by_index_and_label(model, photo, target):
    assert explain(model, photo, target).label == "collie"


@pytest.mark.parametrize("target", ["poodle", 5, -1, 1.5, True])
def test_wrong_targets_are_refused(model, photo, target):
    with pytest.raises(TargetError):
        explain(model, photo, target)


def test_every_kind_of_picture_gives_the_same(model, photo):
    from_file = explain(model, str(photo))
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    tensor = model.prepare(picture)
    for image in (picture, np.asarray(picture), photo.read_bytes(), tensor, tensor[0]):
        found = explain(model, image)
        assert torch.equal(found.map, from_file.map)
        assert found.source is None


def test_wrong_pictures_are_refused(model, tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        explain(model, tmp_path / "none.png")
    with pytest.raises(UsageError, match="not normalised yet"):
        explain(model, torch.randn(3, 20, 20))
    for wrong in (torch.rand(2, 3, 20, 20), torch.rand(20, 20), torch.zeros(3, 20, 20).byte()):
        with pytest.raises(ShapeError, match="one image"):
            explain(model, wrong)


def test_many_images_come_back_in_order(model, tmp_path):
    files = [_file(tmp_path, f"{i}.png", i) for i in range(5)]
    found = list(explain_many(model, files, batch_size=2))
    assert [f.source for f in found] == [str(f) for f in files]
    for one, file in zip(found, files, strict=True):
        torch.testing.assert_close(one.map, explain(model, file).map)
    each = list(explain_many(model, files[:3], ["newt", None, 0]))
    assert [one.target for one in each] == [2, found[1].predicted, 0]
    assert [one.target for one in explain_many(model, iter(files), "newt")] == [2] * 5
    assert list(explain_many(model, [])) == []
    tensors = torch.cat([model.prepare(Image.open(file)) for file in files])
    for one, tensor in zip(found, explain_many(model, tensors), strict=True):
        assert torch.equal(one.image, tensor.image)


def test_many_images_need_as_many_classes(model, tmp_path):
    files = [_file(tmp_path, f"{i}.png", i) for i in range(2)]
    with pytest.raises(TargetError, match="2 images, got 3"):
        explain_many(model, files, [1, 2, 3])
    with pytest.raises(TargetError, match="got 2 images and more classes"):
        list(explain_many(model, iter(files), [1, 2, 3]))
    with pytest.raises(TargetError, match="got 1 classes and more images"):
        list(explain_many(model, iter(files), [1]))
    with pytest.raises(TargetError, match="no class is called 'poodle'"):
        explain_many(model, files, ["newt", "poodle"])
    with pytest.raises(UsageError, match="batch_size"):
        explain_many(model, files, batch_size=0)


def test_one_call_explains_one_image_and_class(model, tmp_path):
    files = [_file(tmp_path, f"{i}.png", i) for i in range(2)]
    with pytest.raises(UsageError, match="one image, got 2; explain_many"):
        explain(model, files)
    with pytest.raises(TargetError, match="explain_classes"):
        explain(model, files[0], [1, 2, 3])


def test_images_are_read_when_their_turn_comes(model, tmp_path):
    taken = []

    def images():
        for i in range(100):
            taken.append(i)
            yield _file(tmp_path, f"{i}.png", i)

    found = explain_many(model, images(), batch_size=3)
    assert taken == []
    next(found)
    assert len(taken) == 3


def test_classes_are_explained_in_the_order_given(model, photo):
    found = explain_classes(model, photo, ["newt", 0])
    assert [one.target for one in found] == [2, 0]
    for one in found:
        torch.testing.assert_close(one.map, explain(model, photo, one.target).map)


@blank_is_fine
@pytest.mark.parametrize("method", ["AFMI", "grad-cam", "gradient", "random"])
def test_top_k_goes_from_the_likeliest_down(model, photo, method):
    found = explain_classes(model, photo, top_k=3, method=method)
    probabilities = [one.probability for one in found]
    assert probabilities == sorted(probabilities, reverse=True)
    assert found[0].target == found[0].predicted
    for one in found:
        alone = explain(model, photo, one.target, method=method)
        torch.testing.assert_close(one.map, alone.map)
        assert one.probability == pytest.approx(alone.probability, rel=1e-5)
        assert one.layer == alone.layer
    everything = explain_classes(model, photo, top_k=5)
    assert sorted(one.target for one in everything) == list(range(5))


@pytest.mark.parametrize(("top_k", "says"), [(6, "up to the 5"), (0, "from 1"), (True, "from 1")])
def test_impossible_top_k_is_refused(model, photo, top_k, says):
    with pytest.raises(UsageError, match=says):
        explain_classes(model, photo, top_k=top_k)


def test_either_top_k_or_classes_are_given(model, photo):
    with pytest.raises(UsageError, match="both"):
        explain_classes(model, photo, [1], top_k=2)
    with pytest.raises(UsageError, match="neither"):
        explain_classes(model, photo)


@blank_is_fine
def test_methods_by_name_class_and_instance(model, photo):
    for method in ("grad-cam", "GradCAM", GradCAM, GradCAM(model)):
        found = explain(model, photo, method=method, layer="features.2")
        assert (found.method, found.layer) == ("Grad-CAM", "features.2")
    assert explain(None, photo, method=GradCAM(model)).model == "tiny"
    with pytest.raises(UsageError, match="another model"):
        explain(networks.build("vgg"), photo, method=GradCAM(model))
    with pytest.raises(UsageError, match="no method is called"):
        explain(model, photo, method="grad-camel")
    with pytest.raises(UsageError, match="name, class or instance"):
        explain(model, photo, method=3)
    with pytest.raises(ModelError, match="load_model"):
        explain("vgg19", photo)


def test_parameters_reach_the_method_or_are_refused(model, photo):
    white = explain(model, photo, reference="white")
    assert white.reference == "white"
    assert torch.equal(white.map, explain(model, photo, reference=White()).map)
    first, second = (explain(model, photo, method=Random, seed=seed) for seed in (1, 2))
    assert first.parameters == {"seed": 1}
    assert not torch.equal(first.map, second.map)
    with pytest.raises(UsageError, match="Grad-CAM takes no parameter 'reference'"):
        explain(model, photo, method="grad-cam", reference="white")
    with pytest.raises(UsageError, match="Gradient takes no parameter 'layer'"):
        explain(model, photo, method=Gradient, layer="features.2")
    with pytest.raises(UsageError, match="did you mean 'averaged'"):
        explain(model, photo, averagd=False)


def test_colours_follow_the_method(model, photo):
    found = explain(model, photo)
    assert found.signed
    assert found.to_dict()["signed"] is True
    for values in (found.map.abs(), -found.map.abs()):  # all for, all against
        drawn = replace(found, map=values)
        assert drawn.scale.low == -drawn.scale.high
        assert "For (red), against (blue)" in [text.get_text() for text in drawn.figure().texts]
    cam = explain(model, photo, method="grad-cam")
    assert not cam.signed
    assert "The map" in [text.get_text() for text in cam.figure().texts]


def test_a_bare_network_sees_files_as_they_are(tmp_path):
    network = networks.build("resnet")
    file = _file(tmp_path, "odd.png", size=(31, 23))
    found = explain(network, file, 4)
    assert found.map.shape == (23, 31)
    assert (found.label, found.model) == ("class 4", "TinyResNet")
    stretched = explain(network, torch.randn(3, 20, 20) * 3)
    assert float(stretched.image.min()) >= 0
    assert float(stretched.image.max()) <= 1
    assert stretched.overlay().size == (20, 20)


def test_a_grey_network_is_shown_in_grey():
    found = explain(networks.MNISTNet().eval(), torch.rand(1, 28, 28), method="gradient")
    assert found.image.shape == (3, 28, 28)


def test_the_network_runs_as_seldom_as_may_be(tmp_path):
    network = Counting()
    model = afmi.Classifier(network, resize=24, crop=20, layer="inner.features.5")
    files = [_file(tmp_path, f"{i}.png", i) for i in range(4)]
    explain(model, files[0])  # the reference's own run is kept from now on
    network.runs.clear()
    explain(model, files[0])
    assert network.runs == [1]
    network.runs.clear()
    list(explain_files(model, files, batch_size=4))
    assert network.runs == [4]
    network.runs.clear()
    explain_classes(model, files[0], top_k=5)
    assert len(network.runs) <= 2


@dataclass(frozen=True)
class _Silent(GradCAM):
    """A method that does not tell the logits."""

    def _attribute(self, inputs, target):
        return replace(super()._attribute(inputs, target), logits=None)


def test_methods_that_tell_no_logits_get_their_probabilities(model, photo):
    silent, loud = (explain(model, photo, method=m) for m in (_Silent, GradCAM))
    assert silent.probability == pytest.approx(loud.probability)


def test_files_in_order_with_the_bad_ones_reported(model, tmp_path):
    good = [_file(tmp_path, f"{i}.png", i) for i in range(4)]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    paths = [good[0], bad, good[1], tmp_path / "none.png", good[2], good[3]]
    for batch_size in (1, 2, 3, 8):
        results = list(explain_files(model, paths, method=AFMI(model), batch_size=batch_size))
        assert [isinstance(r, Unreadable) for r in results] == [
            False,
            True,
            False,
            True,
            False,
            False,
        ]
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Unreadable):
                assert result.path == path
                assert path.name in result.reason
                assert "\n" not in result.reason
            else:
                (only,) = result
                assert only.source == str(path)
                torch.testing.assert_close(only.map, explain(model, path).map)


def test_files_of_many_sizes_behind_a_bare_network(tmp_path):
    network = networks.build("resnet")
    sizes = [(20, 20), (20, 20), (31, 23), (20, 20), (31, 23), (31, 23)]
    files = [_file(tmp_path, f"{i}.png", i, size) for i, size in enumerate(sizes)]
    results = list(explain_files(network, files, batch_size=4))
    assert [r[0].map.shape for r in results] == [(h, w) for w, h in sizes]
    for file, result in zip(files, results, strict=True):
        torch.testing.assert_close(result[0].map, explain(network, file).map)


def test_files_with_several_classes(model, tmp_path):
    files = [_file(tmp_path, f"{i}.png", i) for i in range(3)]
    for results in zip(
        files, explain_files(model, files, classes=[4, "newt"], batch_size=2), strict=True
    ):
        file, found = results
        assert [one.target for one in found] == [4, 2]
        for one in found:
            torch.testing.assert_close(one.map, explain(model, file, one.target).map)
    top = list(explain_files(model, files, top_k=2))
    assert all(len(found) == 2 and found[0].probability >= found[1].probability for found in top)
    with pytest.raises(UsageError, match="list of classes"):
        explain_files(model, files, classes=[])
    with pytest.raises(UsageError, match="list of classes"):
        explain_files(model, files, classes="newt")
    with pytest.raises(TargetError):
        explain_files(model, files, classes=["poodle"])
    with pytest.raises(UsageError, match="batch_size"):
        explain_files(model, files, batch_size=0)
    assert list(explain_files(model, [])) == []


def test_files_are_read_only_when_their_turn_comes(model, tmp_path):
    taken = []

    def paths():
        for i in range(100):
            taken.append(i)
            yield _file(tmp_path, f"{i}.png", i)

    results = explain_files(model, paths(), batch_size=3)
    assert taken == []
    next(results)
    assert len(taken) <= 4


def test_the_record_survives_json(model, photo):
    record = explain(model, photo, "newt").to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["image"]["height"] == record["image"]["width"] == 20
    lost = replace(explain(model, photo), residual=float("inf")).to_dict()
    assert lost["residual"] is None


@pytest.mark.parametrize("reference", ["black+white", White(), "blurred"])
def test_references_are_recorded(model, photo, reference):
    found = explain(model, photo, reference=reference)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.parameters["reference"]["class"] in ("Several", "White", "Blurred")
    assert found.reference


def test_save_writes_four_whole_files(model, photo, tmp_path):
    found = explain(model, photo, "Border terrier")
    files = found.save(tmp_path / "new" / "folder")
    assert {kind: path.name for kind, path in files.items()} == {
        "figure": "photo-border-terrier-a-fmi.png",
        "overlay": "photo-border-terrier-a-fmi-overlay.png",
        "map": "photo-border-terrier-a-fmi-map.npy",
        "record": "photo-border-terrier-a-fmi.json",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in files.values()
    )
    saved = np.load(files["map"])
    assert saved.dtype == np.float32
    assert np.array_equal(saved, found.map.numpy())
    with Image.open(files["overlay"]) as overlay, Image.open(files["figure"]) as figure:
        assert overlay.size == (20, 20)
        assert figure.width > 1000
    record = json.loads(files["record"].read_text(encoding="utf-8"))
    assert record.pop("files") == {kind: path.name for kind, path in files.items()}
    assert record == found.to_dict()


@blank_is_fine
def test_explanations_do_not_overwrite_each_other(model, photo, tmp_path):
    out = tmp_path / "out"
    other = tmp_path / "other"
    other.mkdir()
    namesake = _file(other, "photo.png", seed=1)
    explanations = [
        explain(model, photo, 0),
        explain(model, photo, 1),
        explain(model, photo, 0, method="grad-cam"),
        explain(model, photo, 0, reference="white"),
        explain(model, photo, 0, layer="features.2"),
        explain(model, namesake, 0),
    ]
    paths = [path for one in explanations for path in one.save(out).values()]
    assert len(set(paths)) == len(paths) == len(list(out.iterdir()))
    again = [path for one in explanations for path in one.save(out).values()]
    assert again == paths
    assert len(list(out.iterdir())) == len(paths)
    for one in explanations:
        assert json.loads(one.save(out)["record"].read_text(encoding="utf-8"))["label"] == one.label


@pytest.mark.parametrize("content", [b"not json", b"[1]", b"{}", b'{"source": 3}', b"\xff"])
def test_files_of_others_are_left_alone(model, photo, tmp_path, content):
    found = explain(model, photo, "newt")
    (tmp_path / "photo-newt-a-fmi.json").write_bytes(content)
    assert found.save(tmp_path)["record"].name == "photo-newt-a-fmi-2.json"
    assert (tmp_path / "photo-newt-a-fmi.json").read_bytes() == content


@pytest.mark.parametrize("stem", ["../../etc/x", "a/b\\c:d*?", "x" * 400, "猫" * 200, "", ".."])
def test_odd_names_stay_in_the_folder(model, photo, tmp_path, stem):
    out = tmp_path / "out"
    found = replace(explain(model, photo), label="church / tower, " + "y" * 300)
    for path in found.save(out, stem).values():
        assert path.resolve().parent == out.resolve()
        assert len(path.name.encode()) < 255
        assert path.exists()


@pytest.mark.parametrize("kind", ["png", "npy", "json"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    model, photo, tmp_path, monkeypatch, kind
):
    found = explain(model, photo, 0)
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in found.save(out).values()}
    changed = replace(found, map=found.map * 2, probability=0.5)
    real_open, opened = Path.open, Counter()

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(bytes(data)[: len(data) // 2])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    def open_until_full(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        if mode != "xb":
            return file
        opened["files"] += 1
        return Full(file) if opened["files"] == {"png": 1, "npy": 3, "json": 4}[kind] else file

    monkeypatch.setattr(Path, "open", open_until_full)
    with pytest.raises(AfmiError, match="No space left on device") as caught:
        changed.save(out)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    changed.save(out)
    assert {path: path.read_bytes() for path in out.iterdir()} != before


def test_an_interrupted_save_cleans_up(model, photo, tmp_path, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        explain(model, photo).save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_one_is_one_clear_line(model, photo):
    with pytest.raises(AfmiError, match="cannot be written") as caught:
        explain(model, photo).save(photo / "out")
    assert "\n" not in str(caught.value)


def test_files_get_the_usual_rights(model, photo, tmp_path):
    (tmp_path / "plain").write_text("x", encoding="utf-8")
    usual = os.stat(tmp_path / "plain").st_mode
    for path in explain(model, photo).save(tmp_path / "out").values():
        assert path.stat().st_mode == usual


def test_notebooks_show_the_figure(model, photo):
    found = replace(explain(model, photo), label='<b>"cat" & dog</b>')
    assert found._repr_png_().startswith(b"\x89PNG")
    text = found._repr_html_()
    assert text.startswith("<img ")
    assert "data:image/png;base64," in text
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_short_texts(model, photo):
    found = replace(
        explain(model, photo, "newt"),
        probability=0.99996,
        predicted=2,
        residual=-0.123,
        source="photo.png",
    )
    assert repr(found) == "Explanation('newt' over 99.9%, A-FMI, 20×20, 'photo.png')"
    assert str(found).startswith("newt, over 99.9% — A-FMI (model tiny · layer features")
    assert "residual −12.3%" in str(found)
    other = replace(found, target=1, label="collie", probability=0.00002, predicted_probability=0.9)
    assert str(other).startswith("collie, under 0.1% (predicted: ")


def test_views(model, photo):
    found = explain(model, photo)
    assert found.overlay().size == found.heatmap().size == (20, 20)
    assert np.asarray(found.insertion(0.25)).any(axis=2).sum() <= 100
    titles = [text.get_text() for text in found.figure().texts]
    assert any(found.label in title and "A-FMI" in title for title in titles)
    assert "Top 10% of the pixels" in titles


def test_the_facade_leads_here():
    assert afmi.explain is explain
    assert (afmi.explain_classes, afmi.explain_many) == (explain_classes, explain_many)
    assert afmi.Explanation is Explanation
    assert issubclass(afmi.methods.AFMI, Method)
