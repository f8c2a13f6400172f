"""The folder of an evaluation: leftovers, damage, several processes, the order of writing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock, Timeout
from PIL import Image

import afmi.files
from afmi.errors import AfmiError, UsageError
from afmi.evaluation import Results
from afmi.evaluation.folder import ResultsFolder
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
    store.write_piece("Gradient", "gradient", 0, ROWS, {})
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
    with pytest.raises(UsageError, match=r'"samples": 3.* in pieces of 2, asked for .* of 4'):
        store.add_method("Gradient", entry("Gradient", images_per_piece=4))


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
    store.write_piece(label, key_of(label), 0, ROWS, {0: {"map": Image.new("L", (2, 2))}})
    assert store.has_piece(key_of(label), 0) and not store.has_piece(key_of(label), 2)
    results = Results.open(tmp_path / "out")
    assert results.methods == (label,)
    assert results.values(label)["cost/seconds"][0] == 0.5
    assert results.errors(label) == {1: "cannot be read"}
    assert results.example(0, label, "map").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_piece_without_rows(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write_piece("Gradient", "gradient", 0, [], {})
    assert store.has_piece("gradient", 0)
    assert pq.read_table(tmp_path / "pieces" / "gradient" / "00000000.parquet").num_rows == 0


@pytest.mark.parametrize("keep", [0, 3, 4, 7, -1, -5])
def test_a_piece_that_was_cut_off_counts_as_missing(tmp_path: Path, keep: int) -> None:
    store = opened(tmp_path)
    store.write_piece("Gradient", "gradient", 0, ROWS, {})
    assert store.has_piece("gradient", 0)
    path = tmp_path / "pieces" / "gradient" / "00000000.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert not store.has_piece("gradient", 0)
    path.write_bytes(bytes(1000))  # as file systems leave what never reached the disk
    assert not store.has_piece("gradient", 0)


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
    store.write_piece("Gradient", "gradient", 0, ROWS, {0: {"picture": picture, "map": picture}})
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
