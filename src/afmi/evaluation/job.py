"""What workers do for an evaluation: measure one method on a few pictures at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from afmi.data.labelled import LabelledImages
from afmi.data.witness import Witness
from afmi.engines.job import Job
from afmi.engines.workers import Shared
from afmi.errors import AfmiError, LayerError, OperationError
from afmi.evaluation.asked import Asked
from afmi.evaluation.folder import ERROR
from afmi.evaluation.shard import Shard, ShardResult, evaluate_shard
from afmi.methods import Method
from afmi.metrics import Metric
from afmi.network.classifier import device_of
from afmi.network.devices import check_device
from afmi.network.fingerprint import fingerprint_of

__all__ = ["EvaluationJob", "PieceTask", "Refusal", "check_worker", "middle_of"]


@dataclass(frozen=True)
class PieceTask:
    """A piece, or a part of one whose worker died.

    Attributes:
        label: the method's.
        start: the first picture.
        stop: the one after the last.
        supported: see `Shard`.
        examples: pictures in it to draw.
        window: of a stream the piece's pictures; None: the job's.
        first: number of the first picture there.
    """

    label: str
    start: int
    stop: int
    supported: bool
    examples: frozenset[int] = frozenset()
    window: Shared | None = None
    first: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot be used on the network at all."""

    reason: str


@dataclass(frozen=True)
class EvaluationJob(Job[PieceTask, "ShardResult | Refusal"]):
    """The methods, metrics and pictures of an evaluation.

    Attributes:
        methods: by their labels; their model is the network.
        metrics: see `Shard`.
        model: the network.
        images: all pictures; None where they come with the tasks.
        asked: what is explained of each picture.
        batch_size: pictures that are explained at once.
        fingerprint: of the network.
        witness: knows the data; None where they come with the tasks.
    """

    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    model: nn.Module
    images: LabelledImages | None
    asked: Asked
    batch_size: int
    fingerprint: str
    witness: Witness | None

    def network(self) -> nn.Module:
        return self.model

    def begin(self) -> None:
        check_worker(self.model, self.fingerprint, self.images, self.witness)

    def run(self, task: PieceTask) -> ShardResult | Refusal:
        images = self.images
        if task.window is not None:
            images = replace(task.window.get(), model=self.model)
        assert images is not None
        shard = Shard(
            *(self.methods[task.label], self.metrics, images),
            *(task.start - task.first, task.stop - task.first, self.batch_size),
            examples=frozenset(number - task.first for number in task.examples),
            supported=task.supported,
            asked=self.asked,
            witness=self.witness,
        )
        try:
            return evaluate_shard(shard).shifted(task.first)
        except (LayerError, OperationError) as error:
            return Refusal(str(error))

    def parts(self, task: PieceTask) -> Sequence[PieceTask]:
        if task.stop - task.start < 2:
            return ()
        middle = middle_of(task.start, task.stop, self.batch_size)
        # What fails on all pictures of a part may work on those of another.
        return replace(task, stop=middle, supported=True), replace(
            task, start=middle, supported=True
        )

    def joined(self, task: PieceTask, results: Sequence[Any]) -> ShardResult:
        return ShardResult(
            rows=[row for result in results for row in result.rows],
            pictures={n: kinds for result in results for n, kinds in result.pictures.items()},
            explained=sum(result.explained for result in results),
            failures={n: why for result in results for n, why in result.failures.items()},
        )

    def lost(self, task: PieceTask, reason: str) -> ShardResult:
        return ShardResult(
            rows=[(task.start, ERROR, float("nan"), reason)], failures={task.start: reason}
        )


def check_worker(
    model: nn.Module, fingerprint: str, images: LabelledImages | None, witness: Witness | None
) -> None:
    """See that a worker has the network that was sent, and reads the data that were listed.

    Args:
        model: the network that it built.
        fingerprint: of the one that was sent.
        images: the data; None: they come with the tasks.
        witness: knows them.

    Raises:
        AfmiError: when it has another network.
        SourceError: when it reads other data, or none.
        DeviceError: when the network's device works no longer.
    """
    try:
        _check_worker(model, fingerprint, images, witness)
    except Exception as error:
        check_device(device_of(model), "a worker began", error)
        raise


def _check_worker(
    model: nn.Module, fingerprint: str, images: LabelledImages | None, witness: Witness | None
) -> None:
    here = fingerprint_of(model)
    if here != fingerprint:
        raise AfmiError(
            f"a worker built another network ({here[:8]}) than it was sent ({fingerprint[:8]}); a "
            "network that draws its weights when it is unpickled cannot be sent: evaluate in one "
            "process"
        )
    if images is not None and witness is not None:
        witness.check(images)


def middle_of(start: int, stop: int, batch_size: int) -> int:
    """Return where pictures from ``start`` to ``stop``, two at least, are parted in two.

    Whole batches stay together, so that their numbers are those of an undisturbed run.
    """
    size = batch_size if stop - start > batch_size else 1
    return start + -(-(stop - start) // size) // 2 * size
