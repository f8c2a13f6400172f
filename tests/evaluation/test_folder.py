"""The folder of an evaluation: leftovers, damage, several processes, the order of writing."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock, Timeout
from PIL import Image

import afmi.evaluation.folder as folder_module
import afmi.files
from afmi.errors import AfmiError, UsageError
from afmi.evaluation import Results
from afmi.evaluation.folder import ResultsFolder, Row
from afmi.metrics import Insertion
from afmi.report import write_report
from afmi.specs import key_of

RUN = {"model": {"name": "tiny"}, "data": {"name": "here", "images": 2}, "batch_size": 8}
IMAGES = (("a.png", "b.png"), (0, 1))
ABOUT = {"command": "afmi evaluate", "metrics": {}}
ROWS = [(0, "cost/seconds", 0.5, None), (1, "error", float("nan"), "cannot be read")]


def opened(folder: Path, **changed: Any) -> ResultsFolder:
    return ResultsFolder.begin(folder, {**RUN, **changed}, IMAGES, ABOUT)


def entry(label: str, **changed: Any) -> dict[str, Any]:
    return {
        "class": "Gradient",
        "key": key_of(label),
        "parameters": {"samples": 3},
        "images_per_piece": 2,
        "refused": None,
        **changed,
    }


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_old_leftovers_are_swept(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.write_piece("Gradient", entry("Gradient"), 0, ROWS, {})
    old = tmp_path / "out" / "pieces" / "gradient" / ".afmi-0123.part"
    new = tmp_path / "out" / ".afmi-4567.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    opened(tmp_path / "out")
    assert files(tmp_path / "out") == [
        ".afmi-4567.part",
        ".afmi.lock",
        "images.parquet",
        "manifest.json",
        "pieces/gradient/00000000.parquet",
    ]


def test_a_run_killed_while_it_made_its_folder_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".afmi-0123.part").write_bytes(b"half")
    opened(out)
    assert files(out) == [".afmi-0123.part", ".afmi.lock", "images.parquet", "manifest.json"]


@pytest.mark.parametrize("left", [None, b"", b"PAR1 cut off"])
def test_list_of_pictures_is_written_again(tmp_path: Path, left: bytes | None) -> None:
    opened(tmp_path)
    path = tmp_path / "images.parquet"
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    opened(tmp_path)
    assert pq.read_table(path)["key"].to_pylist() == ["a.png", "b.png"]


def test_names_of_pictures_that_are_no_text(tmp_path: Path) -> None:
    ResultsFolder.begin(tmp_path, RUN, (("caf\udce9.png", "猫.png"), (0, 1)), ABOUT)
    keys = pq.read_table(tmp_path / "images.parquet")["key"].to_pylist()
    assert keys == ["caf\\udce9.png", "猫.png"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="it is a file"):
        opened(file)
    with pytest.raises(AfmiError, match="cannot be written"):
        opened(file / "out")
    (tmp_path / "images.parquet").write_text("mine")
    with pytest.raises(UsageError, match="it holds other files"):
        opened(tmp_path)
    assert (tmp_path / "images.parquet").read_text() == "mine"


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"run": {}}',
        b'{"run": {}, "methods": [], "metrics": {}}',
        b"\xff",
    ],
)
def test_damaged_manifest(tmp_path: Path, left: bytes) -> None:
    store = opened(tmp_path)
    (tmp_path / "manifest.json").write_bytes(left)
    for call in (lambda: opened(tmp_path), lambda: store.add_method("Gradient", entry("Gradient"))):
        with pytest.raises(AfmiError, match=r"manifest\.json' is damaged") as e:
            call()
        assert "\n" not in str(e.value)
    assert (tmp_path / "manifest.json").read_bytes() == left


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_keep_no_reader_waiting(tmp_path: Path) -> None:
    store = with_pieces(tmp_path)
    for path in (store.piece_path("gradient", 0), store.images_path, store.manifest_path):
        whole = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(AfmiError, match=f"{path.name}' is|no {path.name}"):
            Results.open(tmp_path).read("Gradient")
        path.unlink()
        path.write_bytes(whole)
    store.manifest_path.unlink()
    os.mkfifo(store.manifest_path)
    with pytest.raises(AfmiError, match="it is no file"):
        opened(tmp_path)


def test_another_run(tmp_path: Path) -> None:
    opened(tmp_path)
    opened(tmp_path, data={"name": "moved", "images": 2})
    with pytest.raises(UsageError, match="data: images was 2, now 3") as caught:
        opened(tmp_path, data={"name": "here", "images": 3})
    assert "--out" in str(caught.value)
    with pytest.raises(UsageError, match="seed was not there, now 1"):
        opened(tmp_path, seed=1)


def test_methods_are_entered_once(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add_method("Gradient", entry("Gradient"))
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    store.add_method("Gradient", entry("Gradient"))
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before
    store.add_method("Gradient", entry("Gradient", refused="no rule"))
    assert store.manifest()["methods"]["Gradient"]["refused"] == "no rule"
    with pytest.raises(UsageError, match=r"of Gradient with .* \(images_per_piece was 2, now 4\)"):
        store.add_method("Gradient", entry("Gradient", images_per_piece=4))
    with pytest.raises(UsageError, match=r"\(parameters: samples was 3, now 9\); choose another"):
        store.add_method("Gradient", entry("Gradient", parameters={"samples": 9}))


@pytest.mark.parametrize(
    "label",
    [
        "Grad-CAM (layer=a/b)",
        "Grad-CAM (layer=../../x)",
        "A-FMI (reference=image 猫.png)",
        "x" * 300,
    ],
)
def test_pieces_of_odd_labels(tmp_path: Path, label: str) -> None:
    store = opened(tmp_path / "out")
    store.add_method(label, entry(label))
    store.write_piece(label, entry(label), 0, ROWS, {0: {"map": Image.new("L", (2, 2))}})
    assert store.has_piece(label, entry(label), 0) and not store.has_piece(label, entry(label), 2)
    results = Results.open(tmp_path / "out")
    assert results.methods == (label,)
    assert results.values(label)["cost/seconds"][0] == 0.5
    assert results.errors(label) == {1: "cannot be read"}
    assert results.example(0, label, "map").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_piece_without_rows(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write_piece("Gradient", entry("Gradient"), 0, [], {})
    assert store.has_piece("Gradient", entry("Gradient"), 0)
    path = tmp_path / "pieces" / "gradient" / "00000000.parquet"
    assert store.read_piece(path, "Gradient", entry("Gradient")).num_rows == 0


@pytest.mark.parametrize("keep", [0, 3, 4, 7, -1, -5])
def test_a_piece_that_was_cut_off_counts_as_missing(tmp_path: Path, keep: int) -> None:
    store = opened(tmp_path)
    store.write_piece("Gradient", entry("Gradient"), 0, ROWS, {})
    assert store.has_piece("Gradient", entry("Gradient"), 0)
    path = tmp_path / "pieces" / "gradient" / "00000000.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert not store.has_piece("Gradient", entry("Gradient"), 0)
    path.write_bytes(bytes(1000))  # as file systems leave what never reached the disk
    assert not store.has_piece("Gradient", entry("Gradient"), 0)


def with_pieces(folder: Path, **run: Any) -> ResultsFolder:
    """Return a folder with a piece each of Gradient and Random, whose numbers differ."""
    store = opened(folder, **run)
    for number, label in enumerate(("Gradient", "Random")):
        store.add_method(label, entry(label))
        rows: list[Row] = [(image, "m/x", number + image / 7, None) for image in range(2)]
        rows.append((1, "m/error", float("nan"), "ValueError: no"))
        store.write_piece(label, entry(label), 0, rows, {})
    return store


@pytest.mark.parametrize("name", ["pieces/gradient/00000000.parquet", "images.parquet"])
def test_no_bit_of_a_table_changes_unnoticed(tmp_path: Path, name: str) -> None:
    with_pieces(tmp_path)
    path = tmp_path / name
    whole, before = path.read_bytes(), state(tmp_path)
    errors = []
    for bit in random.Random(0).sample(range(8 * len(whole)), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert state(tmp_path) == before, f"bit {bit} gives other numbers"
        except AfmiError as error:
            errors.append(str(error))
    # The rest changes no number: the name of the writer, for one.
    assert len(errors) > 60
    assert all(path.name in error and "\n" not in error for error in errors)


def state(folder: Path) -> str:
    results = Results.open(folder)
    return repr((results.images, [results.read(label) for label in results.methods]))


def test_a_piece_of_something_else_is_refused(tmp_path: Path) -> None:
    store = with_pieces(tmp_path / "here")
    of = {label: store.piece_path(label.lower(), 0) for label in ("Gradient", "Random")}
    whole = of["Gradient"].read_bytes()

    def of_another(**run: Any) -> bytes:
        folder = tmp_path / f"other {run}"
        return with_pieces(folder, **run).piece_path("gradient", 0).read_bytes()

    other_images = ResultsFolder.begin(
        tmp_path / "images", RUN, (("c.png", "b.png"), (0, 1)), ABOUT
    )
    other_images.add_method("Gradient", entry("Gradient"))
    other_images.write_piece("Gradient", entry("Gradient"), 0, ROWS, {})
    other_settings = opened(tmp_path / "settings")
    changed = entry("Gradient", parameters={"samples": 4})
    other_settings.write_piece("Gradient", changed, 0, ROWS, {})
    for data, words in (
        (of["Random"].read_bytes(), "it is of method 'Random', not 'Gradient'"),
        (of_another(seed=2), "it is of another run"),
        (other_images.piece_path("gradient", 0).read_bytes(), "it is of other pictures"),
        (other_settings.piece_path("gradient", 0).read_bytes(), "'samples': 4"),
        (store.images_path.read_bytes(), "no column|it is of table 'images', not 'piece'"),
    ):
        of["Gradient"].write_bytes(data)
        with pytest.raises(AfmiError, match=words) as caught:
            Results.open(tmp_path / "here").read("Gradient")
        assert "gradient/00000000.parquet" in str(caught.value).replace(os.sep, "/")
        with pytest.raises(AfmiError, match="belongs elsewhere"):  # when the run resumes
            store.has_piece("Gradient", entry("Gradient"), 0)
        assert Results.open(tmp_path / "here").values("Random")["m/x"][0] == 1
    of["Gradient"].write_bytes(whole)
    store.piece_path("gradient", 1).write_bytes(whole)
    with pytest.raises(AfmiError, match="it is of first 0, not 1"):
        Results.open(tmp_path / "here").read("Gradient")


def test_pieces_of_the_same_run_elsewhere_are_taken(tmp_path: Path) -> None:
    """Only the data's name, a path often, and rounding in what the network computes differ."""
    elsewhere = {
        "data": {"name": "there", "images": 2},
        "model": {"name": "tiny", "outputs": {"tolerance": 1e-3, "numbers": [1.0, -2.0]}},
    }
    here = {"model": {"name": "tiny", "outputs": {"tolerance": 1e-3, "numbers": [1.001, -2.0]}}}
    piece = with_pieces(tmp_path / "there", **elsewhere).piece_path("gradient", 0)
    store = with_pieces(tmp_path / "here", **here)
    store.piece_path("gradient", 0).write_bytes(piece.read_bytes())
    assert store.has_piece("Gradient", entry("Gradient"), 0)
    assert Results.open(tmp_path / "here").values("Gradient")["m/x"][0] == 0


def test_pictures_of_another_run_are_replaced_or_named(tmp_path: Path) -> None:
    store, other = with_pieces(tmp_path / "here"), with_pieces(tmp_path / "there", seed=1)
    store.images_path.write_bytes(other.images_path.read_bytes())
    with pytest.raises(
        AfmiError, match=r"images\.parquet' belongs elsewhere: it is of another run"
    ):
        Results.open(tmp_path / "here")
    opened(tmp_path / "here")
    assert Results.open(tmp_path / "here").images.keys == ("a.png", "b.png")


@pytest.mark.parametrize("consistent", [False, True])
def test_a_hostile_manifest_raises_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consistent: bool
) -> None:
    """Each part in turn becomes something of another kind, or goes missing."""
    if consistent:  # as if the tables had been forged along with it
        monkeypatch.setattr(folder_module, "run_digest", lambda _: "the same")
    with_pieces(
        tmp_path,
        metrics={"insertion": {"class": "Insertion"}},
        model={"name": "tiny", "labels": ["cat", "dog"]},
    )
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_bytes())
    facts = json.loads(json.dumps(Insertion(fractions=(0.1, 1)).facts().as_dict()))
    del facts["columns"][2:-1]
    manifest |= {"metrics": {"insertion": facts}, "machine": {"python": "3.11"}}
    errors = []
    for changed in random.Random(0).sample(list(hostile(manifest)), 60):
        path.write_text(json.dumps(changed))
        try:
            results = Results.open(tmp_path)
            for label in results.methods:
                results.read(label)
            write_report(tmp_path, tmp_path / "report")
        except AfmiError as error:
            errors.append(str(error))
    assert len(errors) > 30 and not any("\n" in error for error in errors)


def hostile(value: Any) -> Iterator[Any]:
    """Yield a value with each of its parts replaced or missing."""
    yield from (None, [], {}, 7, -1e300, "../x", [[]], {"x": None}, True)
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in list(parts):
        copied = value.copy()
        del copied[key]
        yield copied
        for changed in hostile(part):
            copied = value.copy()
            copied[key] = changed
            yield copied


def test_examples_are_there_before_their_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    names: list[str] = []
    replace = os.replace

    def noting(source: Any, target: Any) -> None:
        names.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(afmi.files.os, "replace", noting)
    picture = Image.new("RGB", (2, 2))
    store.write_piece(
        "Gradient", entry("Gradient"), 0, ROWS, {0: {"picture": picture, "map": picture}}
    )
    assert names == ["00000000-picture.png", "00000000-gradient-map.png", "00000000.parquet"]


def test_methods_entered_at_once_are_all_there(tmp_path: Path) -> None:
    labels = [[f"Method {i} {j}" for j in range(8)] for i in range(4)]

    def enter(names: list[str]) -> None:
        store = opened(tmp_path / "out")
        for label in names:
            store.add_method(label, entry(label))

    threads = [threading.Thread(target=enter, args=(names,)) for names in labels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    record = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert set(record["methods"]) == {label for names in labels for label in names}
    assert record["run"] == RUN and record["command"] == "afmi evaluate"
    assert files(tmp_path / "out") == [".afmi.lock", "images.parquet", "manifest.json"]


def test_a_lock_that_is_held_delays_others(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    lock = FileLock(tmp_path / ".afmi.lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    began = time.monotonic()
    timer.start()
    folder.add_method("Gradient", entry("Gradient"))
    assert time.monotonic() - began >= 0.4


def test_a_system_without_locks_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (OSError(95, "not supported"), NotImplementedError(), Timeout("a file")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(FileLock, "acquire", fail)
        opened(tmp_path).add_method("Gradient", entry("Gradient"))
    assert list(opened(tmp_path).manifest()["methods"]) == ["Gradient"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    child = os.fork()
    if child == 0:
        FileLock(tmp_path / ".afmi.lock").acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    folder.add_method("Gradient", entry("Gradient"))
    assert time.monotonic() - began < 10
