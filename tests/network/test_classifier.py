"""A classifier normalises inside, checks what goes in and out, and knows its classes by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import MNISTNet, build, images
from PIL import Image
from torch import Tensor, nn

from afmi.api import explain
from afmi.batching import prepare
from afmi.errors import ImageError, ModelError, ShapeError, TargetError
from afmi.network.classifier import Classifier, class_label, classify, find_class, input_channels
from afmi.network.outputs import read_outputs, selected

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Seen(nn.Module):
    """Keep what the network was given, and return two constant logits."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return torch.zeros(x.shape[0], 2)


def test_pixels_are_normalised_inside_so_that_black_is_black() -> None:
    network = Seen()
    Classifier(network, mean=MEAN, std=STD)(torch.zeros(1, 3, 2, 2))
    expected = [-m / s for m, s in zip(MEAN, STD, strict=True)]
    assert network.x[0, :, 1, 1].tolist() == pytest.approx(expected)
    Classifier(network, mean=MEAN, std=STD)(torch.tensor(MEAN).view(1, 3, 1, 1))
    assert network.x.abs().max() < 1e-6


def test_equals_the_network_on_images_normalised_by_hand() -> None:
    network, x = build("vgg"), images(2)
    normalised = torchvision.transforms.functional.normalize(x, list(MEAN), list(STD))
    assert torch.equal(Classifier(network, mean=MEAN, std=STD)(x), network(normalised))


def test_normalisation_joins_the_network_in_its_precision_and_adds_no_weights() -> None:
    model = Classifier(build("vgg", torch.float64), mean=MEAN, std=STD)
    assert model.mean.dtype == torch.float64
    assert all(name.startswith("network.") for name in model.state_dict())


def test_mode_of_the_network_is_kept() -> None:
    assert not Classifier(build("vgg")).training
    network = build("vgg").train()
    assert Classifier(network).training
    assert network.training


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected images of shape \(N, 3, H, W\)"):
        Classifier(build("vgg"))(torch.zeros(shape))


def test_other_numbers_of_channels_follow_the_mean() -> None:
    model = Classifier(MNISTNet().eval(), mean=[0.1307], std=[0.3081])
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_the_default_normalisation_has_the_channels_of_the_first_layer(channels: int) -> None:
    first = nn.Conv2d(channels, 2, 3)
    for layers in ([first], [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 2, 3)]):
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = Classifier(network.eval())
        assert model.mean.tolist() == [[[0.0]]] * channels
        assert model.std.tolist() == [[[1.0]]] * channels
        assert model(torch.rand(1, channels, 5, 5)).shape == (1, 2)
        assert input_channels(model) == input_channels(nn.Sequential(model)) == channels
        assert input_channels(network) == channels


def test_where_the_first_layer_does_not_tell_images_have_three_channels() -> None:
    convolution = nn.Conv2d(7, 2, 3)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(75, 2))
    for network in (
        linear,
        nn.Sequential(nn.PixelUnshuffle(2), convolution),
        nn.Sequential(Seen(), convolution),  # any module of a user's own
        nn.Sequential(nn.Linear(4, 4), convolution),
        nn.Sequential(nn.LazyConv2d(2, 3)),
    ):
        assert len(Classifier(network).mean) == input_channels(network) == 3
    model = Classifier(linear, mean=[0.1] * 4)  # says so; of the other there are as many
    assert model.std.flatten().tolist() == [1.0] * 4
    with pytest.raises(ShapeError, match=r"these have 5; Classifier\(…, mean=…, std=…\) takes one"):
        model(torch.zeros(1, 5, 5, 5))


@pytest.mark.filterwarnings("ignore::afmi.errors.PreprocessingWarning")
def test_a_grey_network_takes_files_images_and_arrays(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    colour.save(tmp_path / "colour.png")
    bare = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grey = torch.from_numpy(np.array(colour.convert("L")))[None, None] / 255
    for model in (Classifier(bare), bare):
        for image in (tmp_path / "colour.png", str(tmp_path / "colour.png"), colour):
            assert torch.equal(prepare(model, image), grey)
        for image in (colour.convert("L"), np.array(colour), np.array(colour.convert("L"))):
            assert torch.equal(prepare(model, image), grey)
    assert torch.equal(Classifier(bare).prepare(tmp_path / "colour.png"), grey)
    deep = (np.arange(65536, dtype=np.uint16)).reshape(256, 256)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert Classifier(bare).prepare(tmp_path / "deep.png").unique().numel() == 65536
    small = Classifier(bare, resize=16, crop=12).prepare(colour)
    assert torch.equal(small, Classifier(bare, resize=16, crop=12).prepare(colour.convert("L")))


def test_a_reader_reads_what_is_no_picture_in_memory(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bands = np.random.default_rng(0).random((9, 8, 4), dtype=np.float32)
    (tmp_path / "scene.raw").write_bytes((bands * 5000).tobytes())

    def read(path: Path) -> np.ndarray:
        return np.frombuffer(Path(path).read_bytes(), np.float32).reshape(9, 8, 4) / 5000

    model = Classifier(network, reader=read, shown_bands=(3, 2, 1))
    prepared = prepare(model, tmp_path / "scene.raw")
    assert torch.allclose(prepared[0], torch.from_numpy(bands).permute(2, 0, 1))
    assert torch.equal(prepare(model, bands)[0], torch.from_numpy(bands).permute(2, 0, 1))
    shown = explain(model, tmp_path / "scene.raw", method="gradient").image
    assert torch.equal(shown, prepared[0, [3, 2, 1]])
    with pytest.raises(
        ImageError, match=r"none\.raw' cannot be read by the model's reader: FileNot"
    ):
        prepare(model, tmp_path / "none.raw")
    for bands_shown in ((0, 1), (0, 1, 4), (0, 1, -1)):
        with pytest.raises(ModelError, match="three numbers from 0 to 3"):
            Classifier(network, shown_bands=bands_shown)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "labels",
    [
        {1: "b", 0: "a"},
        {"1": "b", "0": "a"},
        {"b": 1, "a": 0},
        iter(["a", "b"]),
        [("n01", "a"), ("n02", "b")],
        np.array(["a", "b"]),
    ],
)
def test_labels_as_dictionaries_and_other_sequences(labels: Any) -> None:
    assert Classifier(build("vgg"), labels=labels).labels == ("a", "b")


def test_labels_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    for file in (tmp_path / "labels.txt", str(tmp_path / "labels.txt")):
        assert Classifier(build("vgg"), labels=file).labels == ("a", "b")
    with pytest.raises(ModelError, match=r"'names\.txt' cannot be read"):
        Classifier(build("vgg"), labels="names.txt")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"a", "b"}, "got labels of type set .a set has no order"),
        ({0: "a", 2: "b"}, "indices are missing"),
        ({"a": 0, "b": 0}, "an index comes twice"),
        ({"a": "b"}, "expected a list with one name for each class"),
        ([0, 1], "not every name is text, such as 0"),
        ([b"a"], "not every name is text"),
        (7, "got labels of type int"),
        (torch.tensor([1, 2]), "not every name is text"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        Classifier(build("vgg"), labels=labels)


def test_labels_that_do_not_fit_the_logits_are_refused() -> None:
    with pytest.raises(ModelError, match="5 classes apart but has 3 labels"):
        classify(Classifier(build("vgg"), labels=list("abc")), images(1))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), MEAN), (MEAN, (1, 0, 1)), ((), ())])
def test_odd_normalisation_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ModelError, match="as many means as standard deviations"):
        Classifier(build("vgg"), mean=mean, std=std)


def test_a_function_is_no_network() -> None:
    with pytest.raises(ModelError, match="wrap your function"):
        Classifier(lambda x: x)  # type: ignore[arg-type]


def test_logits_are_found_in_what_networks_return() -> None:
    logits = torch.zeros(2, 3)
    for output in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, 1)):
        assert selected(output, None) is logits


@pytest.mark.parametrize(
    "output", [None, torch.zeros(()), torch.zeros(2, 3, dtype=torch.int64), {"scores": 1}, ()]
)
def test_other_outputs_are_refused(output: object) -> None:
    with pytest.raises(ModelError, match=r"must return a row of outputs for each image, \(N, C\)"):
        read_outputs(Returning(output), torch.zeros(2, 3, 4, 4))


def test_detections_are_referred_to_their_target() -> None:
    found = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1), "scores": torch.ones(1)}
    with pytest.raises(ModelError, match=r"a list of .*; explain a detection by afmi.targets.Box"):
        read_outputs(Returning([found, found]), torch.zeros(2, 3, 4, 4))


class Returning(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> object:
        return self.output


def test_prepare_resizes_and_crops_like_torchvision() -> None:
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 401, 3), generator=generator, dtype=torch.uint8)
    photo = Image.fromarray(pixels.numpy())
    model = Classifier(build("vgg"), resize=256, crop=224)
    expected = preset(photo) * torch.tensor(preset.std).view(3, 1, 1)
    expected += torch.tensor(preset.mean).view(3, 1, 1)
    assert torch.allclose(model.prepare(photo)[0], expected, atol=1e-6)


def imagenet() -> Classifier:
    labels = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return Classifier(nn.Identity(), labels=labels)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (207, 207),
        ("207", 207),
        ("golden retriever", 207),
        ("Golden_Retriever", 207),
        ("collie", 231),  # and not "Border collie"
        ("border-collie", 232),
        ("maillot", 638),  # and not "maillot tank suit"
        ("hammerhead", 4),
    ],
)
def test_classes_are_found_by_index_and_label(wanted: str | int, index: int) -> None:
    assert find_class(imagenet(), wanted) == index


def test_a_truth_value_is_no_class() -> None:
    model = Classifier(nn.Identity(), labels=["false", "true"])
    for wanted in (True, np.True_, torch.tensor(True)):
        with pytest.raises(TargetError, match="index or label, got the truth value"):
            find_class(model, wanted)  # type: ignore[arg-type]
    assert find_class(model, "True") == 1


def test_labels_that_come_twice_are_listed() -> None:
    model = Classifier(nn.Identity(), labels=["crane", "tench", "Crane"])
    with pytest.raises(TargetError, match=r"fits several classes: 'crane' \(0\), 'Crane' \(2\)"):
        find_class(model, "crane")
    many = Classifier(nn.Identity(), labels=[f"shark {i}" for i in range(12)])
    with pytest.raises(TargetError, match=r"and 4 more; give the index"):
        find_class(many, "shark")


def test_synonyms_words_and_parts_of_labels() -> None:
    labels = ["tench, Tinca tinca", "great white shark, white shark", "tiger shark", "sharkskin"]
    model = Classifier(nn.Identity(), labels=labels)
    assert find_class(model, "tinca tinca") == 0
    assert find_class(model, "WHITE SHARK") == 1
    assert find_class(model, "tiger") == 2
    assert find_class(model, "skin") == 3
    with pytest.raises(TargetError, match=r"'great white shark, white shark' \(1\), 'tiger shark'"):
        find_class(model, "shark")


def test_labels_of_punctuation_are_told_apart() -> None:
    assert find_class(Classifier(nn.Identity(), labels=["+", "-", "2²"]), "-") == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("golden retreiver", "did you mean 'golden retriever'"),
        (1000, "from 0 to 999, got 1000"),
        ("-1", "from 0 to 999, got -1"),
        ("", "no class is called ''"),
        ("²", "no class is called"),
    ],
)
def test_unknown_classes_are_refused(wanted: str | int, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        find_class(imagenet(), wanted)


def test_without_labels_classes_go_by_index() -> None:
    model = build("vgg")
    assert find_class(model, "3") == 3
    assert class_label(model, 3) == "class 3"
    with pytest.raises(TargetError, match="has no labels"):
        find_class(model, "cat")
    assert class_label(imagenet(), 207) == "golden retriever"
