"""What fails at an image, and is not its fault: memory, a device, a machine that lacks the data."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import afmi.evaluation.job as job_module
from afmi import Classifier, explain_dataset, fmi_prototypes
from afmi.data.listing import Files
from afmi.data.witness import Witness
from afmi.datasets.job import DatasetJob
from afmi.errors import DeviceError, ImageError, SourceError
from afmi.evaluation import MemoryWarning, evaluate, open_images
from afmi.evaluation.failures import read_image
from afmi.evaluation.job import EvaluationJob
from afmi.evaluation.parts import Part, PartsJob
from afmi.metrics import Insertion
from afmi.network.memory import TOO_LITTLE_MEMORY

BATCH = 3
WHITE = 9
"""The number of an image that is white."""


class Hungry(nn.Module):
    """Runs out of memory where a batch has a white image."""

    def forward(self, images: Tensor) -> Tensor:
        if bool((images.detach().flatten(1).amin(1) > 0.99).any()):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")
        return images


def network(*before: nn.Module) -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        *before,
        *(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 2)),
    )
    return Classifier(body, labels=["cat", "dog"], name="tiny").eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of each of two classes and of two sizes; the first and the sixth are damaged."""
    drawn = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for n in range(7):
            pixels = drawn.integers(0, 200, (16, 20 if n in (2, 3) else 16, 3), dtype=np.uint8)
            pixels[:] = 255 if (label, n) == ("dog", WHITE - 7) else pixels
            Image.fromarray(pixels).save(folder / f"{n}.png")
    for n in (0, 5):
        (tmp_path / "photos" / "cat" / f"{n}.png").write_bytes(b"no image")
    return tmp_path / "photos"


Run = Callable[..., dict[int, str]]


def evaluated(data: Any, out: Path, *before: nn.Module) -> dict[int, str]:
    """Return why images failed, by their numbers."""
    options = {"methods": "gradient", "metrics": "insertion", "batch_size": BATCH}
    return dict(evaluate(network(*before), data, out, **options).errors("Gradient"))


def explained(data: Any, out: Path, *before: nn.Module) -> dict[int, str]:
    made = explain_dataset(network(*before), data, out, batch_size=BATCH, method="a-fmi")
    return {made.keys.index(key): reason for key, reason in made.errors.items()}


def averaged(data: Any, out: Path, *before: nn.Module) -> dict[int, str]:
    # In float64, since sums of float32 numbers in float64 are mostly exact in any order.
    fmi_prototypes(network(*before).double(), data, out, batch_size=BATCH)
    (part,) = (out / "parts").iterdir()
    return dict(Part.from_bytes(part.read_bytes()).failures)


every_job = pytest.mark.parametrize(
    ("run", "job"),
    [(evaluated, EvaluationJob), (explained, DatasetJob), (averaged, PartsJob)],
    ids=["evaluate", "explain_dataset", "fmi_prototypes"],
)


def files(out: Path) -> dict[str, bytes]:
    """Return what was computed, which names neither time nor machine."""
    kinds = (".parquet", ".safetensors", ".png")
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.suffix in kinds and "images" not in path.name
    }


# --- splitting --------------------------------------------------------------------------------


@every_job
def test_a_task_that_is_split_gives_the_bytes_of_the_whole(
    run: Run, job: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run(photos, tmp_path / "whole")
    assert [*failed] == [0, 5]
    whole, sizes = job.run, []

    def small(self: Any, task: Any) -> Any:
        sizes.append(task.stop - task.start)
        if sizes[-1] > BATCH:
            raise MemoryError
        return whole(self, task)

    monkeypatch.setattr(job, "run", small)
    assert run(photos, tmp_path / "split") == failed
    assert sizes.count(BATCH) == 4 and sizes[-1] == 2
    assert files(tmp_path / "split") == files(tmp_path / "whole") != {}


# --- memory -----------------------------------------------------------------------------------


@every_job
def test_an_image_that_needs_too_much_memory_is_a_row_that_says_so(
    run: Run, job: Any, photos: Path, tmp_path: Path
) -> None:
    with pytest.warns(MemoryWarning, match="ran out of memory with 2 images at once"):
        failed = run(photos, tmp_path / "out", Hungry())
    assert [*failed] == [0, 5, WHITE]
    assert failed[WHITE] == TOO_LITTLE_MEMORY


class Items:
    """Tensors with labels; an error stands for one that cannot be read."""

    def __init__(self, *items: Any) -> None:
        self.items, self.lost = items, False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if self.lost:
            raise OSError(errno.ESTALE, "Stale file handle")
        if isinstance(self.items[number], Exception):
            raise self.items[number]
        return self.items[number], 0


def test_memory_that_runs_out_while_an_image_is_read_is_no_fault_of_it() -> None:
    images = open_images(Items(torch.zeros(3, 16, 16), MemoryError("of a decoder")), network())
    with pytest.raises(MemoryError):
        read_image(images, 1, Witness.of(images))


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture
def dead_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU after an assertion of its own: each later call fails."""
    zeros = torch.zeros

    def dead(*size: Any, **options: Any) -> Tensor:
        if "device" in options:
            raise RuntimeError("device-side assert triggered")
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", dead)


def test_a_device_that_is_lost_while_an_image_is_read_is_no_fault_of_it(
    photos: Path, dead_device: None
) -> None:
    images = open_images(photos, network())
    with pytest.raises(DeviceError, match=r"cpu works no longer since cat/0\.png was read \(.* no"):
        read_image(images, 0)
    assert isinstance(read_image(images, 1), Tensor)


def test_a_device_that_is_lost_while_a_metric_is_measured_is_no_fault_of_an_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    def fails(self: Insertion, case: Any) -> Any:
        request.getfixturevalue("dead_device")
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(Insertion, "measure", fails)
    with pytest.raises(DeviceError, match="no longer since Insertion was measured"):
        evaluated(photos, tmp_path / "out")
    assert not files(tmp_path / "out")


def test_a_device_that_is_lost_while_a_worker_begins_is_no_fault_of_the_network(
    photos: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    model = network()

    def fails(_: Any) -> str:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(job_module, "fingerprint_of", fails)
    with pytest.raises(RuntimeError, match="device-side assert"):  # the device works
        job_module.check_worker(model, "", None, None)
    request.getfixturevalue("dead_device")
    with pytest.raises(DeviceError, match="cpu works no longer since a worker began"):
        job_module.check_worker(model, "", None, None)


# --- machines ---------------------------------------------------------------------------------


@every_job
@pytest.mark.parametrize("copied", [False, True], ids=["missing", "another"])
def test_a_worker_that_reads_other_data_than_were_listed_does_nothing(
    run: Run,
    job: Any,
    copied: bool,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, of = tmp_path / "other", Witness.of
    (other / "cat").mkdir(parents=True)
    if copied:
        Image.new("RGB", (16, 16)).save(other / "cat" / "1.png")

    def elsewhere(images: Any) -> Witness:
        witness = of(images)
        monkeypatch.setattr(Files, "picture", lambda self, key: other / key)
        return witness

    monkeypatch.setattr(Witness, "of", elsewhere)
    said = "reads another image as" if copied else "cannot read"
    name = str(photos / "cat" / "1.png")
    with pytest.raises(SourceError, match=f"{platform.node()} {said} '{name}'.* same path"):
        run(photos, tmp_path / "out")
    assert not files(tmp_path / "out")


@every_job
def test_data_that_are_lost_meanwhile_are_no_fault_of_images(
    run: Run, job: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, gone = job.begin, tmp_path / "gone"

    def lose(self: Any) -> None:
        begin(self)
        photos.rename(gone)

    with monkeypatch.context() as patch:
        patch.setattr(job, "begin", lose)
        with pytest.raises(SourceError, match=rf"0\.png' is missing on {platform.node()}, but had"):
            run(photos, tmp_path / "out")
    assert not files(tmp_path / "out")
    gone.rename(photos)
    assert [*run(photos, tmp_path / "out")] == [0, 5]


def test_images_that_are_damaged_or_were_missing_are_to_blame(tmp_path: Path) -> None:
    good = Image.new("RGB", (16, 16))
    for name in ("a", "b", "c"):
        good.save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("image,label\na.png,0\nb.png,0\nc.png,0\nd.png,0\n")
    images = open_images(tmp_path / "list.csv", network())
    witness = Witness.of(images)
    assert witness.number == 0
    for number in (1, 3):
        assert isinstance(read_image(images, number, witness), ImageError)
    os.truncate(tmp_path / "c.png", 20)
    with pytest.raises(SourceError, match=r"c\.png' has 20 bytes on .*, but had \d+ bytes when"):
        read_image(images, 2, witness)
    (tmp_path / "d.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"d\.png' has 8 bytes on .*, but was missing when"):
        read_image(images, 3, witness)
    # Whatever a machine says: nothing more can be read there.
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match=r"cannot read '.*a\.png' .* the same command resumes"):
        read_image(images, 1, witness)


def test_a_file_of_another_size_is_not_used(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    images = open_images(tmp_path, network(), labelled=False)
    Image.new("RGB", (99, 99)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"a\.png' has \d+ bytes on .*, but had \d+ bytes when"):
        read_image(images, 0, None)


def test_files_of_a_stream_that_are_lost_end_it(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()

    def paths() -> Any:
        for n in range(4):
            Image.new("RGB", (16, 16), (n, n, n)).save(photos / f"{n}.png")
            if n == 2:
                photos.rename(tmp_path / "gone")
            yield str(photos / f"{n}.png") if n != 1 else "missing.png"

    with pytest.raises(SourceError, match=r"2\.png' does not exist.* any more the last one"):
        explain_dataset(network(), paths(), tmp_path / "out", batch_size=1, images_per_piece=1)


def test_a_data_set_is_known_by_its_pixels_unless_they_are_drawn_anew() -> None:
    data = Items(ValueError("cut off"), torch.zeros(3, 16, 16))
    images = open_images(data, network())
    witness = Witness.of(images)
    assert witness.number == 1
    witness.check(images)
    assert isinstance(read_image(images, 0, witness), ImageError)
    data.items = (data.items[0], torch.ones(3, 16, 16))
    witness.check(images)  # here the data set may have drawn it anew
    elsewhere = replace(witness, process="another")
    with pytest.warns(UserWarning, match="reads other pixels as item/1 of Items"):
        elsewhere.check(images)
    data.items = (data.items[0], torch.ones(3, 16, 17))
    with pytest.raises(SourceError, match=r"another image as item/1 of Items \(\(3, 16, 17\)"):
        elsewhere.check(images)
    data.lost = True
    with pytest.raises(SourceError, match=r"cannot read item/1 of Items .*Stale file handle"):
        read_image(images, 0, witness)

    class Drawn(Items):
        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            return torch.rand(3, 16, 16), 0

    drawn = open_images(Drawn(None), network())
    Witness.of(drawn).check(drawn)
