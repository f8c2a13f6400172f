"""What workers do for a data set: explain a range of its images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from afmi.batching import Item, attributed_batch
from afmi.data.labelled import LabelledImages
from afmi.data.listing import Files
from afmi.data.witness import Witness
from afmi.datasets.columns import Layout, Row, table_of
from afmi.engines.job import Job
from afmi.engines.workers import Shared
from afmi.errors import one_line
from afmi.evaluation.asked import Asked
from afmi.evaluation.failures import read_image, taken_apart
from afmi.evaluation.job import check_worker, middle_of
from afmi.explanation import Explanation
from afmi.methods import Attribution, Method
from afmi.metrics.base import blank_maps_allowed
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
        target: what is explained of each image, which may depend on its label; None: the class
            predicted.
        images: all of them; None where they come with the tasks.
        layout: of the tables.
        batch_size: images that go through the network at once.
        pictures: whether overlays are drawn.
        fingerprint: of the network.
        witness: knows the images; None where they come with the tasks.
    """

    method: Method
    target: OneTarget | Asked | None
    images: LabelledImages | None
    layout: Layout
    batch_size: int
    pictures: bool
    fingerprint: str
    witness: Witness | None

    def network(self) -> nn.Module:
        return self.method.model

    def begin(self) -> None:
        check_worker(self.method.model, self.fingerprint, self.images, self.witness)

    def run(self, task: Range) -> Outcome:
        """Return a row for each image.

        Raises:
            SourceError: when the place that the images come from cannot be reached.
            MemoryError: when there is too little memory for one of them.
            DeviceError: when the device works no longer.
        """
        images = self.images
        if task.window is not None:
            images = replace(task.window.get(), model=self.method.model)
        assert images is not None
        rows: list[Row] = []
        pictures: dict[int, bytes] = {}
        positions = range(task.start - task.first, task.stop - task.first)
        for number, result in explained_images(
            *(self.method, images, positions, self.target, self.batch_size, self.witness),
            classes=self.layout.classes,
        ):
            rows.append(self._row(images.keys[number], result))
            if self.pictures and isinstance(result, Explained):
                pictures[number + task.first] = _png(result.explanation)
        return Outcome(table_of(rows, self.layout), pictures)

    def _row(self, key: str, result: Explained | Exception) -> Row:
        if isinstance(result, Explained):
            try:
                one = result.explanation, result.attributions, result.place
                return Row.of(key, *one, self.layout)
            except ValueError as error:
                return Row.failed(key, str(error))
        return Row.failed(key, one_line(result))

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
        attributions: of its batch; the first of what is explained, the others of further classes.
        place: in the batch.
    """

    explanation: Explanation
    attributions: Sequence[Attribution]
    place: int


def explained_images(
    method: Method,
    images: LabelledImages,
    positions: Sequence[int],
    target: OneTarget | Asked | None,
    batch_size: int,
    witness: Witness | None = None,
    *,
    classes: Sequence[int] = (),
) -> Iterator[tuple[int, Explained | Exception]]:
    """Yield for each position in order its explanation, or the error that came of its image.

    Args:
        method: explains.
        images: the data.
        positions: of the images in them.
        target: what is explained of each; None: the class predicted.
        batch_size: images that go through the network at once.
        witness: says whether an image that cannot be read is to blame; None: it always is.
        classes: further ones that are attributed besides.

    Raises:
        SourceError: when the place that the images come from cannot be reached.
        MemoryError: when there is too little memory for one of them.
        DeviceError: when the device works no longer.
    """
    items = ((n, _item(images, n, target, classes, witness)) for n in positions)

    def shape(item: tuple[int, Item | Exception]) -> torch.Size | None:
        return item[1].inputs.shape if isinstance(item[1], Item) else None

    for batch in neighbours(items, batch_size, shape):
        readable = [item for _, item in batch if isinstance(item, Item)]
        results = iter(_explained(method, images, readable))
        for number, item in batch:
            yield number, item if isinstance(item, Exception) else next(results)


def _item(
    images: LabelledImages,
    number: int,
    target: OneTarget | Asked | None,
    classes: Sequence[int],
    witness: Witness | None,
) -> Item | Exception:
    inputs = read_image(images, number, witness)
    if isinstance(inputs, Exception):
        return inputs
    own = target.one(images.labels[number]) if isinstance(target, Asked) else target
    targets = None if own is None else (own, *classes)
    files = images.source
    source = str(files.root / images.keys[number]) if isinstance(files, Files) else None
    return Item(inputs, source, targets, number)


def _explained(
    method: Method, images: LabelledImages, items: Sequence[Item]
) -> list[Explained | Exception]:
    """Explain images of one shape."""
    if not items:
        return []

    def explain(some: Sequence[Item]) -> list[Explained]:
        with blank_maps_allowed():
            attributions, explanations = attributed_batch(method, some)
        return [Explained(each[0], attributions, n) for n, each in enumerate(explanations)]

    device = items[0].inputs.device
    return taken_apart(explain, items, device, method, lambda item: images.keys[item.index])


def _png(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    explanation.overlay().save(buffer, "PNG")
    return buffer.getvalue()
