"""Data sets are explained to the same bytes on every engine, resumed, and read back."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shards import tar_bytes
from torch import Tensor, nn

import afmi
import afmi.datasets.job as job_module
import afmi.datasets.run as run_module
from afmi import Classifier, Explanation, Unexplained
from afmi.datasets import Explanations, explain_dataset, open_explanations
from afmi.datasets.folder import DatasetFolder
from afmi.engines import Local, Ray
from afmi.engines.local import _HerePool
from afmi.engines.workers import WorkerWarning
from afmi.errors import AfmiError, LayerError, SourceError, UsageError
from afmi.evaluation import MemoryWarning
from afmi.targets import Difference, RecordedTarget

pytestmark = pytest.mark.usefixtures("quick_workers")

LABELS = ["cat", "dog", "newt", "owl"]
PIECE = {"batch_size": 2, "images_per_piece": 4}


def network(*before: nn.Module) -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        *before,
        *(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(24, 4),
    )
    return Classifier(body, labels=LABELS, resize=16, crop=16, name="tiny").eval()


class Moody(nn.Module):
    """Raises, or ends its process, where the first pixel of an image is white or grey.

    Args:
        deadly: whether it ends the process.
    """

    def __init__(self, deadly: bool = False) -> None:
        super().__init__()
        self.deadly = deadly

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.flatten(1).amin(1) > 0.99).any()):
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no white pictures")
        return x


@pytest.fixture(scope="module")
def model() -> Classifier:
    return network()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, of which the fourth is damaged."""
    drawn = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    for n in range(10):
        pixels = drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
    (root / "3.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def expected(
    model: Classifier, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Explanations:
    out = tmp_path_factory.mktemp("expected")
    torch.set_num_threads(1)  # as each test does after this; threads are part of a run
    return explain_dataset(model, photos, out, **PIECE, pictures=True)


def files(out: Path) -> dict[str, bytes]:
    """Return what a run wrote, but for its manifest, which has the time in it."""
    paths = [path for path in out.rglob("*") if path.suffix in (".parquet", ".png")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_rows_say_what_explain_says(
    model: Classifier, photos: Path, expected: Explanations
) -> None:
    assert [*files(expected.path)].count("pieces/00000004.parquet") == 1
    assert len(expected) == expected.planned == 10
    assert expected.complete
    assert expected.keys == tuple(f"{n}.png" for n in range(10))
    method = afmi.AFMI(model)
    table = expected.table()
    for n, result in enumerate(expected):
        if n == 3:
            assert isinstance(result, Unexplained)
            assert (result.index, result.source) == (3, str(photos / "3.png"))
            assert expected.errors == {"3.png": result.reason}
            row = table.slice(3, 1).to_pylist()[0]
            assert {name for name, value in row.items() if value is not None} == {"key", "error"}
            continue
        assert isinstance(result, Explanation)
        one = afmi.explain(model, photos / f"{n}.png")
        assert torch.equal(result.image, one.image)
        scale = float(one.map.abs().max())
        torch.testing.assert_close(result.map, one.map, rtol=0, atol=scale * 2e-3)
        record, wanted = result.to_dict(), one.to_dict()
        for name in ("score", "probability", "predicted_probability", "residual", "agreement"):
            assert record.pop(name) == pytest.approx(wanted.pop(name), rel=1e-4)
        assert record.pop("map") != wanted.pop("map")  # in half precision
        assert record.pop("scores") is None  # which are not kept
        assert wanted.pop("scores")["meaning"] == "logits"
        assert record == wanted
        importance = method.feature_map_importance(method.model.prepare(photos / f"{n}.png"))
        torch.testing.assert_close(
            torch.tensor(table["importance"][n].as_py()), importance[0], rtol=1e-4, atol=1e-6
        )
        assert (expected.path / "pictures" / f"{n:08d}.png").exists()
        with Image.open(expected.path / "pictures" / f"{n:08d}.png") as picture:
            assert picture.size == (16, 16)


def test_explanations_are_had_by_key_and_number(expected: Explanations) -> None:
    for n in (0, 5, 9, -1):
        assert expected[n].source == expected[f"{n % 10}.png"].source
    with pytest.raises(KeyError):
        expected["x.png"]
    for n in (10, -11):
        with pytest.raises(IndexError, match="expected a number below 10"):
            expected[n]
    assert expected.table(["key", "class"]).column_names == ["key", "class"]
    with pytest.raises(UsageError, match=r"expected columns among key, class, .* got size"):
        expected.table(["size"])
    assert [len(table) for table in expected.tables()] == [4, 4, 2]


def test_tables_open_without_the_package(expected: Explanations) -> None:
    table = pq.read_table(expected.path / "pieces")
    assert len(table) == 10
    assert table["map"].type == pa.list_(pa.float16(), 7 * 7)
    note = json.loads(table.schema.metadata[b"afmi"])["about"]
    assert note["layout"]["map"] == [7, 7]
    assert note["record"]["versions"]["afmi"] == afmi.__version__


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Local(workers=2), id="processes"),
        pytest.param(Ray(workers=2), id="ray", marks=pytest.mark.slow),
    ],
)
def test_every_engine_writes_the_same_bytes(
    model: Classifier, photos: Path, expected: Explanations, tmp_path: Path, engine: Any
) -> None:
    explain_dataset(model, photos, tmp_path, **PIECE, pictures=True, engine=engine)
    assert files(tmp_path) == files(expected.path)


def test_a_run_resumes_after_an_interruption(
    model: Classifier,
    photos: Path,
    expected: Explanations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = DatasetFolder.write_piece
    written: list[int] = []

    def once(self: DatasetFolder, start: int, *rest: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, *rest)

    monkeypatch.setattr(DatasetFolder, "write_piece", once)
    with pytest.raises(KeyboardInterrupt):
        explain_dataset(model, photos, tmp_path, **PIECE, pictures=True)
    begun = open_explanations(tmp_path)
    assert not begun.complete
    assert (len(begun), begun.planned) == (4, 10)
    assert "4 of 10 images" in repr(begun)

    monkeypatch.setattr(DatasetFolder, "write_piece", write)
    (tmp_path / "pieces" / "00000008.parquet").write_bytes(b"PAR1")  # cut off by a crash
    seen: list[Any] = []
    explain_dataset(model, photos, tmp_path, **PIECE, pictures=True, on_piece=seen.append)
    assert files(tmp_path) == files(expected.path)
    assert [(p.done, p.failed, p.new, p.total) for p in seen] == [
        (4, 1, 0, 10),
        (8, 1, 4, 10),
        (10, 1, 6, 10),
    ]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"batch_size": 4}, "batch_size was 2, now 4"),
        ({"target": "dog"}, "target: text was not there, now"),
        ({"vectors": "contribution"}, "vectors was importance, now contribution"),
        ({"reference": "white"}, "method: parameters: reference"),
        ({"limit": 5}, "data: images was 10, now 5"),
        ({"maps": False}, "maps was true, now false"),
    ],
)
def test_another_run_is_refused(
    model: Classifier, photos: Path, expected: Explanations, change: Any, difference: str
) -> None:
    before = files(expected.path)
    with pytest.raises(UsageError, match=rf"holds results of another run \(.*{difference}"):
        explain_dataset(model, photos, expected.path, **{**PIECE, "pictures": True, **change})
    assert files(expected.path) == before


def test_other_weights_and_other_folders_are_refused(
    photos: Path, expected: Explanations, tmp_path: Path
) -> None:
    other = network()
    torch.nn.init.ones_(other.network[-1].weight)
    with pytest.raises(UsageError, match="model: weights has changed"):
        explain_dataset(other, photos, expected.path, **PIECE, pictures=True)
    (tmp_path / "x").write_text("")
    with pytest.raises(UsageError, match="it holds other files"):
        explain_dataset(other, photos, tmp_path, **PIECE)
    with pytest.raises(AfmiError, match=r"expected the folder of afmi\.explain_dataset"):
        open_explanations(tmp_path)


@pytest.fixture
def white(tmp_path: Path) -> list[Image.Image]:
    drawn = np.random.default_rng(1)
    shades = [drawn.integers(0, 200, (16, 16, 3), dtype=np.uint8) for _ in range(7)]
    shades[4][:] = 255
    return [Image.fromarray(shade) for shade in shades]


def test_an_image_that_the_network_fails_on_is_a_row(
    white: list[Image.Image], tmp_path: Path
) -> None:
    explained = explain_dataset(network(Moody()), white, tmp_path, **PIECE, reference="black")
    assert list(explained.errors) == ["item/4"]
    assert "no white pictures" in explained.errors["item/4"]
    assert len(explained) == 7


@pytest.mark.skipif(os.name == "nt", reason="processes need Linux or macOS")
def test_an_image_that_kills_its_worker_is_a_row(white: list[Image.Image], tmp_path: Path) -> None:
    engine, piece = Local(workers=2, retries=0), {"batch_size": 2, "images_per_piece": 2}
    with pytest.warns(WorkerWarning, match="a worker died: SIGKILL"):
        explained = explain_dataset(
            network(Moody(deadly=True)), white, tmp_path / "deadly", **piece, engine=engine
        )
    assert explained.errors == {"item/4": "its worker died, once"}
    whole = explain_dataset(network(Moody()), white, tmp_path / "alive", **piece)
    # The batch without it is as it was; its neighbour went through the network by itself.
    assert explained.table().slice(0, 4) == whole.table().slice(0, 4)
    assert explained["item/5"].score == pytest.approx(whole["item/5"].score, rel=1e-5)


def test_a_network_that_can_never_be_explained_is_refused_at_once(
    white: list[Image.Image], tmp_path: Path
) -> None:
    with pytest.raises(LayerError):
        explain_dataset(network(), white, tmp_path / "a", layer="network.99")
    with pytest.raises(AfmiError, match=r"none of the first images can be explained.* no white"):
        explain_dataset(network(Moody()), [white[4]] * 1, tmp_path / "b")
    for wrong in ({"batch_size": 0}, {"images_per_piece": 1.5}, {"vectors": "fmi"}):
        with pytest.raises(UsageError, match="expected"):
            explain_dataset(network(), white, tmp_path / "c", **wrong)
    assert not (tmp_path / "c").exists()


def test_a_batch_that_needs_too_much_memory_is_halved(
    model: Classifier,
    photos: Path,
    expected: Explanations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, sizes = job_module.attributed_batch, []

    def small(method: Any, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 2:
            raise MemoryError
        return whole(method, items)

    monkeypatch.setattr(job_module, "attributed_batch", small)
    with pytest.warns(MemoryWarning, match=r"ran out of memory with [34] images at once"):
        explained = explain_dataset(model, photos, tmp_path, batch_size=4, maps=False)
    assert sizes == [1, 3, 1, 1, 1, 4, 2, 2, 2]
    assert [*explained.errors] == ["3.png"]


@pytest.mark.parametrize("method", ["gradient", "grad-cam"])
def test_other_methods_keep_their_maps(
    model: Classifier, photos: Path, tmp_path: Path, method: str
) -> None:
    explained = explain_dataset(model, photos, tmp_path, method=method, limit=3)
    assert "importance" not in explained.table().column_names
    one = afmi.explain(model, photos / "0.png", method=method)
    scale = float(one.map.abs().max())
    torch.testing.assert_close(explained["0.png"].map, one.map, rtol=0, atol=scale * 2e-3)
    with pytest.raises(UsageError, match="as the vectors of"):
        explain_dataset(model, photos, tmp_path / "x", method=method, vectors="importance")


def test_contributions_sum_to_the_change_of_the_score(
    model: Classifier, photos: Path, tmp_path: Path
) -> None:
    explained = explain_dataset(
        model, photos, tmp_path, target="newt", vectors="contribution", maps=False
    )
    table = explained.table()
    assert {"predicted", "contribution"} < {*table.column_names}
    assert "map" not in table.column_names
    black = float(model(torch.zeros(1, 3, 16, 16))[0, 2].detach())
    for row in table.to_pylist():
        if row["error"] is None:
            assert row["label"] == "newt"
            assert sum(row["contribution"]) == pytest.approx(row["score"] - black, abs=1e-5)
    with pytest.raises(UsageError, match="holds no maps"):
        explained["0.png"]


def test_labelled_classes_are_explained_and_others_beside(tmp_path: Path) -> None:
    model = network()
    generator = torch.Generator().manual_seed(1)
    data = [(torch.rand(3, 16, 16, generator=generator), n % 3) for n in range(5)]
    explained = explain_dataset(
        *(model, data, tmp_path),
        labelled=True,
        classes=["owl", 1],
        vectors="contribution",
        maps=False,
        **PIECE,
    )
    table = explained.table()
    assert table["class"].to_pylist() == [0, 1, 2, 0, 1]
    pictures = torch.stack([picture for picture, _ in data])
    method = afmi.AFMI(model)
    expected = [method.attribution(pictures, c).vectors["contribution"] for c in range(4)]
    own = torch.stack([expected[label][n] for n, (_, label) in enumerate(data)])
    np.testing.assert_allclose(table["contribution"].to_pylist(), own, rtol=1e-4, atol=1e-6)
    joined = torch.cat([expected[3], expected[1]], 1)
    np.testing.assert_allclose(table["contributions"].to_pylist(), joined, rtol=1e-4, atol=1e-6)
    assert {"predicted", "predicted_label"} <= {*table.column_names}


def test_a_class_is_set_against_another_by_label(tmp_path: Path) -> None:
    model = network()
    data = [(torch.full((3, 16, 16), 0.2 * n), n) for n in range(1, 3)]
    explained = explain_dataset(model, data, tmp_path, labelled=True, target=Difference(None, 0))
    assert [one.label for one in explained] == ["dog rather than cat", "newt rather than cat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [0]}, "say what that is: labelled=True"),
        ({"classes": [0, "cat"], "labelled": True}, "each of the classes once"),
        ({"classes": [0], "labelled": True, "method": "grad-cam"}, "no contributions"),
    ],
)
def test_classes_that_cannot_be_kept(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        explain_dataset(network(), [(torch.rand(3, 16, 16), 0)], tmp_path, **options)


def test_targets_that_are_no_classes_come_back(
    model: Classifier, photos: Path, tmp_path: Path
) -> None:
    target = Difference("newt", "owl")
    explained = explain_dataset(model, photos, tmp_path / "a", target=target, limit=2)
    one = afmi.explain(model, photos / "0.png", target)
    again = explained["0.png"]
    assert isinstance(again, Explanation)
    assert again.target == one.target
    assert [each.label for each in again.compared] == ["newt", "owl"]
    assert again.ends == one.ends
    assert again.prediction == one.prediction

    def first(outputs: Tensor) -> Tensor:
        return outputs[:, 0]

    explained = explain_dataset(model, photos, tmp_path / "b", target=first, limit=2)
    again = explained["0.png"]
    assert isinstance(again, Explanation)
    assert isinstance(again.target, RecordedTarget)
    assert again.target.label(model) == again.label
    assert again.original().size == (16, 16)


def test_images_of_different_sizes_say_their_own(tmp_path: Path) -> None:
    bare = without_crop(network())
    drawn = np.random.default_rng(2)
    sizes = [(16, 16), (16, 16), (20, 24), (16, 20)]
    shades = [drawn.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    data = [Image.fromarray(shade) for shade in shades]
    explained = explain_dataset(bare, data, tmp_path, **PIECE)
    table = explained.table()
    assert table["size"].to_pylist() == [list(size) for size in sizes]
    assert table["map_size"][2].as_py() == [9, 11]
    assert tuple(explained[2].map.shape) == (20, 24)
    again = open_explanations(tmp_path)[2]
    assert again.image.unique().tolist() == [0.5]  # nobody knows where it was
    known = open_explanations(tmp_path, data=data)[2]
    torch.testing.assert_close(known.image * 255, torch.tensor(shades[2]).permute(2, 0, 1).float())


def without_crop(model: Classifier) -> Classifier:
    return Classifier(model.network, labels=LABELS, name="bare")


# --- stores -----------------------------------------------------------------------------------


def test_a_store_holds_what_a_folder_holds_and_resumes(
    model: Classifier, photos: Path, expected: Explanations, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store = "memory://explained/photos", fsspec.filesystem("memory")
    options = {**PIECE, "pictures": True}
    explained = explain_dataset(model, photos, url, **options)
    there = {name.split("/", 3)[3]: store.cat(name) for name in store.find("/explained/photos")}
    assert json.loads(there.pop("manifest.json"))["run"] == expected.manifest["run"]
    assert there == files(expected.path)
    assert str(explained.path) == url and explained.complete
    again = open_explanations(url)
    assert again.table() == expected.table()
    assert torch.equal(again["5.png"].map, expected["5.png"].map)

    store.rm_file("/explained/photos/pieces/00000004.parquet")
    assert len(open_explanations(url)) == 6
    listed: list[str] = []
    memory = type(store)
    ls = memory.ls
    monkeypatch.setattr(
        memory, "ls", lambda self, path, *a, **k: listed.append(path) or ls(self, path, *a, **k)
    )
    seen: list[Any] = []
    explain_dataset(model, photos, url, **options, on_piece=seen.append)
    assert [(p.done, p.failed, p.new) for p in seen] == [(6, 1, 0), (10, 1, 4)]
    assert sum(path.endswith("pieces") for path in listed) == 1
    assert open_explanations(url).table() == expected.table()

    with pytest.raises(UsageError, match="results of another run"):
        explain_dataset(model, photos, url, **{**options, "batch_size": 4})
    with pytest.raises(AfmiError, match=r"expected the folder of afmi\.explain_dataset"):
        open_explanations("memory://explained/nothing")

    def unreachable(*_: Any, **__: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(memory, "cat_file", unreachable)
    for call in (lambda: open_explanations(url), lambda: again.table()):
        with pytest.raises(SourceError, match=r"cannot be read \(TimeoutError: no answer\)"):
            call()


# --- sources --------------------------------------------------------------------------------


def test_tars_lists_and_streams_give_the_numbers_of_a_folder(
    model: Classifier, photos: Path, expected: Explanations, tmp_path: Path
) -> None:
    members = [(f"{n}.png", (photos / f"{n}.png").read_bytes()) for n in range(10)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    fsspec.filesystem("memory").pipe("/explained/a.tar", tar_bytes(members))
    names = [str(photos / f"{n}.png") for n in range(10)]
    pq.write_table(pa.table({"image": names}), tmp_path / "list.parquet")
    numbers = expected.table(expected.table().column_names[1:-1])
    for place, source in enumerate(
        (tmp_path / "a.tar", tmp_path / "list.parquet", "memory://explained/a.tar")
    ):
        out = tmp_path / str(place)
        explained = explain_dataset(model, source, out, **PIECE)
        assert explained.complete
        assert explained.table(numbers.column_names) == numbers
        again = open_explanations(out)[1]
        known = again.image.unique().numel() > 1
        assert known == (place < 2)


def pictures_of(folder: Path, count: int = 10) -> Iterator[Image.Image]:
    for n in range(count):
        if n != 3:
            yield Image.open(io.BytesIO((folder / f"{n}.png").read_bytes()))


def test_streams_resume_on_workers_and_are_compared(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Image.Image]:
        yield from pictures_of(photos, 7)
        raise OSError("the line is dead")

    with pytest.raises(SourceError, match="the line is dead"):
        explain_dataset(model, broken(), tmp_path / "a", **PIECE)
    begun = open_explanations(tmp_path / "a")
    assert begun.planned is None
    assert len(begun) == 4
    seen: list[Any] = []
    engine = Local(workers=2) if os.name != "nt" else None
    explain_dataset(
        *(model, pictures_of(photos), tmp_path / "a"),
        **PIECE,
        engine=engine,
        on_piece=seen.append,
    )
    assert (seen[-1].done, seen[-1].new, seen[-1].total) == (9, 5, None)
    whole = explain_dataset(model, pictures_of(photos), tmp_path / "b", **PIECE)
    assert whole.complete
    assert files(tmp_path / "a") == files(tmp_path / "b")

    def changed() -> Iterator[Image.Image]:
        images = list(pictures_of(photos))
        yield from [images[0], images[2], images[1], *images[3:]]

    with pytest.raises(UsageError, match="is of other data"):
        explain_dataset(model, changed(), tmp_path / "b", **PIECE)
    with pytest.raises(UsageError, match="is of other data"):
        explain_dataset(model, pictures_of(photos, 6), tmp_path / "b", **PIECE)


def test_a_shorter_stream_is_refused(model: Classifier, photos: Path, tmp_path: Path) -> None:
    explain_dataset(model, pictures_of(photos), tmp_path, **PIECE)
    with pytest.raises(UsageError, match="there were 9 images, now 4"):
        explain_dataset(model, pictures_of(photos, 5), tmp_path, **PIECE)


@pytest.mark.parametrize(("most", "ahead"), [(2**30, 4), (12_288 * 2, 2), (1, 1)])
def test_a_stream_is_read_ahead_by_so_many_bytes(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, ahead: int
) -> None:
    """A piece of four images (3, 16, 16) has 12,288 bytes."""
    images = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = explain_dataset(model, images, tmp_path / "listed", **PIECE)
    read = [0]

    def counted() -> Iterator[Tensor]:
        for image in images:
            read[0] += 1
            yield image

    monkeypatch.setattr(run_module, "_MOST_BYTES", most)
    monkeypatch.setattr(Local, "pool", lambda self, job, device: _HerePool(job))
    seen: list[int] = []
    explained = explain_dataset(
        *(model, counted(), tmp_path / "stream"),
        **PIECE,
        engine=Local(workers=2),
        on_piece=lambda progress: seen.append(min(30, read[0]) - progress.done),
    )
    assert max(seen) == 4 * ahead + 1  # and the next one, to know whether there is one
    numbers = expected.table().column_names[1:]
    assert explained.table(numbers) == expected.table(numbers)


def test_nothing_is_read_after_an_interruption(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = DatasetFolder.write_piece, []

    def counted() -> Iterator[Tensor]:
        for number in range(30):
            read.append(number)
            yield torch.full((3, 16, 16), number / 30)

    def once(self: DatasetFolder, *piece: Any) -> None:
        monkeypatch.setattr(DatasetFolder, "write_piece", write)
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetFolder, "write_piece", once)
    with pytest.raises(KeyboardInterrupt):
        explain_dataset(model, counted(), tmp_path, **PIECE, method="gradient")
    assert len(open_explanations(tmp_path)) == 4  # what was finished is kept
    assert len(read) == 8 + 1


def test_a_source_with_a_password_is_not_noted(model: Classifier, tmp_path: Path) -> None:
    url = f"memory://me:SECRET@{tmp_path.name}"
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    fsspec.filesystem("memory").pipe(f"/me:SECRET@{tmp_path.name}/a.png", buffer.getvalue())
    explain_dataset(model, url, tmp_path / "out", method="gradient")
    assert "SECRET" not in (tmp_path / "out" / "manifest.json").read_text()


def test_costly_methods_have_smaller_pieces(
    model: Classifier, photos: Path, tmp_path: Path
) -> None:
    method = "rise:masks=4000:batch_size=400"
    costly = afmi.methods.RISE(model, masks=4000)
    assert run_module._affordable(costly, model.prepare(photos / "0.png")) == 4
    explained = explain_dataset(model, photos, tmp_path, method=method, limit=1, batch_size=2)
    assert explained.manifest["run"]["images_per_piece"] == 4
