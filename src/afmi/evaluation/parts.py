"""Compute something of every picture in parts, each a file as soon as it is done, on any engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from afmi.data.labelled import LabelledImages
from afmi.data.witness import Witness
from afmi.engines import Engine
from afmi.engines.job import Job
from afmi.errors import LayerError, OperationError, one_line
from afmi.evaluation.failures import read_image, taken_apart
from afmi.evaluation.job import check_worker
from afmi.files import Location, as_json, parse_json, write_files
from afmi.methods import Method
from afmi.pictures.batches import neighbours
from afmi.progress import report

__all__ = ["PART", "Part", "PartsJob", "Span", "all_parts"]

PART = 512
"""Pictures of a part."""

_KEY = "afmi part"
_ABOUT_ALL = (LayerError, OperationError)
"""Errors that are no picture's fault."""


@dataclass(frozen=True)
class Span:
    """The pictures of a part, or of a piece of one whose worker died.

    Attributes:
        start: the first picture.
        stop: the one after the last.
        whole: whether it is a part, whose rows are reduced; those of pieces are handed back, since
            sums of sums would round otherwise than the sum of all rows.
    """

    start: int
    stop: int
    whole: bool = True


@dataclass(frozen=True)
class Part:
    """What was computed of the pictures from one number to another.

    Attributes:
        tensors: on the CPU.
        failures: why a picture is not in it, by its number.
    """

    tensors: Mapping[str, Tensor]
    failures: Mapping[int, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return it as a .safetensors file: the same bytes for the same part."""
        failures = {str(number): self.failures[number] for number in sorted(self.failures)}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return safetensors.torch.save(tensors, {_KEY: as_json(failures)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Part:
        """Return what `to_bytes` gave."""
        length = int.from_bytes(data[:8], "little")
        about = parse_json(data[8 : 8 + length])["__metadata__"]
        failures = {int(number): why for number, why in parse_json(about[_KEY]).items()}
        return cls(safetensors.torch.load(data), failures)


@dataclass(frozen=True)
class PartsJob(Job[Span, bytes]):
    """Computes a part of the pictures at a time: a subclass says what.

    A picture that cannot be read, or that the method fails on, is left out, and the part says why.

    Attributes:
        method: its model is the network.
        images: all pictures.
        batch_size: pictures that go through the network at once.
        fingerprint: of the network.
        witness: knows the pictures.
    """

    method: Method
    images: LabelledImages
    batch_size: int
    fingerprint: str
    witness: Witness

    @abstractmethod
    def measure(self, numbers: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what is computed of a batch, a row for each picture, on the CPU.

        Args:
            numbers: of the pictures in the data, int64 (N,) on the CPU.
            inputs: the pictures (N, C, *spatial).
            labels: their classes, int64 (N,), on the device of the pictures.
        """

    @abstractmethod
    def reduce(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of these rows of pictures; without pictures there are no names."""

    def network(self) -> nn.Module:
        return self.method.model

    def begin(self) -> None:
        check_worker(self.method.model, self.fingerprint, self.images, self.witness)

    def run(self, task: Span) -> bytes:
        failures: dict[int, str] = {}
        rows: list[dict[str, Tensor]] = []
        for batch in neighbours(
            self._read(task, failures), self.batch_size, lambda p: None if p is None else p[1].shape
        ):
            readable = [picture for picture in batch if picture is not None]
            rows += self._measured(readable, failures) if readable else []
        return self._part(task, rows, failures)

    def parts(self, task: Span) -> Sequence[Span]:
        # Whole batches stay together, so that their numbers are those of an undisturbed run.
        start, stop = task.start, task.stop
        size = self.batch_size if stop - start > self.batch_size else 1
        if stop - start < 2:
            return ()
        return [
            Span(first, min(first + size, stop), whole=False) for first in range(start, stop, size)
        ]

    def joined(self, task: Span, results: Sequence[bytes]) -> bytes:
        parts = [Part.from_bytes(result) for result in results]
        failures = {number: why for part in parts for number, why in part.failures.items()}
        return self._part(task, [part.tensors for part in parts if part.tensors], failures)

    def lost(self, task: Span, reason: str) -> bytes:
        return self._part(task, [], {task.start: reason})

    def _part(
        self, task: Span, rows: Sequence[Mapping[str, Tensor]], failures: Mapping[int, str]
    ) -> bytes:
        """Return what is kept of rows of pictures; of a piece of a part the rows themselves."""
        names = rows[0] if rows else ()
        together = {name: torch.cat([row[name] for row in rows]) for name in names}
        return Part(self.reduce(together) if task.whole else together, failures).to_bytes()

    def _read(self, task: Span, failures: dict[int, str]) -> Iterator[tuple[int, Tensor] | None]:
        """Read the pictures one by one; None stands for one that cannot be read."""
        for number in range(task.start, task.stop):
            picture = read_image(self.images, number, self.witness)
            if isinstance(picture, Exception):
                failures[number] = one_line(picture)
                yield None
            else:
                yield number, picture

    def _measured(
        self, batch: Sequence[tuple[int, Tensor]], failures: dict[int, str]
    ) -> list[dict[str, Tensor]]:
        """Return a row for each picture of a batch that the method does not fail on."""
        rows: list[dict[str, Tensor]] = []
        results = taken_apart(
            self._rows,
            batch,
            batch[0][1].device,
            self.method,
            lambda picture: self.images.keys[picture[0]],
            fatal=_ABOUT_ALL,
        )
        for (number, _), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                failures[number] = one_line(result)
            else:
                rows.append(result)
        return rows

    def _rows(self, batch: Sequence[tuple[int, Tensor]]) -> list[dict[str, Tensor]]:
        inputs = torch.cat([picture for _, picture in batch])
        numbers = [number for number, _ in batch]
        labels = [int(self.images.labels[number]) for number in numbers]
        together = self.measure(
            torch.tensor(numbers, dtype=torch.int64, device="cpu"),
            inputs,
            torch.tensor(labels, dtype=torch.int64, device=inputs.device),
        )
        return [
            {name: values[n : n + 1] for name, values in together.items()}
            for n in range(len(batch))
        ]


def all_parts(
    job: PartsJob, folder: Location, engine: Engine, device: str, description: str
) -> Iterator[Part]:
    """Compute the parts that a folder lacks, then yield all of them in order, read from it.

    What is made of them in that order is the same with each engine, and one part at a time is in
    memory, whatever the order in which workers finish.

    Args:
        job: computes a part.
        folder: where they are kept, each under the number of its first picture.
        engine: where the work is done.
        device: type of the device that it is done on.
        description: of the progress.
    """
    count = len(job.images)
    paths = {
        Span(start, min(start + PART, count)): folder / f"{start:08d}.safetensors"
        for start in range(0, count, PART)
    }
    whole = _whole(folder)
    missing = [span for span, path in paths.items() if path.name not in whole]
    done = len(paths) - len(missing)
    report(description, done, len(paths))

    def keep(span: Span, result: bytes) -> None:
        nonlocal done
        write_files({paths[span]: result})
        done += 1
        report(description, done, len(paths))

    if missing:
        with engine.pool(job, device) as pool:
            for span in missing:
                pool.submit(span)
            pool.work(keep)
    for path in paths.values():
        yield Part.from_bytes(path.read_bytes())


def _whole(folder: Location) -> set[str]:
    """Return the names of the parts that are there.

    A crash of the machine may have left a file empty or cut off; an object was put whole.
    """
    if not isinstance(folder, Path):
        return {path.name for path in folder.iterdir()}
    return {path.name for path in folder.glob("*.safetensors") if _is_whole(path)}


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
