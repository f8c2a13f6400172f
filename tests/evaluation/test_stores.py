"""Results in stores: the same files as in a folder, resumed and refused as there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import nn

from afmi.errors import SourceError, UsageError
from afmi.evaluation import Results, evaluate
from afmi.files import location, write_files
from afmi.report import write_report

MEMORY = type(fsspec.filesystem("memory"))


def network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def pictures() -> list[tuple[torch.Tensor, int]]:
    images = torch.rand(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [(image, number % 2) for number, image in enumerate(images)]


def run(out: Any, data: Any = None, methods: str = "gradient,random", **options: Any) -> Results:
    data = pictures() if data is None else data
    return evaluate(network(), data, out, methods=methods, metrics="insertion", **options)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"results-{request.node.name.replace('[', '-').rstrip(']')}"
    yield f"memory://{name}"
    files = fsspec.filesystem("memory")
    if files.exists(name):
        files.rm(name, recursive=True)


def names(out: str) -> list[str]:
    files, path = fsspec.core.url_to_fs(out)
    return sorted(name.split(path.strip("/") + "/", 1)[1] for name in files.find(path))


def test_a_store_holds_what_a_folder_holds(url: str, tmp_path: Path) -> None:
    there, here = run(url), run(tmp_path / "out")
    local = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert set(names(url)) == local - {".afmi.lock"}
    for label in here.methods:
        expected = here.values(label)
        for name, values in there.values(label).items():
            assert values.tobytes() == expected[name].tobytes(), name
    report = write_report(url)
    assert str(report["page"]) == f"{url}/report.html"
    assert report["page"].read_bytes().startswith(b"<!")
    beside = write_report(url, tmp_path / "report")["table1"]
    assert beside.read_bytes() == report["table1"].read_bytes()


def test_a_run_resumes_with_one_listing_a_method(url: str, monkeypatch: Any) -> None:
    run(url)
    begun: list[str] = []
    gone = location(url) / "pieces" / "gradient" / "00000064.parquet"
    gone.unlink()
    listed: list[str] = []
    ls = MEMORY.ls

    def noting(self: Any, path: str, *args: Any, **options: Any) -> Any:
        listed.append(path)
        return ls(self, path, *args, **options)

    monkeypatch.setattr(MEMORY, "ls", noting)
    run(url, on_begin=lambda piece, done, total: begun.append(f"{piece.label} {piece.start}"))
    assert begun == ["Gradient 64"]
    assert gone.is_file()
    assert sum(path.endswith("pieces/random") for path in listed) <= 4


def test_another_run_or_other_objects_are_refused(url: str) -> None:
    run(url, methods="random")
    with pytest.raises(UsageError, match="results of another run"):
        run(url, pictures()[:6], methods="random")
    write_files({location(f"{url}/else") / "mine.txt": b"mine"})
    with pytest.raises(UsageError, match="holds other files"):
        run(f"{url}/else")
    with pytest.raises(UsageError, match="no folder is called"):
        Results.open(f"{url}/nothing")


def test_an_unreachable_store_is_not_an_empty_one(url: str, monkeypatch: Any) -> None:
    run(url, methods="random")

    def unreachable(*_: Any, **__: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(MEMORY, "info", unreachable)
    with pytest.raises(SourceError, match=r"cannot be reached.*no answer.*resumes"):
        run(url, methods="random")


def test_a_url_of_files_is_a_folder(tmp_path: Path) -> None:
    assert location(tmp_path.as_uri()) == tmp_path


@pytest.fixture
def bucket(monkeypatch: Any) -> Iterator[str]:
    """A bucket of a server that speaks S3."""
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(package, reason="needs s3fs and moto[server]; pip install them")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
            yield "s3://bucket/results"
        finally:
            server.kill()


def test_results_on_a_server_of_s3(bucket: str) -> None:
    run(bucket, methods="random")
    begun: list[str] = []
    run(bucket, on_begin=lambda piece, done, total: begun.append(piece.label))
    assert set(begun) == {"Gradient"}
    assert str(write_report(bucket)["page"]) == f"{bucket}/report.html"
    with pytest.raises(UsageError, match="results of another run"):
        run(bucket, pictures()[:6], methods="random")
    with pytest.raises(SourceError, match="cannot be"):
        run("s3://nowhere/results", methods="random")
