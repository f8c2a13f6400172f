"""What workers do for a data set: explain a range of its images."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from afmi.batching import Item, attributed_batch
from afmi.data.labelled import LabelledImages
from afmi.data.listing import Files
from afmi.datasets.columns import Layout, Row, table_of
from afmi.engines.job import Job
from afmi.engines.workers import Shared
from afmi.errors import SourceError, one_line
from afmi.evaluation.job import check_network, middle_of
from afmi.evaluation.shard import check_device, halved
from afmi.explanation import Explanation
from afmi.methods import Attribution, Method
from afmi.metrics.base import blank_maps_allowed
from afmi.network.memory import is_out_of_memory
from afmi.pictures.batches import neighbours
from afmi.targets import OneTarget

__all__ = ["DatasetJob", "Outcome", "Range", "explained_images"]


@dataclass(frozen=True)
class Range:
    """A piece of the data, or a part of one whose worker died.

    Attributes:
        start: the first image.
        stop: the one after the last.
        window: of a stream the images; None: the job's.
        first: number of the first image there.
    """

    start: int
    stop: int
    window: Shared | None = None
    first: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a range.

    Attributes:
        table: a row for each image.
        pictures: overlays as PNG files by the images' numbers.
    """

    table: pa.Table
    pictures: dict[int, bytes]


@dataclass(frozen=True)
class DatasetJob(Job[Range, Outcome]):
    """The method and the images.

    Attributes:
        method: explains.
        target: what is explained; None: the class predicted.
        images: all of them; None where they come with the tasks.
        layout: of the tables.
        batch_size: images that go through the network at once.
        pictures: whether overlays are drawn.
        fingerprint: of the network.
    """

    method: Method
    target: OneTarget | None
    images: LabelledImages | None
    layout: Layout
    batch_size: int
    pictures: bool
    fingerprint: str

    def network(self) -> nn.Module:
        return self.method.model

    def begin(self) -> None:
        check_network(self.method.model, self.fingerprint)

    def run(self, task: Range) -> Outcome:
        """Return a row for each image.

        Raises:
            SourceError: when the place that the images come from cannot be reached.
            AfmiError: when the device works no longer.
        """
        images = self.images
        if task.window is not None:
            images = replace(task.window.get(), model=self.method.model)
        assert images is not None
        rows: list[Row] = []
        pictures: dict[int, bytes] = {}
        positions = range(task.start - task.first, task.stop - task.first)
        for number, result in explained_images(
            self.method, images, positions, self.target, self.batch_size
        ):
            rows.append(self._row(images.keys[number], result))
            if self.pictures and isinstance(result, Explained):
                pictures[number + task.first] = _png(result.explanation)
        return Outcome(table_of(rows, self.layout), pictures)

    def _row(self, key: str, result: Explained | Exception) -> Row:
        if isinstance(result, Explained):
            try:
                one = result.explanation, result.attribution, result.place
                return Row.of(key, *one, self.layout)
            except ValueError as error:
                return Row.failed(key, str(error))
        return Row.failed(key, _reason(result))

    def parts(self, task: Range) -> Sequence[Range]:
        if task.stop - task.start < 2:
            return ()
        middle = middle_of(task.start, task.stop, self.batch_size)
        return replace(task, stop=middle), replace(task, start=middle)

    def joined(self, task: Range, results: Sequence[Any]) -> Outcome:
        return Outcome(
            pa.concat_tables([result.table for result in results]).combine_chunks(),
            {n: png for result in results for n, png in result.pictures.items()},
        )

    def lost(self, task: Range, reason: str) -> Outcome:
        images = self.images if task.window is None else task.window.get()
        assert images is not None
        row = Row.failed(images.keys[task.start - task.first], reason)
        return Outcome(table_of([row], self.layout), {})


@dataclass(frozen=True)
class Explained:
    """An image's explanation.

    Attributes:
        explanation: of it.
        attribution: of its batch.
        place: in the batch.
    """

    explanation: Explanation
    attribution: Attribution
    place: int


def explained_images(
    method: Method,
    images: LabelledImages,
    positions: Sequence[int],
    target: OneTarget | None,
    batch_size: int,
) -> Iterator[tuple[int, Explained | Exception]]:
    """Yield for each position in order its explanation, or the error that came of its image.

    Raises:
        SourceError: when the place that the images come from cannot be reached.
        AfmiError: when the device works no longer.
    """
    targets = None if target is None else (target,)
    items = ((n, _item(images, n, targets)) for n in positions)

    def shape(item: tuple[int, Item | Exception]) -> torch.Size | None:
        return item[1].inputs.shape if isinstance(item[1], Item) else None

    for batch in neighbours(items, batch_size, shape):
        readable = [item for _, item in batch if isinstance(item, Item)]
        results = iter(_explained(method, readable))
        for number, item in batch:
            yield number, item if isinstance(item, Exception) else next(results)


def _item(
    images: LabelledImages, number: int, targets: tuple[OneTarget, ...] | None
) -> Item | Exception:
    try:
        inputs = images.read(number)
    except SourceError:  # no image's fault: later ones could not be read, either
        raise
    except Exception as error:
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
    files = images.source
    source = str(files.root / images.keys[number]) if isinstance(files, Files) else None
    return Item(inputs, source, targets, number)


def _explained(method: Method, items: Sequence[Item]) -> list[Explained | Exception]:
    """Explain images of one shape at once, or, where that fails, one by one.

    Where memory runs out, half of them at a time.
    """
    if not items:
        return []
    size = 1
    try:
        with blank_maps_allowed():
            (attribution,), explanations = attributed_batch(method, items)
        return [Explained(one, attribution, n) for n, (one,) in enumerate(explanations)]
    except Exception as error:
        # Else the frames of the failed run would keep its tensors.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = error.__cause__ = error.__context__ = None
        check_device(items[0].inputs.device, f"{method.name} was given images", error)
        if len(items) == 1:
            return [error]
        if is_out_of_memory(error):
            size = halved(method, len(items), "images")
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [result for part in parts for result in _explained(method, part)]


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return "there is too little memory for it; scale it down, or choose a cheaper method"
    return one_line(error)


def _png(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    explanation.overlay().save(buffer, "PNG")
    return buffer.getvalue()
