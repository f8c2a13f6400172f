"""Every layout of labelled pictures gives the right classes, and wrong labels never pass."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import MNISTNet
from PIL import Image
from torch import Tensor, nn

from afmi.data.classes import imagenet_wnids
from afmi.data.labelled import LabelledImages, open_images
from afmi.errors import (
    AfmiError,
    ImageError,
    ModelError,
    PreprocessingWarning,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.network.classifier import Classifier

TENCH, SPRINGER, GOLDFISH = "n01440764", "n02102040", "n01443537"
ANIMALS = ("tench, Tinca tinca", "Border collie", "elephant", "English springer")


class Counting(nn.Module):
    """As many constant logits as asked for; counts its calls."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.calls = classes, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros(x.shape[0], self.classes)


def model(*labels: str, classes: int = 0, channels: int = 3, **view: Any) -> Classifier:
    network = Counting(len(labels) or classes)
    return Classifier(
        network, mean=[0.5] * channels, std=[0.5] * channels, labels=labels or (), **view
    )


def make(root: Path, *names: str, colour: Any = (255, 0, 51)) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), colour).save(path)
    return root


# --- folders --------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path: Path) -> None:
    make(tmp_path, "border_collie/b.png", "border_collie/a/z.png", "2/x.png", f"{TENCH}/y.png")
    make(tmp_path, ".hidden/h.png", "elephant/.h.png", "beside.png")
    (tmp_path / "elephant" / "notes.txt").write_text("no picture")
    images = open_images(tmp_path, model(*ANIMALS))
    assert dict(zip(images.keys, images.labels, strict=True)) == {
        "2/x.png": 2,
        "border_collie/a/z.png": 1,
        "border_collie/b.png": 1,
        f"{TENCH}/y.png": 0,
    }
    assert images.keys == tuple(sorted(images.keys))
    assert images.name == str(tmp_path)
    assert len(images) == 4


def test_val_is_preferred_and_told(tmp_path: Path) -> None:
    make(tmp_path, "val/elephant/a.png", "train/tench/b.png")
    images = open_images(str(tmp_path), model(*ANIMALS))
    assert (images.keys, images.labels) == (("val/elephant/a.png",), (2,))
    assert images.name == f"{tmp_path} (val, not train)"
    assert images.read(0).shape == (1, 3, 4, 6)


def test_a_class_may_be_called_val(tmp_path: Path) -> None:
    make(tmp_path, "val/a.png", "tench/b.png")
    assert open_images(tmp_path, model("val", "tench")).labels == (1, 0)


@pytest.mark.parametrize("name", [f"{TENCH}_10026.png", f"0000_{TENCH}_tench.png"])
def test_names_of_files_hold_wnids(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, f"x_{SPRINGER}.png")
    images = open_images(tmp_path, model(classes=1000))
    assert dict(zip(images.keys, images.labels, strict=True)) == {name: 0, f"x_{SPRINGER}.png": 217}


def test_wnids_go_by_label_where_the_model_has_other_classes(tmp_path: Path) -> None:
    make(tmp_path, f"{TENCH}/a.png", f"{SPRINGER}/a.png")
    assert open_images(tmp_path, model("cat", "English springer", "tench")).labels == (2, 1)
    assert open_images(tmp_path, model("cat", SPRINGER, TENCH)).labels == (2, 1)
    with pytest.raises(TargetError, match=rf"1 of 2 .*'{SPRINGER}' \(in ImageNet 'English spr"):
        open_images(tmp_path, model("cat", "tench"))


def test_wnids_follow_the_order_of_a_thousand_labels(tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    make(tmp_path, f"{TENCH}/a.png", f"{GOLDFISH}/a.png")
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert open_images(tmp_path, model(*names)).labels == (0, 1)
    assert open_images(tmp_path, model(*names[::-1])).labels == (999, 998)
    # Labels in another language say nothing about the order.
    assert open_images(tmp_path, model(*(f"Klasse-{i}" for i in range(1000)))).labels == (0, 1)


def test_wnids_are_those_of_the_photographs(photographs: Path) -> None:
    paths = sorted(photographs.glob("*.jpg"))
    known = imagenet_wnids()
    assert known == tuple(sorted(known))
    assert len(set(known)) == 1000
    assert all(known[int(p.name[:4])] == p.name.split("_")[1] for p in paths)
    images = open_images(photographs, model(classes=1000), limit=20)
    assert [int(key[:4]) for key in images.keys] == list(images.labels)
    assert len(images) == 20


def test_folders_of_the_embedded_network(photos11: Path) -> None:
    labels = sorted(path.name for path in (photos11 / "val").iterdir())
    images = open_images(photos11, model(*labels), limit=22)
    assert sorted(images.labels) == [i for i in range(11) for _ in range(2)]
    assert "val, not train" in images.name


def test_parts_of_labels_do_not_match(tmp_path: Path) -> None:
    make(tmp_path, "ant/a.png", "tench/b.png", "Bordercollie/c.png")
    with pytest.raises(TargetError) as caught:
        open_images(tmp_path, model(*ANIMALS))
    text = str(caught.value)
    assert "2 of 3 class folders" in text
    assert "'Bordercollie' (did you mean 'Border collie'?)" in text
    assert "'ant'" in text
    assert "\n" not in text


def test_five_folders_without_a_class_are_listed(tmp_path: Path) -> None:
    make(tmp_path, *(f"zz{i}/a.png" for i in range(7)))
    with pytest.raises(TargetError, match=r"'zz4' \(no label is like it\) and 2 more; name"):
        open_images(tmp_path, model(*ANIMALS))


def test_ambiguous_names_are_refused_and_case_decides(tmp_path: Path) -> None:
    dog_and_jacket = model("Cardigan", "cardigan")
    assert open_images(make(tmp_path / "a", "cardigan/a.png"), dog_and_jacket).labels == (1,)
    with pytest.raises(TargetError, match=r"fits 'Cardigan' \(0\), 'cardigan' \(1\)"):
        open_images(make(tmp_path / "b", "CARDIGAN/a.png"), dog_and_jacket)


def test_numbers_are_labels_where_the_labels_are_other_numbers(tmp_path: Path) -> None:
    make(tmp_path, "1/a.png", "2/a.png")
    assert open_images(tmp_path, model("0", "1", "2")).labels == (1, 2)
    assert open_images(tmp_path, model("1", "2", "3")).labels == (0, 1)
    with pytest.raises(TargetError, match="1 of 2 class folders"):
        open_images(tmp_path, model("1", "3"))


def test_classes_are_counted_with_the_first_readable_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afmi.network.trial._try", lambda *_: None)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(b"nothing")
    make(tmp_path, "1/a.png", "2/a.png")
    three = model(classes=3)
    assert open_images(tmp_path, three).labels == (0, 1, 2)
    assert three.network.calls == 1
    with pytest.raises(TargetError, match=r"'2' \(indices go from 0 to 1\)"):
        open_images(tmp_path, model(classes=2))
    with pytest.raises(TargetError, match="model has no labels"):
        open_images(make(tmp_path, "cat/a.png"), three)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), "no image in the folder"),
        (("a.png", "b.png"), r"2 of 2 pictures in .* have no label: .*'a.png', 'b.png'"),
        ((f"{TENCH}_1.png", "b.png"), r"1 of 2 pictures .*\('b.png'\)"),
        (("val/ILSVRC2012_val_00000001.png",), "1 of 1 pictures"),
    ],
)
def test_folders_without_labels_are_refused(
    tmp_path: Path, names: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ImageError, match=match):
        open_images(make(tmp_path, *names), model(*ANIMALS))


# --- CSV files ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(tmp_path: Path, encoding: str, separator: str) -> None:
    make(tmp_path, "in/ä.png", "b.png")
    rows = [
        ("Label", "image", "note"),
        ("1", "./in/ä.png", ""),
        ('"tench, Tinca tinca"', "b.png", "x"),
        (SPRINGER, "missing.png", ""),
    ]
    text = "\r\n".join(separator.join(row) for row in rows) + "\r\n\r\n"
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode(encoding))
    images = open_images(path, model(*ANIMALS))
    assert images.keys == ("in/ä.png", "b.png", "missing.png")
    assert images.labels == (1, 0, 3)
    assert images.sizes[2] == -1
    assert images.read(0).shape == (1, 3, 4, 6)
    with pytest.raises(ImageError, match=r"missing\.png' does not exist"):
        images.read(2)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("", UsageError, "expected the columns 'image' and 'label' .* got nothing"),
        ("file,class\nb.png,1\n", UsageError, "got 'file', 'class'"),
        ("image,label\n", UsageError, "lists no pictures"),
        ("image,label\nb.png,\n", UsageError, "line 2 "),
        ("image,label\nb.png,tench, Tinca tinca\n", UsageError, "line 2 .* quotation marks"),
        ("image,label\nc.png,1\nd.png,2\n", ImageError, "none of the 2 files .*c.png"),
        ("image,label\nb.png,4\n", TargetError, r"'4' \(indices go from 0 to 3\)"),
        ("image,label\nb.png,-1\n", TargetError, "indices go from"),
        ("image,label\nb.png,n99999999\n", TargetError, "not one of ImageNet's 1000"),
        ("image,label\nb.png,0\n./b.png,1\n", UsageError, "'b.png' comes several times"),
        ("image,label\nb.png,t\xe9nch\n", UsageError, "cannot be read as a CSV file"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, error: type[AfmiError], match: str) -> None:
    path = make(tmp_path, "b.png") / "list.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=match) as caught:
        open_images(path, model(*ANIMALS))
    assert "\n" not in str(caught.value)


# --- named data sets ------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Four digits of each half in the idx format; the pixels are the position."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half in ("train", "t10k"):
        pixels = np.repeat(np.arange(4, dtype=np.uint8), 28 * 28).tobytes()
        (raw / f"{half}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, 4, 28, 28) + pixels
        )
        digits = bytes([7, 1, 7, 3])
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 4) + digits)
    return tmp_path


def test_mnist(mnist: Path) -> None:
    grey = Classifier(MNISTNet().eval(), mean=[0.1307], std=[0.3081])
    images = open_images(f"mnist:{mnist}", grey)
    assert images.keys == ("test/0", "test/1", "test/2", "test/3")
    assert images.labels == (7, 1, 7, 3)
    assert images.read(2).shape == (1, 1, 28, 28)
    assert torch.equal(images.read(2), torch.full((1, 1, 28, 28), 2 / 255))
    with pytest.warns(PreprocessingWarning, match="MNISTNet sees pictures in their own size"):
        bare = open_images(f"mnist-train:{mnist}", MNISTNet().eval())
    assert bare.keys[0] == "train/0"
    assert bare.read(3).shape == (1, 1, 28, 28)
    colour = open_images(f"mnist:{mnist}", model(classes=10))
    assert torch.equal(colour.read(1), torch.full((1, 3, 28, 28), 1 / 255))
    shifted = model(*"1234567890", channels=1)
    assert open_images(f"mnist:{mnist}", shifted).labels == (6, 0, 6, 2)


def test_mnist_is_not_for_other_models(mnist: Path) -> None:
    with pytest.raises(ModelError, match="has 10 classes, but the model has 11"):
        open_images(f"mnist:{mnist}", model(classes=11))


def test_missing_data_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no MNIST .*t10k.*download=True"):
        open_images(f"mnist:{tmp_path}", model(classes=10))
    with pytest.raises(ImageError, match=r"such as val/n01440764: .*split='val'"):
        open_images(f"imagenet:{tmp_path}", model(classes=1000))
    with pytest.raises(ImageError, match="there is no 'nowhere'; expected a folder"):
        open_images("nowhere", model(classes=10))
    with pytest.raises(UsageError, match="got nothing"):
        open_images("mnist:", model(classes=10))


def test_imagenet(tmp_path: Path) -> None:
    make(tmp_path, f"val/{SPRINGER}/a.JPEG", f"train/{TENCH}/b.JPEG")
    images = open_images(f"imagenet:{tmp_path}", model(classes=1000))
    assert (images.keys, images.labels) == ((f"val/{SPRINGER}/a.JPEG",), (217,))
    assert images.read(0).shape == (1, 3, 4, 6)


# --- data sets ------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """Like torchvision's: targets known, pictures read on demand."""

    classes = ("tench", "English springer")

    def __init__(self, targets: Any = (0, 1, 1)) -> None:
        self.targets, self.reads = targets, 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        if index == 2:
            raise OSError("gone")
        return Image.new("L", (8, 8), index), self.targets[index]


def test_a_data_set_with_targets_is_not_read_through() -> None:
    data = Pictures(torch.tensor([0, 1, 1]))
    images = open_images(data, model("tench", "English springer", crop=4))
    assert (images.name, images.keys) == ("Pictures", ("item/0", "item/1", "item/2"))
    assert images.labels == (0, 1, 1)
    assert data.reads == 2  # the first, for its label and its picture
    assert torch.equal(images.read(1), torch.full((1, 3, 4, 4), 1 / 255))
    with pytest.raises(ImageError, match="item/2 of Pictures cannot be read: OSError: gone"):
        images.read(2)
    half = torch.utils.data.Subset(data, [1, 0])
    assert open_images(half, model("tench", "English springer")).labels == (1, 0)


def test_a_data_set_that_numbers_classes_otherwise_is_refused() -> None:
    with pytest.raises(TargetError, match=r"class 0 of the Pictures is 'tench'.* class 1; pass"):
        open_images(Pictures(), model("English springer", "tench"))


def test_tensors_are_seen_as_they_are_in_the_channels_of_the_model() -> None:
    colour, grey = torch.rand(3, 5, 7), torch.rand(1, 5, 7)
    pairs = [(colour, np.int64(1)), (grey, torch.tensor(0))]
    images = open_images(pairs, model(classes=2, crop=4))
    assert images.labels == (1, 0)
    assert torch.equal(images.read(0), colour[None])
    assert torch.equal(images.read(1), grey.expand(1, 3, 5, 7))
    images = open_images(pairs, model(classes=2, channels=1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose(images.read(0), (colour * weights).sum(0)[None, None])
    assert torch.equal(images.read(1), grey[None])


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([], ImageError, "the list has no items"),
        ([(torch.rand(3, 4, 4), 5)], TargetError, r"5 \(indices go from 0 to 1\)"),
        ([(torch.rand(3, 4, 4), 0.5)], TargetError, "expected class indices .* got float"),
        ([(torch.rand(3, 4, 4), True)], TargetError, "got bool 'True'; turn them into whole"),
        ([torch.rand(3, 4, 4)], UsageError, "expected pairs .* got Tensor"),
        ([(torch.full((3, 4, 4), 2.0), 0)], UsageError, r"pixels in \[0, 1\]"),
        ([(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)], ShapeError, "divide bytes by 255"),
        ({"a": 1}, UsageError, "got dict"),
        (7, UsageError, "got int"),
    ],
)
def test_data_sets_that_do_not_fit(data: Any, error: type[AfmiError], match: str) -> None:
    with pytest.raises(error, match=match):
        open_images(data, model("a", "b"))


# --- reading and choosing -------------------------------------------------------------------


def test_colour_files_become_grey_for_a_model_of_one_channel(tmp_path: Path) -> None:
    make(tmp_path, "0/red.png")
    images = open_images(tmp_path, model(classes=2, channels=1, resize=2))
    assert torch.equal(images.read(0), torch.full((1, 1, 2, 3), 82 / 255))  # of (255, 0, 51)


def test_a_shape_too_extreme_is_unreadable_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(make(tmp_path, "a/b.png") / "a" / "long.png")
    images = open_images(tmp_path, model("a", "b", resize=100))
    with pytest.raises(ImageError, match=r"a/long\.png' cannot be prepared"):
        images.read(1)


def test_limited_takes_classes_in_turn_and_keeps_the_order() -> None:
    pairs = [(torch.rand(3, 4, 4), label) for label in (2, 0, 0, 0, 1, 0, 1)]
    images = open_images(pairs, model("a", "b", "c"))
    assert [images.limited(n).keys for n in (1, 3)] == [
        ("item/1",),
        ("item/0", "item/1", "item/4"),
    ]
    six = open_images(pairs, images.model, limit=6)
    assert six.keys == tuple(f"item/{i}" for i in (0, 1, 2, 3, 4, 6))
    assert six.labels == (2, 0, 0, 0, 1, 1)
    assert six.name == "list, 6 of 7 pictures"
    assert torch.equal(six.read(5), pairs[6][0][None])
    assert images.limited(7) is images
    for wrong in (0, -1, True, 1.0):
        with pytest.raises(UsageError, match="whole number of pictures from 1"):
            images.limited(wrong)
        with pytest.raises(UsageError, match="whole number of pictures from 1"):
            open_images(pairs, images.model, limit=wrong)  # type: ignore[arg-type]


def test_the_fingerprint_tells_keys_labels_and_sizes(tmp_path: Path) -> None:
    first = make(tmp_path / "a", "0/x.png", "1/y.png")
    same = make(tmp_path / "b", "0/x.png", "1/y.png")
    images = open_images(first, model(classes=2))
    assert images.fingerprint == open_images(same, model(classes=2)).fingerprint
    assert len(images.fingerprint) == 32
    others = {
        images.fingerprint,
        images.limited(1).fingerprint,
        open_images(first, model("1", "0")).fingerprint,
        open_images(make(tmp_path / "c", "0/x.png", "1/z.png"), images.model).fingerprint,
    }
    with (same / "0" / "x.png").open("ab") as file:
        file.write(b"more")
    others.add(open_images(same, model(classes=2)).fingerprint)
    assert len(others) == 5


def test_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data", "0/x.png")
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    images = open_images("data", Classifier(network))
    monkeypatch.chdir("/")
    copy: LabelledImages = pickle.loads(pickle.dumps(images))
    assert copy == images
    assert torch.equal(copy.read(0), images.read(0))


def test_a_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a model"):
        open_images(tmp_path, "vgg19")  # type: ignore[arg-type]
