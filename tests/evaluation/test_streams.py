"""Every kind of data gives the numbers of a folder; streams resume, and are never mixed."""

from __future__ import annotations

import importlib
import io
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from shards import shards_of
from torch import nn

import afmi.evaluation.plan as plan_module
from afmi import Classifier, explain_dataset
from afmi.data import streams
from afmi.engines.local import _HerePool
from afmi.errors import AfmiError, ImageError, SourceError, TargetError, UsageError
from afmi.evaluation import Results, evaluate, image_list
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.tables import table_bytes
from afmi.report.summary import summarise
from afmi.report.words import unfinished

METHODS = "a-fmi,gradient,random"
LABELS = ("cat", "dog", "newt", "owl")


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    return Classifier(body, labels=list(LABELS), resize=16, crop=16, name="tiny").eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of each of four classes."""
    drawn = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "photos"
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for i in range(3):
            pixels = drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def expected(model: Classifier, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("expected")
    evaluate(model, photos, out / "out", methods=METHODS)
    return numbers(out / "out")


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 4)


def numbers(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Every value of every method but the cost, to six digits."""
    results = Results.open(folder)
    return {
        label: {
            name: [f"{v:.6g}" for v in values]
            for name, values in sorted(results.read(label).values.items())
            if not name.startswith("cost/")
        }
        for label in results.methods
    }


def paths_of(photos: Path) -> list[Path]:
    return sorted(photos.glob("*/*.png"))


def pairs_of(photos: Path) -> list[tuple[Image.Image, int]]:
    return [(Image.open(p).convert("RGB"), LABELS.index(p.parent.name)) for p in paths_of(photos)]


class Stream(torch.utils.data.IterableDataset):
    """Mappings, as a stream of PyTorch gives them."""

    def __init__(self, photos: Path) -> None:
        self.photos = photos

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in paths_of(self.photos):
            yield {"pixel_values": Image.open(path), "labels": path.parent.name, "id": 7}


def hugging_face(photos: Path, names: Iterable[str]) -> Any:
    """A data set whose classes have an order of its own."""
    datasets = pytest.importorskip("datasets")
    names = list(names)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    paths = paths_of(photos)
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [names.index(path.parent.name) for path in paths],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def local_tars(photos: Path, folder: Path) -> str:
    for name, content in shards_of(photos, 5, {label: label for label in LABELS}).items():
        (folder / name).write_bytes(content)
    return str(folder / "shard-{000..002}.tar")


def memory_tars(photos: Path, folder: Path) -> str:
    store = fsspec.filesystem("memory")
    indices = {label: str(index) for index, label in enumerate(LABELS)}
    for name, content in shards_of(photos, 5, indices).items():
        store.pipe(f"/{folder.name}/{name}", content)
    return f"memory://{folder.name}/*.tar"


def memory_folder(photos: Path, folder: Path) -> str:
    store = fsspec.filesystem("memory")
    for path in paths_of(photos):
        store.pipe(f"/{folder.name}/val/{path.parent.name}/{path.name}", path.read_bytes())
        store.pipe(f"/{folder.name}/train/{path.parent.name}/{path.name}", b"left out")
    return f"memory://{folder.name}"


def zipped(photos: Path, folder: Path) -> str:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in paths_of(photos):
            archive.write(path, f"in/{path.parent.name}/{path.name}")
    return f"zip://in::{folder / 'all.zip'}"


SOURCES: dict[str, Callable[[Path, Path], Any]] = {
    "list of mappings": lambda photos, _: [{"img": p, "target": t} for p, t in pairs_of(photos)],
    "generator": lambda photos, _: (pair for pair in pairs_of(photos)),
    "encoded": lambda photos, _: (
        {"__key__": "x", "png": p.read_bytes(), "cls": p.parent.name.encode()}
        for p in paths_of(photos)
    ),
    "open files": lambda photos, _: (
        (io.BytesIO(p.read_bytes()), p.parent.name) for p in paths_of(photos)
    ),
    "IterableDataset": lambda photos, _: Stream(photos),
    "datasets": lambda photos, _: hugging_face(photos, LABELS[::-1]),
    "datasets, streamed": lambda photos, _: hugging_face(
        photos, LABELS[::-1]
    ).to_iterable_dataset(),
    "tars on a disk": local_tars,
    "tars in a store": memory_tars,
    "tars in a store, kept": lambda photos, folder: f"simplecache::{memory_tars(photos, folder)}",
    "tars by a URL of files": lambda photos, folder: f"file://{local_tars(photos, folder)}",
    "folder in a store": memory_folder,
    "folder by a URL of files": lambda photos, _: f"file://{photos}",
    "folder in a zip file": zipped,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_numbers_of_the_folder(
    source: str, model: Classifier, photos: Path, expected: Any, tmp_path: Path
) -> None:
    data = SOURCES[source](photos, tmp_path)
    results = evaluate(model, data, tmp_path / "out", methods=METHODS)
    assert numbers(tmp_path / "out") == expected
    assert results.images.labels.tolist() == [i for i in range(4) for _ in range(3)]
    assert results.ended and summarise(results).finished
    assert results.examples


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_stream_resumes(
    stop: int,
    model: Classifier,
    photos: Path,
    expected: Any,
    tmp_path: Path,
    small_windows: None,
) -> None:
    out, begun = tmp_path / "out", []

    def interrupt(piece: Any, done: float, total: float) -> None:
        assert total == np.inf or piece.stop == 12
        if len(begun) == stop:
            raise KeyboardInterrupt
        begun.append((piece.label, piece.start))

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Stream(photos), out, methods=METHODS, on_begin=interrupt)
    partial = Results.open(out)
    assert len(partial.images) == 4 * (stop // 3 + 1)
    assert partial.ended == (len(partial.images) == 12)
    text = unfinished(summarise(partial))
    assert text and (f"their first {len(partial.images)} pictures" in text) != partial.ended
    stop = 99
    evaluate(model, Stream(photos), out, methods=METHODS, on_begin=interrupt)
    assert len(begun) == len(set(begun)) == 9  # no piece twice
    assert numbers(out) == expected
    assert unfinished(summarise(Results.open(out))) == ""
    begun.clear()
    evaluate(model, Stream(photos), out, methods=METHODS, on_begin=interrupt)
    assert not begun


def other_order(pairs: list[Any]) -> list[Any]:
    return [*pairs[:6], pairs[7], pairs[6], *pairs[8:]]


def other_picture(pairs: list[Any]) -> list[Any]:
    return [*pairs[:5], (pairs[5][0].transpose(Image.Transpose.ROTATE_180), 1), *pairs[6:]]


def other_first(pairs: list[Any]) -> list[Any]:
    return pairs[1:]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_order, "other data: picture 6 was item/6@.* of class 2, now item/6@"),
        (other_picture, "other data: picture 5 was item/5@"),
        (lambda pairs: pairs[:11], "there were 12 pictures, now 11;"),
        (lambda pairs: [*pairs, pairs[0]], "there were 12 pictures, now 13;"),
        (other_first, r"results of another run \(data: fingerprint has changed\)"),
    ],
)
def test_other_data_are_noticed(
    change: Callable[[list[Any]], list[Any]],
    match: str,
    model: Classifier,
    photos: Path,
    tmp_path: Path,
    small_windows: None,
) -> None:
    out, pairs = tmp_path / "out", pairs_of(photos)
    evaluate(model, iter(pairs), out, methods="random")
    before = numbers(out)
    with pytest.raises(UsageError, match=match):
        evaluate(model, iter(change(pairs)), out, methods="random,gradient")
    assert numbers(out)["Random"] == before["Random"]
    with pytest.raises(UsageError, match=r"data: images was not there, now 12"):
        evaluate(model, pairs, out, methods="random")  # a list, whose keys are others


def test_bad_items_are_rows_and_cost_no_other(
    model: Classifier, photos: Path, expected: Any, tmp_path: Path, small_windows: None
) -> None:
    class Failing:
        """Raises in the place of an item, and goes on."""

        def __init__(self) -> None:
            items: list[Any] = [*pairs_of(photos)]
            items[3] = (b"no picture", 1)
            items[4] = {"image": items[4][0]}
            items[5] = (items[5][0], "tiger")
            items[6] = OSError("gone")
            items[7] = (None, 2)
            self.items = iter(items)

        def __iter__(self) -> Failing:
            return self

        def __next__(self) -> Any:
            item = next(self.items)
            if isinstance(item, OSError):
                raise item
            return item

    results = evaluate(model, Failing(), tmp_path / "out", methods="gradient")
    errors = results.errors("Gradient")
    assert list(errors) == [3, 4, 5, 6, 7]
    for number, part in {
        3: "item/3 of Failing cannot be read",
        4: "expected one of label, labels, target, cls as the label in item/4",
        5: "item/5 of Failing has the label 'tiger', which is none of the model's 4 classes",
        6: "OSError: gone",
        7: "it has no picture",
    }.items():
        assert part in errors[number]
    assert results.images.labels.tolist()[3:8] == [1, -1, -1, -1, 2]
    values = results.values("Gradient")["insertion/accuracy_auc"]
    good = [0, 1, 2, 8, 9, 10, 11]
    whole = expected["Gradient"]["insertion/accuracy_auc"]
    assert [f"{values[n]:.6g}" for n in good] == [whole[n] for n in good]


def test_data_that_end_in_an_error_are_not_all(
    model: Classifier, photos: Path, expected: Any, tmp_path: Path, small_windows: None
) -> None:
    pairs, out = pairs_of(photos), tmp_path / "out"

    def broken() -> Iterator[Any]:
        yield from pairs[:6]
        raise OSError("the line is dead")

    with pytest.raises(
        SourceError, match=r"generator gave nothing more after an error \(OSError: "
    ):
        evaluate(model, broken(), out, methods=METHODS)
    assert len(Results.open(out).images) == 4 and not Results.open(out).ended
    evaluate(model, iter(pairs), out, methods=METHODS)
    assert numbers(out) == expected


def test_an_iterable_that_only_fails_ends(model: Classifier, tmp_path: Path) -> None:
    class Endless:
        def __iter__(self) -> Endless:
            return self

        def __next__(self) -> Any:
            raise ValueError("never")

    with pytest.raises((SourceError, ImageError, TargetError), match=r"never"):
        evaluate(model, Endless(), tmp_path / "out", methods="random")


def test_a_tar_file_in_a_store_that_is_cut_short_is_noticed(
    model: Classifier, photos: Path, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    (content,) = shards_of(photos, 12, {label: label for label in LABELS}).values()
    store.pipe(f"/{tmp_path.name}/a.tar", content[: len(content) // 1024 * 512])
    with pytest.raises(ImageError, match=r"'a\.tar' is no tar file, or cut short or damaged"):
        evaluate(model, f"memory://{tmp_path.name}/a.tar", tmp_path / "out", methods="random")


def test_limit_takes_the_first_and_reads_no_further(
    model: Classifier, photos: Path, expected: Any, tmp_path: Path, small_windows: None
) -> None:
    pairs, totals = pairs_of(photos), []

    def endless() -> Iterator[Any]:
        yield from pairs[:6]
        raise AssertionError("read too far")

    options: dict[str, Any] = {"methods": "gradient", "limit": 6}
    out = tmp_path / "out"
    results = evaluate(
        model, endless(), out, **options, on_begin=lambda piece, done, total: totals.append(total)
    )
    assert len(results.images) == 6 and results.ended
    for name, values in numbers(out)["Gradient"].items():
        assert values == expected["Gradient"][name][:6]
    assert totals[0] == totals[1] < np.inf
    with pytest.raises(UsageError, match=r"images was 6, now 7"):
        evaluate(model, iter(pairs), out, methods="gradient", limit=7)


def test_one_window_is_read_ahead(
    model: Classifier, photos: Path, tmp_path: Path, small_windows: None
) -> None:
    pairs, read, ahead = pairs_of(photos), [], []

    def counted() -> Iterator[Any]:
        for number, pair in enumerate(pairs):
            read.append(number)
            yield pair

    evaluate(
        *(model, counted(), tmp_path / "out"),
        methods="gradient",
        on_begin=lambda piece, *_: ahead.append(len(read) - piece.stop),
    )
    assert len(ahead) == 3 and max(ahead) <= 1


def test_a_window_is_let_go_before_the_next_is_read(
    model: Classifier, photos: Path, tmp_path: Path, small_windows: None, monkeypatch: Any
) -> None:
    pairs, held, most = pairs_of(photos), weakref.WeakSet(), []
    prepare = streams.prepared

    def prepared(*given: Any) -> Any:
        picture = prepare(*given)
        held.add(picture)
        most.append(len(held))
        return picture

    monkeypatch.setattr(streams, "prepared", prepared)
    evaluate(model, iter(pairs * 3), tmp_path / "out", methods="gradient")
    assert len(most) == 36 and max(most) <= 4 + 2  # a window, and the first picture of all


def test_parts_of_the_list_are_read_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("100000000", "99999999", "00000004"):
        (folder / f"{name}.parquet").touch()
    parts = image_list.ImageList(tmp_path, "")._parts()
    assert [part.stem for part in parts] == ["00000004", "99999999", "100000000"]


def test_a_folder_of_another_format_is_not_continued(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run = importlib.import_module("afmi.evaluation.identity")
    options: dict[str, Any] = {"methods": "random", "metrics": "completeness", "limit": 1}
    with monkeypatch.context() as patch:
        patch.setattr(run, "_FORMAT", 1)
        evaluate(model, photos, tmp_path / "out", **options)
        explain_dataset(model, photos, tmp_path / "explained", limit=1, method="gradient")
    with pytest.raises(UsageError, match="another run \\(format was 1, now 2\\)"):
        evaluate(model, photos, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="another run \\(format was 1, now 2\\)"):
        explain_dataset(model, photos, tmp_path / "explained", limit=1, method="gradient")


def test_pictures_of_all_windows_are_drawn(
    model: Classifier, photos: Path, tmp_path: Path, small_windows: None
) -> None:
    results = evaluate(model, Stream(photos), tmp_path / "out", methods="gradient", examples=4)
    assert results.examples == (0, 3, 6, 9)  # the first of each class


def test_a_window_costs_what_it_is(
    model: Classifier, photos: Path, tmp_path: Path, small_windows: None, monkeypatch: Any
) -> None:
    out, written, sent = tmp_path / "out", [], []
    share, enter = _HerePool.share, table_bytes

    def shared(self: Any, value: Any) -> Any:
        sent.append(len(value))
        assert len(value.source.pictures) == len(value)
        return share(self, value)

    def tables(columns: Any, schema: Any, about: Any) -> bytes:
        written.append(len(columns[1]))
        return enter(columns, schema, about)

    monkeypatch.setattr(_HerePool, "share", shared)
    monkeypatch.setattr(image_list, "table_bytes", tables)
    pairs = pairs_of(photos)
    evaluate(model, iter(pairs * 5), out, methods="gradient,random")
    assert sent == [4] * 15  # once for both methods
    assert written == [4] * 14 + [60]  # and all of them once, at the end
    assert not list((out / "images").iterdir())
    written.clear()
    evaluate(model, iter(pairs * 5), out, methods="gradient,random")
    assert not written
    assert sent == [4] * 15


def test_windows_of_other_sizes_agree(
    model: Classifier, photos: Path, tmp_path: Path, small_windows: None
) -> None:
    """Two processes with other numbers of workers enter the pictures of one stream."""
    out, keys = tmp_path / "out", [f"item/{n}" for n in range(12)]
    run = {"afmi": "0"}
    one, other = (ResultsFolder.begin(out, run, None, {"metrics": {}}) for _ in range(2))
    labels = [0] * 12

    def enter(folder: ResultsFolder, start: int, stop: int, ended: bool = False) -> None:
        folder.enter_images(start, keys[start:stop], labels[start:stop], ended=ended)

    def listed() -> list[str]:
        return ResultsFolder(out).read_images()["key"].to_pylist()

    enter(one, 0, 2)
    enter(other, 0, 6)
    enter(one, 2, 4)
    assert listed() == keys[:6]
    for start in (4, 6):
        enter(one, start, start + 2)
    enter(other, 6, 12, ended=True)
    assert listed() == keys and one.ended()
    enter(one, 8, 10)
    with pytest.raises(UsageError, match="there were 12 pictures, now 10;"):
        enter(one, 8, 10, ended=True)
    with pytest.raises(UsageError, match="picture 10 was item/10 of class 0, now item/9 of"):
        one.enter_images(10, keys[9:11], labels[:2], ended=True)


def test_parts_that_overlap_must_agree(tmp_path: Path) -> None:
    out, keys = tmp_path / "out", [f"item/{n}" for n in range(6)]

    def folder() -> ResultsFolder:
        return ResultsFolder.begin(out, {"afmi": "0"}, None, {"metrics": {}})

    first = folder()
    for start in (0, 2, 4):
        first.enter_images(start, keys[start : start + 2], [0, 0], ended=False)
    for last, agrees in (("item/4", True), ("item/9", False)):
        (out / "images" / "00000002.parquet").write_bytes(b"PAR1 cut off")
        folder().enter_images(0, [*keys[:4], last], [0] * 5, ended=False)
        if agrees:
            assert folder().read_images()["key"].to_pylist() == keys
        else:
            with pytest.raises(AfmiError, match=r"00000004\.parquet' lists other pictures"):
                folder().read_images()


@pytest.mark.parametrize("left", [b"", b"PAR1 cut off"])
def test_parts_of_the_list_that_a_crash_cut_off_are_written_again(
    left: bytes, model: Classifier, photos: Path, tmp_path: Path, small_windows: None
) -> None:
    out, pairs = tmp_path / "out", pairs_of(photos)

    def broken() -> Iterator[Any]:
        yield from pairs[:11]
        raise OSError("the line is dead")

    for _ in range(2):
        with pytest.raises(SourceError):
            evaluate(model, broken(), out, methods="gradient")
        assert len(Results.open(out).images) == 8
        (out / "images" / "00000004.parquet").write_bytes(left)
        with pytest.raises(AfmiError, match=r"00000004\.parquet' is damaged .* delete it"):
            Results.open(out)
    results = evaluate(model, iter(pairs), out, methods="gradient")
    assert len(results.images) == 12 and results.ended


def test_costly_methods_have_whole_pieces_in_a_window(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 8)
    monkeypatch.setattr(plan_module, "_PASSES_PER_PIECE", 160)
    pieces: list[tuple[int, int]] = []
    evaluate(
        *(model, Stream(photos), tmp_path / "out"),
        methods="gradient",
        on_begin=lambda piece, *_: pieces.append((piece.start, piece.stop)),
    )
    size = pieces[0][1]
    assert size in (2, 4) and pieces == [(n, n + size) for n in range(0, 12, size)]


@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        (lambda pairs: iter([]), {}, ImageError, "has no items"),
        (lambda pairs: iter([p for p, _ in pairs]), {}, UsageError, "expected pairs .* got Image"),
        (
            lambda pairs: ((p, "zebra") for p, _ in pairs),
            {},
            TargetError,
            "item/0 .* has the label 'zebra', which is none of the model's 4",
        ),
        (
            lambda pairs: ({"image": p, "img": p, "label": n} for p, n in pairs),
            {},
            UsageError,
            "several that may be the image: 'image', 'img'; choose one with image_key=",
        ),
        (
            lambda pairs: (pair for pair in pairs),
            {"metrics": "grid-pointing"},
            UsageError,
            "needs pictures of . classes at once, but those of generator come one after the other",
        ),
        (
            lambda pairs: torch.utils.data.DataLoader(pairs),
            {},
            UsageError,
            "got a DataLoader, which gives batches; pass its dataset",
        ),
        (lambda pairs: {"train": pairs}, {}, UsageError, "got dict of 'train'"),
        (lambda pairs: (pair for pair in pairs), {"limit": 0}, UsageError, "whole number of pic"),
        (
            lambda pairs: (pair for pair in pairs),
            {"image_key": "image"},
            UsageError,
            "image_key and label_key are for items that are mappings",
        ),
        (lambda pairs: pairs, {"label_key": "x"}, UsageError, "image_key and label_key are for"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    data: Callable[[Any], Any],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    model: Classifier,
    photos: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=match):
        evaluate(
            *(model, data(pairs_of(photos)), tmp_path / "out"), **{"methods": "random"} | options
        )
    assert not (tmp_path / "out").exists()


def test_keys_choose_among_several(
    model: Classifier, photos: Path, expected: Any, tmp_path: Path
) -> None:
    white = Image.new("RGB", (20, 24), "white")
    items = [{"image": white, "img": p, "label": 0, "y": n} for p, n in pairs_of(photos)]
    for kind in (list, iter):
        out = tmp_path / kind.__name__
        options: dict[str, Any] = {"image_key": "img", "label_key": "y"}
        evaluate(model, kind(items), out, methods=METHODS, **options)
        assert numbers(out) == expected


def test_a_model_without_labels_takes_a_stream(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pairs = ((torch.rand(3, 8, 8), n) for _, n in pairs_of(photos))
    results = evaluate(bare, pairs, tmp_path / "out", methods="gradient")
    assert not results.errors("Gradient")


def test_a_lost_store_ends_the_run_and_a_lost_file_does_not(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = memory_folder(photos, tmp_path)
    memory = type(fsspec.filesystem("memory"))
    opened, asked = memory.open, []
    remote = importlib.import_module("afmi.data.remote")
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))

    def failing(error: Exception, file: str, times: int) -> Callable[..., Any]:
        def open_(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            if path.endswith(file) and len(asked) < times:
                asked.append(path)
                raise error
            return opened(self, path, *args, **kwargs)

        return open_

    monkeypatch.setattr(memory, "open", failing(FileNotFoundError("x"), "dog/1.png", 99))
    results = evaluate(model, url, tmp_path / "a", methods="gradient")
    assert list(results.errors("Gradient")) == [4]
    assert "val/dog/1.png' cannot be read: FileNotFoundError" in results.errors("Gradient")[4]
    asked.clear()
    monkeypatch.setattr(memory, "open", failing(TimeoutError("x"), "dog/1.png", 2))
    assert not evaluate(model, url, tmp_path / "b", methods="gradient").errors("Gradient")
    asked.clear()
    monkeypatch.setattr(memory, "open", failing(TimeoutError("x"), "dog/1.png", 99))
    with pytest.raises(SourceError, match=r"dog/1.png' cannot be reached \(TimeoutError: x\)"):
        evaluate(model, url, tmp_path / "c", methods="gradient")
    assert len(asked) == 3
