"""Evaluations on other engines: the same bytes, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import afmi.evaluation.plan as plan_module
from afmi import Classifier, engines
from afmi.engines.workers import WorkerWarning
from afmi.errors import DeviceError, UsageError
from afmi.evaluation import Results, evaluate, failures

OPTIONS: dict[str, Any] = {
    "methods": "a-fmi,gradient,cam,random",
    "metrics": "insertion,completeness",
    "batch_size": 2,
}
DEADLY = (7 / 255, 1.0, 7 / 255)
"""Colour of a first pixel."""


class Deadly(nn.Module):
    """Kills its process at an image of a certain first pixel: once, or each time."""

    def __init__(self, mark: Path | None) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, images: Tensor) -> Tensor:
        if _is_deadly(images) and self._first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        return images

    def _first_time(self) -> bool:
        if self.mark is None:
            return True
        new = not self.mark.exists()
        self.mark.touch()
        return new


class Asserting(nn.Module):
    """Fails at an image of that first pixel, and leaves its process's device dead, as a GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def forward(self, images: Tensor) -> Tensor:
        if os.getpid() != self.home and _is_deadly(images):
            failures.check_device = _dead
            raise RuntimeError("device-side assert triggered")
        return images


def _is_deadly(images: Tensor) -> bool:
    first = images.detach()[:, :, 0, 0]
    colour = torch.tensor(DEADLY, dtype=first.dtype, device=first.device)
    return bool(((first - colour).abs() < 1e-4).all(1).any())


def _dead(device: torch.device, doing: str, error: Exception) -> None:
    raise DeviceError(f"{device} works no longer since {doing}")


def network(before: nn.Module | None = None) -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        *(before or nn.Identity(), nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 2)),
    )
    return Classifier(body, labels=["cat", "dog"], resize=16, crop=16, name="tiny").eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of each of two classes, of which one is damaged."""
    drawn = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(7):
            pixels = drawn.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 4)


def poison(photos: Path) -> None:
    path = photos / "cat" / "4.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = [round(255 * value) for value in DEADLY]
    Image.fromarray(pixels).save(path)


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all results but the manifest, which names time and machine."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".png")
    }


@pytest.fixture
def expected(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    refused: list[str] = []
    evaluate(
        network(),
        photos,
        tmp_path / "one",
        **OPTIONS,
        on_refusal=lambda *told: refused.extend(told),
    )
    assert refused[0] == "CAM"
    return files(tmp_path / "one")


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("name", ["local", "ray"])
def test_the_same_bytes_on_every_engine(
    name: str,
    photos: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    request: pytest.FixtureRequest,
) -> None:
    engine: engines.Engine = engines.Local(workers=2)
    if name == "ray":
        ray = pytest.importorskip("ray", reason="needs the extra ray")
        # One cluster for both runs, which is left as it is; test_processes.py has one end its own.
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        request.addfinalizer(ray.shutdown)
        engine = engines.Ray(workers=2)
    refused: list[str] = []
    results = evaluate(
        *(network(), photos, tmp_path / "two"),
        **OPTIONS,
        engine=engine,
        on_refusal=lambda *told: refused.extend(told),
    )
    assert files(tmp_path / "two") == expected and len(expected) > 12
    assert refused[0] == "CAM" and results.methods == ("A-FMI", "Gradient", "Random")
    assert list(results.errors("A-FMI")) == [8]
    # One engine resumes what the other began.
    one = tmp_path / "one"
    (first,) = (one / "pieces" / "a-fmi").glob("00000000.parquet")
    first.unlink()
    begun: list[Any] = []
    evaluate(
        *(network(), photos, one),
        **OPTIONS,
        engine=engine,
        on_begin=lambda piece, *_: begun.append((piece.label, piece.start)),
    )
    # What was refused may work with another version, and is tried again.
    assert sorted(begun) == [("A-FMI", 0), ("CAM", 0)] and files(one) == expected


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_killed_in_a_piece_costs_nothing(photos: Path, tmp_path: Path) -> None:
    poison(photos)
    mark = tmp_path / "mark"
    mark.touch()  # here nothing is killed
    evaluate(network(Deadly(mark)), photos, tmp_path / "one", **OPTIONS)
    mark.unlink()
    with pytest.warns(WorkerWarning, match="SIGKILL"):
        evaluate(
            *(network(Deadly(mark)), photos, tmp_path / "two"),
            **OPTIONS,
            engine=engines.Local(workers=2),
        )
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize(
    ("before", "cause"),
    [
        (Deadly(None), "SIGKILL"),
        (Asserting(), "cpu works no longer since Gradient was given"),
    ],
    ids=["killed", "device"],
)
def test_an_image_that_costs_its_workers_is_a_row_that_says_so(
    before: nn.Module,
    cause: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 2)
    options = {**OPTIONS, "methods": "gradient"}
    evaluate(network(), photos, tmp_path / "one", **options)
    poison(photos)
    with pytest.warns(WorkerWarning, match=cause):
        results = evaluate(
            *(network(before), photos, tmp_path / "two"),
            **options,
            engine=engines.Local(workers=2, retries=0),
        )
    errors = results.errors("Gradient")
    assert list(errors) == [4, 8] and errors[4] == "its worker died, once"
    whole, split = (Results.open(tmp_path / name).values("Gradient") for name in ("one", "two"))
    others = [n for n in range(14) if n not in (4, 5)]
    for name, values in whole.items():
        np.testing.assert_array_equal(split[name][others], values[others])
        np.testing.assert_allclose(split[name][5], values[5], rtol=1e-5)  # was in its batch


@pytest.mark.usefixtures("quick_workers")
def test_a_stream_gives_the_same_bytes_with_two_workers(tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(3, 16, 16, generator=drawn), n % 2) for n in range(14)]
    options = {**OPTIONS, "methods": "a-fmi,random"}
    evaluate(network(), iter(pairs), tmp_path / "one", **options)
    engine = engines.Local(workers=2)
    evaluate(network(), iter(pairs), tmp_path / "two", **options, engine=engine)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_what_decides_the_last_digits_is_part_of_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "methods": "random", "limit": 2}
    evaluate(network(), photos, tmp_path / "out", **options)
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads + 1)
        with pytest.raises(UsageError, match=f"threads was {threads}, now {threads + 1}"):
            evaluate(network(), photos, tmp_path / "out", **options)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
        with pytest.raises(UsageError, match="float32 products was highest, now medium"):
            evaluate(network(), photos, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="dtype was float32, now float64"):
        evaluate(network().double(), photos, tmp_path / "out", **options)


_DRIVER = """
import sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads({threads})
import afmi.evaluation.plan as plan_module
plan_module._LARGEST_PIECE = 4
from test_engines import OPTIONS, network
from afmi import engines
from afmi.evaluation import evaluate
evaluate(network(), {photos!r}, {out!r}, **OPTIONS, engine=engines.Local(workers=2))
"""


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_ends_is_resumed(
    sign: signal.Signals, photos: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "two"
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    threads = torch.get_num_threads()
    code = _DRIVER.format(tests=tests, threads=threads, photos=str(photos), out=str(out))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    while not list(out.rglob("pieces/*/*.parquet")) and driver.poll() is None:
        time.sleep(0.02)
    # Ctrl-C in a terminal reaches the workers, too.
    os.killpg(driver.pid, sign) if sign is signal.SIGINT else driver.kill()
    driver.wait(timeout=60)
    assert driver.stderr is not None and driver.returncode != 0, driver.stderr.read()
    driver.stderr.close()
    evaluate(network(), photos, out, **OPTIONS, engine=engines.Local(workers=2))
    assert files(out) == expected
