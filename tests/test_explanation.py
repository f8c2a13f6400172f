"""explain, explain_classes, explain_many, explain_files, and the record that saves itself."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from PIL import Image
from settings import STRANGE_DEFAULTS, defaults
from torch import Tensor, nn

import afmi
from afmi.api import explain, explain_classes, explain_files, explain_many
from afmi.batching import Unexplained
from afmi.errors import (
    AfmiError,
    DeviceError,
    ImageError,
    ModelError,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.explanation import Explanation
from afmi.files import save_record
from afmi.methods import AFMI, BlankMapWarning, DeepLIFT, GradCAM, Gradient, Method, Random
from afmi.pictures import figures
from afmi.pictures.references import White, reference_of
from afmi.targets import Class

COMPARING = ("a-fmi", "deeplift", "integratedgradients:steps=8", "kernelshap:samples=64")
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


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (torch.zeros(4, 8, 8), r"tensor \(3, H, W\) .* got \(4, 8, 8\) .* as many as the network"),
        (torch.zeros(8, 8), "the channels come first"),
        (torch.zeros(2, 3, 8, 8), "explain_many takes several"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "divide bytes by 255"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"image\.float\(\)"),
        (torch.zeros(3, 8, 8).to_sparse(), r"to_dense\(\)"),
        (torch.zeros(3, 8, 8, device="meta"), "'meta', which holds none"),
    ],
)
def test_a_tensor_that_is_not_one_image(image: Tensor, advice: str, model) -> None:
    with pytest.raises(ShapeError, match=advice):
        explain(model, image, 1, method="gradient")


@pytest.mark.parametrize("reference", [0.5, Image.new("RGB", (9, 9), "red"), torch.rand(3, 20, 20)])
def test_what_stands_for_a_reference(reference: Any, model) -> None:
    image = networks.images(1)[0]
    explanation = explain(model, image, 1, method="deeplift", reference=reference)
    expected = DeepLIFT(model, reference=reference_of(reference)).attribute(image[None], 1)
    assert torch.equal(explanation.map, expected[0, 0])
    assert "reference" in json.dumps(explanation.to_dict())


@pytest.mark.parametrize("strange", STRANGE_DEFAULTS, ids=str)
def test_default_dtype_and_device_change_nothing(strange: dict[str, Any], photo, model) -> None:
    def drawn() -> list[np.ndarray]:
        explanation = explain(model, photo, "newt")
        compared = afmi.compare(model, photo, "newt", methods=["a-fmi", "rise:masks=4"])
        return [np.asarray(explanation.overlay()), np.array(compared.responses)]

    expected = drawn()
    with defaults(**strange):
        for one, other in zip(drawn(), expected, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("network", [nn.LazyConv2d(2, 3), nn.Conv2d(3, 2, 3, device="meta")])
def test_networks_that_cannot_be_explained(network: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"not initialised|on the device 'meta'"):
        explain(network, networks.images(1)[0], 1)


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
    explanation = explain(model, photo, "newt")
    with Image.open(photo) as picture:
        inputs = model.prepare(picture)
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)[0]
    attribution = AFMI(model).attribution(inputs, 2)
    assert torch.equal(explanation.image, inputs[0])
    assert torch.equal(explanation.map, attribution.maps[0, 0])
    assert (explanation.class_index, explanation.label) == (2, "newt")
    assert explanation.probability == pytest.approx(float(probabilities[2]), rel=1e-5)
    assert explanation.predicted == int(probabilities.argmax())
    assert explanation.predicted_label == LABELS[explanation.predicted]
    assert explanation.predicted_probability == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert (explanation.method, explanation.layer) == ("A-FMI", str(attribution.layer))
    assert (explanation.reference, explanation.model, explanation.source) == (
        "black",
        "tiny",
        str(photo),
    )
    assert explanation.residual == float(attribution.residual[0])
    assert explanation.parameters == {"reference": {"class": "Black"}, "averaged": True}
    assert explanation.versions["torch"] == torch.__version__
    assert explanation.versions["afmi"] == afmi.__version__
    assert explanation.versions["python"] == platform.python_version()
    assert set(explanation.versions) == {"afmi", "torch", "torchvision", "python"}
    with pytest.raises(FrozenInstanceError):
        explanation.target = 3


def test_the_predicted_class_is_explained_unless_told_otherwise(model, photo):
    explanation = explain(model, photo)
    assert explanation.class_index == explanation.predicted


@pytest.mark.parametrize("target", [1, "collie", "COLLIE", np.int64(1), torch.tensor(1), "1"])
def test_targets_by_index_and_label(model, photo, target):
    assert explain(model, photo, target).label == "collie"


@pytest.mark.parametrize("target", ["poodle", 5, -1, 1.5, True, torch.tensor(True)])
def test_wrong_targets_are_refused(model, photo, target):
    with pytest.raises(TargetError):
        explain(model, photo, target)


def test_every_kind_of_picture_gives_the_same(model, photo):
    from_file = explain(model, str(photo))
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    tensor = model.prepare(picture)
    for image in (picture, np.asarray(picture), photo.read_bytes(), tensor, tensor[0]):
        explanation = explain(model, image)
        assert torch.equal(explanation.map, from_file.map)
        assert explanation.source is None


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
    explanations = list(explain_many(model, files, batch_size=2))
    assert [f.source for f in explanations] == [str(f) for f in files]
    for one, file in zip(explanations, files, strict=True):
        torch.testing.assert_close(one.map, explain(model, file).map)
    each = list(explain_many(model, files[:3], ["newt", None, 0]))
    assert [one.class_index for one in each] == [2, explanations[1].predicted, 0]
    assert [one.class_index for one in explain_many(model, iter(files), "newt")] == [2] * 5
    assert list(explain_many(model, [])) == []
    tensors = torch.cat([model.prepare(Image.open(file)) for file in files])
    for one, tensor in zip(explanations, explain_many(model, tensors), strict=True):
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

    explanations = explain_many(model, images(), batch_size=3)
    assert taken == []
    next(explanations)
    assert len(taken) == 3


def test_classes_are_explained_in_the_order_given(model, photo):
    explanations = explain_classes(model, photo, ["newt", 0])
    assert [one.class_index for one in explanations] == [2, 0]
    for one in explanations:
        torch.testing.assert_close(one.map, explain(model, photo, one.class_index).map)


@blank_is_fine
@pytest.mark.parametrize("method", ["AFMI", "grad-cam", "gradient", "random"])
def test_top_k_goes_from_the_likeliest_down(model, photo, method):
    explanations = explain_classes(model, photo, top_k=3, method=method)
    probabilities = [one.probability for one in explanations]
    assert probabilities == sorted(probabilities, reverse=True)
    assert explanations[0].class_index == explanations[0].predicted
    for one in explanations:
        alone = explain(model, photo, one.class_index, method=method)
        torch.testing.assert_close(one.map, alone.map)
        assert one.probability == pytest.approx(alone.probability, rel=1e-5)
        assert one.layer == alone.layer
    everything = explain_classes(model, photo, top_k=5)
    assert sorted(one.class_index for one in everything) == list(range(5))


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
        explanation = explain(model, photo, method=method, layer="features.2")
        assert (explanation.method, explanation.layer) == ("Grad-CAM", "features.2")
    assert explain(None, photo, method=GradCAM(model)).model == "tiny"
    with pytest.raises(UsageError, match="another model"):
        explain(networks.build("vgg"), photo, method=GradCAM(model))
    with pytest.raises(UsageError, match="no method is called"):
        explain(model, photo, method="grad-camel")
    with pytest.raises(UsageError, match="name, class or instance"):
        explain(model, photo, method=3)
    with pytest.raises(ModelError, match="load_model"):
        explain("vgg19", photo)


@blank_is_fine
def test_an_image_alone_is_explained_by_the_default_model(model, photo, monkeypatch):
    monkeypatch.setattr("afmi.api.load_model", lambda: model)
    expected = explain(model, photo, "newt")
    alone = (explain(photo, target="newt"), explain(image=photo, target="newt"))
    for one in (*alone, explain(None, photo, "newt"), explain(photo, None, "newt")):
        assert (one.model, one.label, one.source) == ("tiny", "newt", str(photo))
        assert torch.equal(one.map, expected.map)
    (many,) = explain_many(None, [photo], "newt")
    assert torch.equal(many.map, expected.map)
    other = afmi.Classifier(networks.build("vgg"), resize=24, crop=20, name="other")
    assert explain(photo, method=GradCAM(other)).model == "other"  # a method brings its own
    for nothing in ((), (None,), (model,)):
        with pytest.raises(UsageError, match=r"expected an image, got none; pass explain\(model"):
            explain(*nothing)


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


@pytest.mark.filterwarnings("ignore::afmi.errors.PreprocessingWarning")
def test_a_bare_network_sees_files_as_they_are(tmp_path):
    network = networks.build("resnet")
    file = _file(tmp_path, "odd.png", size=(31, 23))
    explanation = explain(network, file, 4)
    assert explanation.map.shape == (23, 31)
    assert (explanation.label, explanation.model) == ("class 4", "TinyResNet")
    stretched = explain(network, torch.randn(3, 20, 20) * 3)
    assert float(stretched.image.min()) >= 0
    assert float(stretched.image.max()) <= 1
    assert stretched.overlay().size == (20, 20)


def test_a_grey_network_is_shown_in_grey():
    explanation = explain(networks.MNISTNet().eval(), torch.rand(1, 28, 28), method="gradient")
    assert explanation.image.shape == (3, 28, 28)


def test_the_network_runs_as_seldom_as_may_be(tmp_path):
    network = Counting()
    model = afmi.Classifier(network, resize=24, crop=20, layer="inner.features.5")
    files = [_file(tmp_path, f"{i}.png", i) for i in range(4)]
    explain(model, files[0])  # the reference's run is kept from now on
    network.runs.clear()
    explain(model, files[0])
    assert network.runs == [1]
    network.runs.clear()
    list(explain_files(model, files, batch_size=4))
    assert network.runs == [1, 4]  # the reference beside the first batch of this size
    network.runs.clear()
    list(explain_files(model, files, batch_size=4))
    assert network.runs == [4]
    network.runs.clear()
    explain_classes(model, files[0], top_k=5)
    assert len(network.runs) <= 2


@dataclass(frozen=True)
class _Silent(GradCAM):
    """A method that does not return the logits."""

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
        assert [isinstance(r, Unexplained) for r in results] == [
            False,
            True,
            False,
            True,
            False,
            False,
        ]
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Unexplained):
                assert result.source == str(path)
                assert result.index == paths.index(path)
                assert path.name in result.reason
                assert "\n" not in result.reason
            else:
                (only,) = result
                assert only.source == str(path)
                torch.testing.assert_close(only.map, explain(model, path).map)


class Failing(nn.Module):
    """Fails on images that are brighter than ``limit`` at their first pixel."""

    def __init__(self, failure: BaseException | float, limit: float = 0.9) -> None:
        super().__init__()
        self.inner = networks.build("vgg")
        self.failure = failure
        self.limit = limit

    def forward(self, x):
        bright = x[:, :, 0, 0].amin(1) > self.limit
        if isinstance(self.failure, BaseException):
            if bright.any():
                raise self.failure
            return self.inner(x)
        return torch.where(bright[:, None], self.failure, self.inner(x))


def _ten_images() -> torch.Tensor:
    """Ten images, of which ``Failing`` refuses the one at place 5."""
    images = 0.8 * torch.rand(10, 3, 20, 20)
    images[5, :, 0, 0] = 1
    return images


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RuntimeError("a bad\nday"), "image 5 cannot be explained: RuntimeError: a bad"),
        (MemoryError(), "image 5 cannot be explained: there is too little memory for it"),
        (AfmiError("it overflows"), "image 5 cannot be explained: it overflows"),
        (float("nan"), "the network gives NaN instead of logits"),
        (float("inf"), "the network gives infinity instead of logits"),
        (-float("inf"), "the network gives infinity instead of logits"),
    ],
)
@pytest.mark.parametrize("method", ["a-fmi", "random"])
def test_an_image_that_fails_does_not_stop_the_rest_of_its_batch(failure, words, method):
    model = afmi.Classifier(Failing(failure), layer="inner.features.5")
    images = _ten_images()
    results = list(explain_many(model, images, method=method, batch_size=8))
    failed = [result for result in results if isinstance(result, Unexplained)]
    assert [result.index for result in failed] == [5]
    assert words in failed[0].reason
    assert failed[0].reason.startswith("image 5 ")
    assert "\n" not in failed[0].reason
    for image, result in zip(images, results, strict=True):
        if isinstance(result, Explanation):
            torch.testing.assert_close(result.map, explain(model, image, method=method).map)


class Dying(Failing):
    """Fails at the same image, and at each call from then on, as a GPU after an assertion."""

    dead = False

    def forward(self, x):
        self.dead = self.dead or bool((x[:, :, 0, 0].amin(1) > self.limit).any())
        if self.dead:
            raise RuntimeError("device-side assert triggered")
        return self.inner(x)


def test_a_device_that_is_lost_is_no_fault_of_the_images(monkeypatch):
    network = Dying(0.0)
    model = afmi.Classifier(network, layer="inner.features.5")
    zeros = torch.zeros

    def zeros_if_alive(*size, **options):
        if network.dead and "device" in options:
            raise RuntimeError("device-side assert triggered")
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", zeros_if_alive)
    results = explain_many(model, _ten_images(), batch_size=2)
    assert all(isinstance(next(results), Explanation) for _ in range(4))
    with pytest.raises(DeviceError, match="cpu works no longer since image 4 was explained"):
        next(results)


def test_a_file_that_fails_is_named_and_the_rest_go_on(tmp_path):
    model = afmi.Classifier(Failing(RuntimeError("no"), limit=0.99), layer="inner.features.5")
    files = [tmp_path / f"{color}.png" for color in ("red", "green", "white", "blue")]
    for file in files:
        Image.new("RGB", (20, 20), file.stem).resize((24, 24)).save(file)
    results = list(explain_files(model, files, classes=[1, 2], batch_size=3))
    assert [isinstance(result, Unexplained) for result in results] == [False, False, True, False]
    assert results[2].source == str(files[2])
    assert results[2].reason.startswith(f"{str(files[2])!r} cannot be explained: RuntimeError: no")
    assert [one.class_index for one in results[3]] == [1, 2]


def test_images_that_cannot_be_prepared_keep_their_places(model, photo, tmp_path):
    nan = torch.full((3, 20, 20), float("nan"))
    images = [photo, tmp_path / "none.png", nan, torch.zeros(5, 20, 20), object(), photo]
    results = list(explain_many(model, images))
    assert [isinstance(result, Unexplained) for result in results] == [False, *[True] * 4, False]
    reasons = [result.reason for result in results if isinstance(result, Unexplained)]
    assert "none.png' does not exist" in reasons[0]
    assert "image 2 cannot be prepared for the network: expected finite pixels" in reasons[1]
    assert "image 3 cannot be prepared for the network: expected one image" in reasons[2]
    assert "image 4 cannot be prepared for the network: expected a path" in reasons[3]


@pytest.mark.filterwarnings("ignore::afmi.errors.PreprocessingWarning")
def test_what_no_image_can_be_explained_with_ends_the_run(tmp_path):
    model = networks.build("vgg")
    images = torch.rand(3, 3, 20, 20)
    with pytest.raises(TargetError, match="expected a class from 0 to 4, got 9"):
        list(explain_many(model, images, 9))
    results = list(explain_many(model, images, [1, 9, 1]))
    assert [isinstance(result, Unexplained) for result in results] == [False, True, False]
    file = _file(tmp_path, "a.png")
    with pytest.raises(UsageError, match="top_k up to the 5 classes"):
        list(explain_files(model, [file], top_k=6))
    (tmp_path / "reference.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"reference\.png' is not an image"):
        list(explain_files(model, [file], reference=str(tmp_path / "reference.png")))


def test_a_class_may_be_ruled_out_by_minus_infinity():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = networks.build("vgg")

        def forward(self, x):
            return self.inner(x).index_fill(1, torch.tensor([4]), -torch.inf)

    found = explain(Masked(), torch.rand(3, 20, 20), 1, method="gradient")
    assert 0 < found.probability < 1


class Standardising(nn.Module):
    """Standardises each image, so that one of a single colour becomes NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = networks.build("vgg")

    def forward(self, x):
        mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        return self.inner((x - mean) / std)


@pytest.mark.filterwarnings("ignore::afmi.errors.CompletenessWarning")
@pytest.mark.parametrize(
    "method", ["a-fmi", "deeplift", "integratedgradients", "kernelshap:samples=64"]
)
def test_a_reference_that_the_network_answers_with_nan_is_named(method):
    model = Standardising()
    layer = {"layer": "inner.features.5"} if method == "a-fmi" else {}
    options = {"method": method, "reference": "black", **layer}
    with pytest.raises(AfmiError, match="outputs for the reference black are NaN or infinite"):
        explain(model, torch.rand(3, 20, 20), **options)
    explain(model, torch.rand(3, 20, 20), **(options | {"reference": "random"}))
    with pytest.raises(AfmiError, match="gives NaN instead of logits"):
        explain(model, torch.full((3, 20, 20), 0.5), **options)


@pytest.mark.parametrize("reference", ["black", "blurred", "mean(color=0.5+0.5+0.5)"])
@pytest.mark.parametrize(
    "method", ["a-fmi", "deeplift", "integratedgradients", "kernelshap:samples=64"]
)
def test_an_image_equal_to_its_reference_is_blank_in_a_batch_too(method, reference):
    model, images = networks.build("vgg"), torch.rand(8, 3, 20, 20)
    images[3] = 0 if reference == "black" else 0.5
    # As another program might have rounded it.
    images[3, 0, 0, 0] += 1e-7
    with pytest.warns(BlankMapWarning, match="the same everywhere for image 3:"):
        found = list(explain_many(model, images, 1, method=method, reference=reference))
    assert found[3].map.abs().max() == 0
    assert found[3].residual is None
    assert all(one.map.abs().max() > 0 for one in found[:3] + found[4:])
    with pytest.warns(BlankMapWarning, match="the same everywhere for image 0:"):
        alone = explain(model, images[3], 1, method=method, reference=reference)
    assert alone.map.abs().max() == 0
    assert alone.residual is None


@pytest.mark.filterwarnings("ignore::afmi.errors.PreprocessingWarning")
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
        file, explanations = results
        assert [one.class_index for one in explanations] == [4, 2]
        for one in explanations:
            torch.testing.assert_close(one.map, explain(model, file, one.class_index).map)
    top = list(explain_files(model, files, top_k=2))
    assert all(
        len(explanations) == 2 and explanations[0].probability >= explanations[1].probability
        for explanations in top
    )
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
    explanation = explain(model, photo, reference=reference)
    json.dumps(explanation.to_dict(), allow_nan=False)
    assert explanation.parameters["reference"]["class"] in ("Several", "White", "Blurred")
    assert explanation.reference


def test_save_writes_five_whole_files(model, photo, tmp_path):
    explanation = explain(model, photo, "Border terrier")
    files = explanation.save(tmp_path / "new" / "folder")
    assert {kind: path.name for kind, path in files.items()} == {
        "figure": "photo-border-terrier-a-fmi.png",
        "overlay": "photo-border-terrier-a-fmi-overlay.png",
        "map": "photo-border-terrier-a-fmi-map.npy",
        "image": "photo-border-terrier-a-fmi-image.png",
        "record": "photo-border-terrier-a-fmi.json",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in files.values()
    )
    saved = np.load(files["map"])
    assert saved.dtype == np.float32
    assert np.array_equal(saved, explanation.map.numpy())
    with Image.open(files["overlay"]) as overlay, Image.open(files["figure"]) as figure:
        assert overlay.size == (20, 20)
        assert figure.width > 1000
    record = json.loads(files["record"].read_text(encoding="utf-8"))
    assert record.pop("files") == {kind: path.name for kind, path in files.items()}
    assert record == explanation.to_dict()


@blank_is_fine
@pytest.mark.usefixtures("small_figures")
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


@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("content", [b"not json", b"[1]", b"{}", b'{"source": 3}', b"\xff"])
def test_files_of_others_are_left_alone(model, photo, tmp_path, content):
    explanation = explain(model, photo, "newt")
    (tmp_path / "photo-newt-a-fmi.json").write_bytes(content)
    assert explanation.save(tmp_path)["record"].name == "photo-newt-a-fmi-2.json"
    assert (tmp_path / "photo-newt-a-fmi.json").read_bytes() == content


def test_a_file_without_a_record_is_left_alone(model, photo, tmp_path):
    taken = tmp_path / "photo-newt-a-fmi-map.npy"
    taken.write_bytes(b"mine")
    assert explain(model, photo, "newt").save(tmp_path)["map"].name == "photo-newt-a-fmi-2-map.npy"
    assert taken.read_bytes() == b"mine"
    assert len(list(tmp_path.glob("photo-newt*"))) == 1 + 5


def namesakes(explanation, count):
    """Return explanations of different images that are all called img.jpg."""
    changed = (explanation.image * (1 - n / 99) for n in range(count))
    return [
        replace(explanation, image=image, source=f"{n}/img.jpg", map=explanation.map * n)
        for n, image in enumerate(changed)
    ]


@pytest.mark.usefixtures("small_figures")
def test_threads_that_save_namesakes_lose_none(model, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figure_png", lambda _, file: file.write(b"drawn"))
    explanations = namesakes(explain(model, photo, "newt"), 8)
    gate = threading.Barrier(8)

    def save(explanation):
        gate.wait()
        return explanation.save(tmp_path / "out")

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(save, explanations))
    assert len(list((tmp_path / "out").iterdir())) == 8 * 5
    for explanation, files in zip(explanations, saved, strict=True):
        record = json.loads(files["record"].read_text(encoding="utf-8"))
        assert record["source"] == explanation.source
        assert record["files"] == {kind: path.name for kind, path in files.items()}
        assert np.array_equal(np.load(files["map"]), explanation.map.numpy())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_record_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "img.json")
    files = save_record(tmp_path, "img", {"map": (".npy", b"1")}, {}, lambda record: record)
    assert {kind: path.name for kind, path in files.items()} == {
        "map": "img-2.npy",
        "record": "img-2.json",
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_save_namesakes_lose_none(tmp_path):
    children = []
    for process in range(4):
        child = os.fork()
        if child == 0:
            for n in range(8):
                record = {"source": [process, n]}
                contents = {"map": (".npy", f"{process} {n}".encode())}
                save_record(tmp_path, "img", contents, record, lambda found: found["source"])
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(r["source"] for r in records) == [[p, n] for p in range(4) for n in range(8)]
    for record in records:
        process, n = record["source"]
        assert (tmp_path / record["files"]["map"]).read_text() == f"{process} {n}"
    assert len(list(tmp_path.iterdir())) == 2 * 32


def test_a_name_that_is_too_long_is_found_before_anything_is_written(tmp_path):
    def write(file):
        raise AssertionError("it was written")

    with pytest.raises(AfmiError, match="the name or the path is too long") as caught:
        save_record(tmp_path, "x" * 300, {"map": (".npy", write)}, {}, dict)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("stem", ["../../etc/x", "a/b\\c:d*?", "x" * 400, "猫" * 200, "", ".."])
def test_odd_names_stay_in_the_folder(model, photo, tmp_path, stem):
    out = tmp_path / "out"
    explanation = replace(explain(model, photo), label="church / tower, " + "y" * 300)
    for path in explanation.save(out, stem).values():
        assert path.resolve().parent == out.resolve()
        assert len(path.name.encode()) < 255
        assert path.exists()


@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("kind", ["png", "npy", "json"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    model, photo, tmp_path, monkeypatch, kind
):
    explanation = explain(model, photo, 0)
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in explanation.save(out).values()}
    changed = replace(explanation, map=explanation.map * 2, probability=0.5)
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
    explanation = replace(explain(model, photo), label='<b>"cat" & dog</b>')
    assert explanation._repr_png_().startswith(b"\x89PNG")
    text = explanation._repr_html_()
    assert text.startswith("<img ")
    assert "data:image/png;base64," in text
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_short_texts(model, photo):
    explanation = replace(
        explain(model, photo, "newt"),
        probability=0.99996,
        predicted=2,
        residual=-0.123,
        source="photo.png",
    )
    assert repr(explanation) == "Explanation('newt, over 99.9%', A-FMI, 20×20, 'photo.png')"
    assert str(explanation).startswith("newt, over 99.9% — A-FMI (model tiny · layer features")
    assert "residual −12.3%" in str(explanation)
    other = replace(
        explanation, target=Class(1), label="collie", probability=0.00002, predicted_probability=0.9
    )
    assert str(other).startswith("collie, under 0.1% (predicted: ")


def test_views(model, photo):
    explanation = explain(model, photo)
    assert explanation.overlay().size == explanation.heatmap().size == (20, 20)
    assert np.asarray(explanation.insertion(0.25)).any(axis=2).sum() <= 100
    titles = [text.get_text() for text in explanation.figure().texts]
    assert any(explanation.label in title and "A-FMI" in title for title in titles)
    assert "Top 10% of the pixels" in titles


def test_the_facade_leads_here():
    assert afmi.explain is explain
    assert (afmi.explain_classes, afmi.explain_many) == (explain_classes, explain_many)
    assert afmi.Explanation is Explanation
    assert issubclass(afmi.methods.AFMI, Method)


def test_large_images_are_drawn_at_a_bounded_size(tmp_path):
    ramp = torch.linspace(0, 1, 2100).expand(1050, -1).contiguous()
    found = Explanation(
        image=ramp.expand(3, -1, -1), map=ramp, target=Class(0), label="ramp", score=1.0,
        unit="logit", probability=1.0,
        predicted=0, predicted_label="ramp", predicted_probability=1.0, method="none",
        parameters={}, signed=True,
    )  # fmt: skip
    for picture in (found.overlay(), found.heatmap(), found.insertion(0.5)):
        assert picture.size == (1024, 512)
    inserted = np.asarray(found.insertion(0.5)).any(2)
    assert inserted[:, 512:].all()
    assert not inserted[:, :512].any()
    files = found.save(tmp_path)
    assert np.load(files["map"]).shape == (1050, 2100)
    assert found.to_dict()["image"]["width"] == 2100


def test_an_image_of_one_value_outside_the_range_is_shown(tmp_path):
    found = explain(networks.build("vgg"), torch.full((3, 20, 20), 2.0), 1, method="gradient")
    assert found.image.unique().tolist() == [0]
    found.save(tmp_path)


def test_classes_of_one_image_share_it(model, photo):
    first, second = explain_classes(model, photo, top_k=2)
    assert first.image is second.image


def test_lists_show_themselves(model, photo):
    gallery = explain_classes(model, photo, top_k=2)
    assert isinstance(gallery, list)
    gallery[0] = replace(gallery[0], label="<script>")
    page = gallery._repr_html_()
    assert page.count("<img ") == 2
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "most of the evidence" in page.lower()
    assert len(page) < 60_000
    many = afmi.Gallery([gallery[1]] * 30)._repr_html_()
    assert many.count("<img ") == 24
    assert "and 6 more" in many
    assert "no explanations" in afmi.Gallery()._repr_html_()
    gaps = afmi.Gallery([*gallery, Unexplained(2, None, "image 3 has a < b pixels")])
    assert "image 3 has a &lt; b pixels" in gaps._repr_html_()
    assert ">Most of the evidence" not in gallery[1]._repr_html_()  # in the alt text alone
    assert "Most of the evidence lies" in gallery[1]._repr_html_()
