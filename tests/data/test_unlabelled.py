"""Pictures without labels, from every kind of data; and lists in Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shards import tar_bytes
from torch import Tensor, nn

from afmi.data.labelled import LabelledImages, open_images
from afmi.data.streams import ImageStream, open_data
from afmi.data.unlabelled import UNLABELLED
from afmi.errors import AfmiError, ImageError, ShapeError, UsageError
from afmi.network.classifier import Classifier

SHADES = (10, 20, 30, 40)


class Still(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 3)


@pytest.fixture
def model() -> Classifier:
    return Classifier(Still(), labels=["tench", "collie", "owl"], resize=4, crop=4)


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def shades(images: LabelledImages) -> list[int]:
    return [round(images.read(i).mean().item() * 255) for i in range(len(images))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mixed" / "deep").mkdir(parents=True)
    for place, shade in zip(("0", "1", "deep/2", "deep/3"), SHADES, strict=True):
        (tmp_path / "mixed" / f"{place}.png").write_bytes(encoded(shade))
    return tmp_path / "mixed"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    members = [(f"{i}.png", encoded(shade)) for i, shade in enumerate(SHADES)]
    path.write_bytes(tar_bytes(members))
    return path


def lists(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "list.parquet")
    return str(folder / "list.parquet")


def test_folders_tars_stores_lists_and_streams_need_no_labels(
    folder: Path, tar: Path, model: Classifier
) -> None:
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*.png"):
        files.pipe(f"/unlabelled/{path.relative_to(folder).as_posix()}", path.read_bytes())
    names = ["0.png", "1.png", "deep/2.png", "deep/3.png"]
    pairs = [{"image": Image.open(folder / name), "n": 1} for name in names]
    for data in (
        folder,
        tar,
        "memory://unlabelled",
        lists(folder, image=names),
        lists(folder, Image=pa.array(names, pa.large_string())),
        pairs,
    ):
        images = open_images(data, model, labelled=False)
        assert shades(images) == list(SHADES)
        assert set(images.labels) == {UNLABELLED}
        some = open_images(data, model, labelled=False, limit=2)
        assert shades(some) == [10, 30]


def test_lists_in_parquet_files_give_labels(folder: Path, model: Classifier) -> None:
    names = ["0.png", "deep/3.png", "gone.png"]
    images = open_images(lists(folder, image=names, label=["owl", "tench", "collie"]), model)
    assert images.labels == (2, 0, 1)
    assert images.sizes[2] == -1
    assert open_images(lists(folder, image=names, label=[2, 0, 1]), model).labels == (2, 0, 1)
    path = lists(folder, file=names, kind=[2, 0, 1])
    assert open_images(path, model, image_key="file", label_key="kind").labels == (2, 0, 1)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"picture": ["0.png"]}, "expected one column 'image' .* got the columns 'picture'"),
        ({"image": ["0.png", None]}, "1 of 2 rows .* have nothing in the column 'image'"),
        ({"image": [{"bytes": b"", "path": "x"}]}, "can be opened with datasets.load_dataset"),
        ({"image": [""]}, "expected a path in each row"),
        ({"image": pa.array([], pa.string())}, "expected a path in each row"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(
    folder: Path, model: Classifier, columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        open_images(lists(folder, **columns), model, labelled=False)


def test_what_is_no_parquet_file_is_refused(folder: Path, model: Classifier) -> None:
    (folder / "list.parquet").write_text("image\n0.png\n")
    with pytest.raises(UsageError, match="cannot be read as a Parquet file"):
        open_images(folder / "list.parquet", model, labelled=False)


def test_streams_need_no_labels_and_prepare_pictures_when_they_are_read(
    tar: Path, model: Classifier
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/stream/a.tar", tar.read_bytes())

    def pictures() -> Iterator[Any]:
        yield from (Image.open(io.BytesIO(encoded(shade))) for shade in SHADES)

    for data in ("memory://stream/a.tar", pictures(), map(torch.tensor, tensors())):
        stream = open_data(data, model, limit=None, window=3, labelled=False)
        assert isinstance(stream, ImageStream)
        windows = list(stream.windows())
        assert [shades(window.images) for window in windows] == [[10, 20, 30], [40]]
        assert set(windows[0].images.labels) == {UNLABELLED}
        assert len({key for window in windows for key in window.images.keys}) == 4


def tensors() -> Iterator[Any]:
    return (torch.full((3, 4, 4), shade / 255).tolist() for shade in SHADES)


def test_a_stream_names_what_is_damaged_and_refuses_what_never_fits(model: Classifier) -> None:
    data = iter([encoded(10), b"no picture", encoded(30)])
    stream = open_data(data, model, limit=None, window=8, labelled=False)
    (window,) = stream.windows()
    assert "@unread" not in window.images.keys[1]
    with pytest.raises(ImageError, match="item/1@"):
        window.images.read(1)
    assert window.images.read(2).mean() == pytest.approx(30 / 255)
    with pytest.raises(ShapeError):
        open_data(iter([torch.zeros(5, 4, 4)]), model, limit=None, window=8, labelled=False)
    with pytest.raises(AfmiError, match=r"has no items; expected pictures$"):
        open_data(iter([]), model, limit=None, window=8, labelled=False)
