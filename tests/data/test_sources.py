"""Mappings, tar files and URLs: what is read is right, what is hostile or unclear is refused."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from shards import tar_bytes
from torch import Tensor, nn

from afmi.data.classes import Classes
from afmi.data.fields import Fields
from afmi.data.labelled import open_images
from afmi.data.tars import samples
from afmi.errors import AfmiError, ImageError, MissingPackageError, TargetError, UsageError
from afmi.network.classifier import Classifier
from afmi.stores import shown

ANIMALS = ("tench", "collie", "owl")


class Still(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], len(ANIMALS))


def model(*labels: str) -> Classifier:
    return Classifier(Still(), labels=list(labels or ANIMALS), resize=4, crop=4)


def encoded(shade: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def tar(path: Path, *members: tuple[str, bytes]) -> str:
    path.write_bytes(tar_bytes(members))
    return str(path)


# --- tar files ------------------------------------------------------------------------------


def test_a_tar_file_is_listed_and_its_pictures_are_read_by_their_places(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("./x/0.PNG", encoded(10)),
        ("./x/0.cls", b" collie\n"),
        ("x/0.seg.png", encoded(99)),
        (".hidden.png", b"no picture"),
        ("readme.md", b"no sample"),
        ("1.jpg", encoded(20, "JPEG")),
        ("1.json", json.dumps({"label": "owl", "caption": "hoo"}).encode()),
        ("2.cls", b"0"),
        ("3.webp", encoded(30, "WEBP")),
        ("3.cls", b"1"),
        ("3.json", b'{"label": 2}'),
    )
    images = open_images(path, model())
    assert images.keys == ("a.tar/x/0", "a.tar/1", "a.tar/2", "a.tar/3")
    assert images.labels == (1, 2, 0, 1)
    assert [round(images.read(i).mean().item() * 255) for i in (0, 1, 3)] == [10, 20, 30]
    assert images.sizes[2] == -1
    with pytest.raises(ImageError, match=r"'a.tar/2' has no picture; expected one of jpg, jpeg"):
        images.read(2)
    assert images.limited(3).labels == (1, 2, 0)


def test_patterns_name_tar_files_in_order(tmp_path: Path) -> None:
    for folder, number in (("a", 9), ("a", 10), ("b", 9)):
        (tmp_path / folder).mkdir(exist_ok=True)
        tar(tmp_path / folder / f"s-{number:02d}.tar", ("0.png", encoded()), ("0.cls", b"0"))
    keys = open_images(str(tmp_path / "a" / "s-{09..10}.tar"), model()).keys
    assert keys == ("s-09.tar/0", "s-10.tar/0")
    assert open_images(str(tmp_path / "a" / "*.tar"), model()).keys == keys
    both = open_images(str(tmp_path / "{a,b}" / "s-09.tar"), model()).keys
    assert both == tuple(f"{tmp_path}/{folder}/s-09.tar/0" for folder in "ab")
    for wrong in ("s-{09..11}.tar", "t-*.tar", "none.tar"):
        with pytest.raises(ImageError, match=r"there is no tar file"):
            open_images(str(tmp_path / "a" / wrong), model())
    for wrong in ("s-{5..1}.tar", "s-{0..999999999999}.tar", "{0..999}{0..999}.tar"):
        with pytest.raises(UsageError, match=r"expected 1 to 100000 files by the braces"):
            open_images(str(tmp_path / wrong), model())


def test_suffixes_may_be_named(tmp_path: Path) -> None:
    label = json.dumps({"label": 0, "kind": "owl"}).encode()
    members = [
        ("0.png", encoded(1)),
        ("0.left.png", encoded(2)),
        ("0.json", label),
        ("0.txt", b"1"),
    ]
    path = tar(tmp_path / "a.tar", *members)
    images = open_images(path, model(), image_key="left.png", label_key="kind")
    assert images.labels == (2,)
    assert round(images.read(0).mean().item() * 255) == 2
    assert open_images(path, model(), label_key="txt").labels == (1,)


@pytest.mark.parametrize(
    ("members", "error", "match"),
    [
        ([], ImageError, "no samples in"),
        ([("0.txt", b"x")], ImageError, "no samples in"),
        ([("0.png", b"x")], ImageError, "1 of 1 samples in .* have no label .'a.tar/0'"),
        ([("0.cls", b"0"), ("0.png", b"x"), ("0.jpg", b"x")], UsageError, "several .*'png', 'jpg'"),
        ([("0.png", b"x"), ("0.json", b'{"a": 0}')], UsageError, "expected one of label, labels"),
        ([("0.png", b"x"), ("0.json", b"[1]")], TargetError, "expected an object in the JSON"),
        ([("0.png", b"x"), ("0.json", b"{")], TargetError, "the JSON of 'a.tar/0' cannot be read"),
        ([("0.png", b"x"), ("0.cls", b"bus")], TargetError, "1 of 1 labels .* 'bus'"),
        ([("0.cls", b"0"), ("1.cls", b"0"), ("0.cls", b"0")], UsageError, "'a.tar/0' comes sev"),
        ([("0.cls", b"0"), ("0.cls", b"0")], UsageError, "'a.tar/0' comes several times"),
    ],
)
def test_samples_that_do_not_fit(
    members: list[tuple[str, bytes]], error: type[AfmiError], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        open_images(tar(tmp_path / "a.tar", *members), model())


def test_tar_files_that_are_damaged_are_never_taken_for_shorter_ones(tmp_path: Path) -> None:
    whole = tar_bytes([(f"{i}.{kind}", b"0") for i in range(3) for kind in ("png", "cls")])
    path = tmp_path / "a.tar"
    broken = bytearray(whole)
    broken[2 * 1024 + 3] ^= 1  # in the third header
    ends = {whole[:end] for end in range(256, 6 * 1024, 256)}
    for content in (*ends, bytes(broken), b"", b"no tar", b"\x1f\x8b" + bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"is no tar file, or cut short or damaged \(|no samp"):
            open_images(path, model())
        with pytest.raises(ImageError):
            list(samples(io.BytesIO(content), "a.tar", Fields(), located=False))
    path.write_bytes(whole)
    assert len(open_images(path, model())) == 3


def test_links_devices_and_names_of_other_folders_do_no_harm(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("0.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        for name, content in (
            ("0.cls", b"0"),
            ("../../up.png", encoded(7)),
            ("../../up.cls", b"1"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(buffer.getvalue())
    images = open_images(str(tmp_path / "in" / "a.tar"), model())
    assert images.keys == ("a.tar/0", "a.tar/../../up")
    with pytest.raises(ImageError, match=r"has no picture"):
        images.read(0)
    assert round(images.read(1).mean().item() * 255) == 7
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in", "secret.png"]


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmi.pictures.images.MAX_BYTES", 100)
    path = tar(tmp_path / "a.tar", ("0.png", bytes(101)), ("0.cls", b"0"))
    with pytest.raises(ImageError, match=r"'a.tar/0' has 101 bytes; expected at most 100"):
        open_images(path, model()).read(0)
    (sample,) = list(samples(open_bytes(path), "a.tar", Fields(), located=False))[1:]
    assert "has 101 bytes" in str(sample.parts["png"]) and sample.parts["cls"] == b"0"
    # A header may say that it is followed by any number of bytes of its own.
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "b.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    with pytest.raises(ImageError, match=r"a header of 1099511627776 bytes"):
        open_images(str(tmp_path / "b.tar"), model())


def open_bytes(path: str) -> io.BytesIO:
    return io.BytesIO(Path(path).read_bytes())


def test_headers_of_long_names_are_read(tmp_path: Path) -> None:
    name = "x" * 90 + "/" + "y" * 200
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for suffix, content in (("png", encoded(5)), ("cls", b"2")):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        images = open_images(path, model())
        assert (images.keys, images.labels) == ((f"{number}.tar/{name}",), (2,))
        assert round(images.read(0).mean().item() * 255) == 5


def test_a_tar_file_is_read_once_and_forwards(tmp_path: Path) -> None:
    content = tar_bytes([(f"{i}.{k}", bytes(512 * i)) for i in range(3) for k in ("png", "cls")])

    class Pipe(io.RawIOBase):
        place = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 2**20
            part = content[self.place : self.place + min(size, 100)]
            self.place += len(part)
            return part

        def seek(self, *_: Any) -> int:
            raise AssertionError("a pipe cannot seek")

    found = [s for s in samples(Pipe(), "a", Fields(), located=False) if s.has_picture_or_label]
    assert [len(sample.parts["png"]) for sample in found] == [0, 512, 1024]


def test_compressed_tar_files_and_pictures_are_told_apart(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "a.tgz"):
        with pytest.raises(UsageError, match=r"is compressed; expected plain tar files"):
            open_images(str(tmp_path / name), model())


def test_a_file_that_changed_since_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("0.png", encoded()), ("0.cls", b"0"))
    images = open_images(path, model())
    os.truncate(path, 530)
    with pytest.raises(ImageError, match=r"'a.tar/0' is cut short: .* has changed"):
        images.read(0)


# --- mappings and other items ----------------------------------------------------------------


class Mappings(torch.utils.data.Dataset):
    """A data set whose second item cannot be read."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            raise OSError("gone")
        return {"image": torch.full((3, 4, 4), index / 2), "label": ("owl", "", 1)[index]}


def test_items_may_be_mappings_and_one_that_is_bad_costs_no_other() -> None:
    images = open_images(Mappings(), model())
    assert images.labels == (2, -1, 1)
    assert images.read(2).unique().tolist() == [1.0]
    with pytest.raises(ImageError, match=r"item/1 of Mappings cannot be read: OSError: gone"):
        images.read(1)


@pytest.mark.parametrize(
    ("item", "keys", "match"),
    [
        ({"image": 0, "img": 0, "label": 0}, {}, "list has several that may be the image"),
        ({"image": 0, "label": 0, "labels": 0}, {}, "several that may be the label: 'label', 'lab"),
        ({"x": 0, "label": 0}, {}, "expected one of image, img, .* as the image in list, got 'x'"),
        (
            {"image": 0, "label": 0},
            {"image_key": "x"},
            "expected 'x' as the image in list, got 'im",
        ),
        ({"image": 0, "label": 0}, {"label_key": "x"}, "name it with label_key= .--label-key."),
    ],
)
def test_mappings_that_are_unclear_are_refused(item: Any, keys: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        open_images([item], model(), **keys)


def test_columns_of_csv_files_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "a.csv").write_text("file,class\na.png,owl\n")
    options = {"image_key": "File", "label_key": "class"}
    assert open_images(tmp_path / "a.csv", model(), **options).labels == (2,)
    with pytest.raises(UsageError, match=r"expected the columns 'image' and 'class' .* got 'file'"):
        open_images(tmp_path / "a.csv", model(), label_key="class")


# --- names of classes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (("a", "b", "c"), ("c", "a"), (2, 0)),
        (("tench", "great white shark"), ("white shark, great white shark", "tench, T t"), (1, 0)),
        # Two names for one class: neither is believed, unless the rest have the same order.
        (("crane", "owl", "crane bird", "ox"), ("crane", "owl", "crane", "ox"), (0, 1, 2, 3)),
        (("crane", "ox", "owl"), ("crane", "owl", "crane"), ("crane", 2, "crane")),
        (("cat", "dog", "owl"), ("Katze", "dog", "owl"), (0, 1, 2)),
        (("cat", "dog", "owl"), ("Katze", "owl", "dog"), ("Katze", 2, 1)),
        (("cat", "dog", "owl"), ("Katze", "Hund", "owl"), ("Katze", "Hund", 2)),
        (("cat", "dog"), ("x", "y"), ("x", "y")),
        (("cat", "dog", "owl"), ("cat", "dog", "owl", "newt"), (0, 1, 2, "newt")),
        ((), ("x", "y"), (0, 1)),
    ],
)
def test_a_data_sets_classes_are_found_by_name(
    labels: tuple[str, ...], names: tuple[str, ...], expected: tuple[Any, ...]
) -> None:
    assert Classes(labels, len(labels) or 2).of_names(names) == expected


class HuggingFace:
    """What a data set of Hugging Face shows of itself."""

    class Label:
        names = ("owl", "tench", "bus")

    column_names = ("image", "label")

    def __init__(self, *labels: int) -> None:
        self.features = {"image": object(), "label": self.Label()}
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            assert index == "label"  # pictures are not read for their labels
            return self.labels
        return {"image": {"bytes": encoded(40), "path": None}, "label": self.labels[index]}


def test_a_data_set_of_hugging_face_by_its_looks() -> None:
    images = open_images(HuggingFace(0, 1, 0), model())
    assert images.labels == (2, 0, 2)
    assert round(images.read(0).mean().item() * 255) == 40
    with pytest.raises(TargetError, match=r"1 of 2 labels in HuggingFace matches none .* 'bus'"):
        open_images(HuggingFace(0, 2), model())
    with pytest.raises(TargetError, match=r"-1 .indices go from 0 to 2"):
        open_images(HuggingFace(0, -1), model())


# --- URLs -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Puts files into memory, and says their URL."""
    memory = fsspec.filesystem("memory")

    def put(**files: bytes) -> str:
        for name, content in files.items():
            memory.pipe(f"/{tmp_path.name}/{name.replace('__', '/')}.png", content)
        return f"memory://{tmp_path.name}"

    yield put
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_folder_behind_a_url_is_laid_out_as_on_a_disk(store: Callable[..., str]) -> None:
    url = store(owl__b=encoded(3), owl__a=encoded(4), tench__x__y=encoded(5), beside=encoded())
    images = open_images(url, model())
    assert images.keys == ("owl/a.png", "owl/b.png", "tench/x/y.png")
    assert images.labels == (2, 2, 0)
    assert images.sizes[0] == len(encoded(4))
    assert [round(images.read(i).mean().item() * 255) for i in range(3)] == [4, 3, 5]
    assert images.name == url


@pytest.mark.parametrize(
    ("files", "keys", "half"),
    [
        (["val__owl__a", "train__owl__b"], ("val/owl/a.png",), " (val, not train)"),
        (["train__owl__b"], ("train/owl/b.png",), " (train)"),
        (["a_n01440764_1", "b_n01440764_2"], ("a_n01440764_1.png", "b_n01440764_2.png"), ""),
    ],
)
def test_halves_and_ids_are_found_behind_a_url(
    files: list[str], keys: tuple[str, ...], half: str, store: Callable[..., str]
) -> None:
    url = store(**{file: encoded() for file in files})
    images = open_images(url, model())
    assert (images.keys, images.name) == (keys, url + half)
    assert images.read(0).shape == (1, 3, 4, 4)


def test_urls_that_lead_nowhere(store: Callable[..., str], tmp_path: Path) -> None:
    url = store(owl__a=b"no picture")
    with pytest.raises(ImageError, match=rf"'{url}/owl/a.png' cannot be read: the content given"):
        open_images(url, model()).read(0)
    with pytest.raises(ImageError, match=r"no image in"):
        open_images(url + "/none", model())
    with pytest.raises(UsageError, match=r"cannot be opened \(ValueError: Protocol not known"):
        open_images("nosuch://x", model())
    with pytest.raises(ImageError, match=r"there is no tar file '.*\*\.tar'; check the address"):
        open_images(url + "/*.tar", model())
    with pytest.raises(
        UsageError, match=r"come one after the other, .* give them to afmi.evaluate"
    ):
        open_images(url + "/a.tar", model())
    with pytest.raises(UsageError, match=r"image_key and label_key are for"):
        open_images(url, model(), image_key="x")


@pytest.mark.parametrize(
    ("url", "blocked", "match"),
    [
        ("s3://bucket/val", "s3fs", "needs a package that is not installed .*; pip install s3fs"),
        ("https://h/a.tar", "aiohttp", "needs a package that is not installed .*install aiohttp"),
        (
            "memory://x",
            "fsspec",
            "needs the package 'fsspec', which cannot be .*; install it with pip install fsspec",
        ),
    ],
)
def test_the_package_that_a_url_needs_is_named(
    url: str, blocked: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingPackageError, match=match):
        open_images(url, model())


def test_names_of_urls_keep_no_secrets() -> None:
    assert shown("s3://key:secret@bucket/a") == "s3://bucket/a"
    assert shown("https://h:8/a.tar?X-Amz-Signature=abc") == "https://h:8/a.tar"
    assert shown("zip://a::https://u@h/b.zip?token=1") == "zip://a::https://h/b.zip"
    assert shown("memory://a/{0..3}.tar") == "memory://a/{0..3}.tar"
