"""Run methods x pictures x metrics: in pieces that are kept as soon as they are done."""

from __future__ import annotations

import datetime
import functools
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from afmi.data.labelled import NO_CLASS, LabelledImages, open_images
from afmi.data.streams import ImageStream, Window, open_data
from afmi.data.unlabelled import may_lack_labels
from afmi.data.witness import Witness
from afmi.engines import EngineLike, as_engine
from afmi.engines.workers import Shared, WorkerPool
from afmi.errors import UsageError
from afmi.evaluation.asked import Asked, AskedLike
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import identity_of
from afmi.evaluation.job import EvaluationJob, PieceTask, Refusal
from afmi.evaluation.meter import processor
from afmi.evaluation.plan import MethodPlan, Piece, smallest_window
from afmi.evaluation.results import Results
from afmi.evaluation.shard import ShardResult
from afmi.files import location
from afmi.methods import MethodsLike, chosen_methods
from afmi.metrics import Metric, MetricsLike
from afmi.network.classifier import device_of
from afmi.network.fingerprint import fingerprint_of
from afmi.network.wrappers import runnable
from afmi.progress import Bars, showing
from afmi.specs import key_of
from afmi.stores import RemotePath

__all__ = ["evaluate"]


def _ignore(*_: object) -> None:
    """Do nothing with what is reported."""


def evaluate(
    model: nn.Module,
    data: Any,
    out: str | os.PathLike[str] | RemotePath,
    *,
    target: AskedLike = None,
    methods: MethodsLike = "all",
    metrics: MetricsLike | None = None,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    batch_size: int = 8,
    examples: int = 6,
    engine: EngineLike = None,
    command: str | None = None,
    on_begin: Callable[[Piece, float, float], object] = _ignore,
    on_method: Callable[[str, Results], object] = _ignore,
    on_refusal: Callable[[str, str], object] = _ignore,
    progress: bool | None = None,
) -> Results:
    """Explain pictures by several methods and measure the maps.

    The score explained is that of the class that a picture is labelled with, or of another target.

    The work is cut into pieces, each one method on a few pictures, and a piece is written as soon
    as it is done. The same call on the same folder resumes, however the last one stopped, and ends
    with the numbers of an uninterrupted run. Memory does not grow with the number of pictures,
    their names apart.

    Data that only come, one picture after the other, are read once and need no length: all
    methods explain the 64 pictures that are in memory, and then the next. A call that resumes reads
    them again from the start, and compares a digest of each picture with the last call's.

    Several calls may work on one folder at once: no row is lost, but a piece that two of them
    begin is done twice (see `afmi.evaluation.folder.ResultsFolder`). Pieces that a crash of the
    machine left empty or cut off are done again; `Results.read` names those that are damaged
    otherwise.

    Args:
        model: a `Classifier`, or any ``nn.Module`` from images to logits.
        data: what `afmi.evaluation.open_images` takes, or a stream: tar files of WebDataset behind
            a URL of fsspec (``"https://host/shard-{000..010}.tar"``), an ``IterableDataset`` of
            PyTorch or of Hugging Face's ``datasets``, or any other iterable of such items.
        out: folder of the results, or its URL in a store (``"s3://bucket/results"``), where one
            call writes at a time; new, empty, or of the same run. Methods may be added to it.
        target: what is explained of every picture: a target as in `afmi.explain`, where a
            `Difference` without its first class sets the labelled class against the other; or a
            function from a picture's label to its target. None: the labelled class. Where the
            target does not depend on labels, the pictures need none.
        methods: see `chosen_methods`.
        metrics: see `chosen_metrics`; None: those that are standard, and fit the target.
        limit: evaluate this many of the pictures, the classes taken in turn; of a stream the first.
        image_key: what the picture is called in items that are mappings; see `open_images`.
        label_key: what the label is called.
        batch_size: pictures that are explained at once.
        examples: how many pictures the report shows; of a stream the first one of each class.
        engine: where the work is done: ``"local"`` (None), in this process; several processes
            (``afmi.engines.Local(workers=4)``); a cluster (``afmi.engines.Ray(workers=8)``). The
            results are the same to the bit, seconds and memory apart.
        command: what the user typed, for the report.
        on_begin: called before each piece, with the passes done and the total; infinite where the
            number of pictures is not known.
        on_method: called when the last piece of a method is done.
        on_refusal: called with a method that the network does not support, or that fails on each
            of the first 64 pictures, and the reason. Nothing is kept of it.
        progress: whether to show how far it has come. None: in a terminal and in a notebook.

    Returns:
        The `Results`.

    Raises:
        UsageError: when the folder holds another run's results, an argument does not fit, or the
            network supports none of the methods, or the data are not those of the last call.
        SourceError: when the data can be read no further; what was finished is kept.
        AfmiError: when a file cannot be written (a full disk); what was finished is kept.
    """
    if batch_size < 1 or examples < 0:
        raise UsageError(
            f"expected a batch_size from 1 and examples from 0, got {batch_size} and {examples}"
        )
    model, placed = runnable(model), as_engine(engine)
    device = placed.device(device_of(model).type)
    chosen = chosen_methods(model, methods)
    asked = Asked.of(model, target)
    companions = any(metric.companions for metric in asked.metrics(metrics).values())
    if asked.labelled or companions or not may_lack_labels(data):
        images = open_data(
            *(data, model),
            limit=limit,
            image_key=image_key,
            label_key=label_key,
            window=smallest_window() * placed.workers,
        )
    else:
        images = open_images(data, model, limit=limit, image_key=image_key, labelled=False)
    asked = asked.on(images.first(), images.labels)
    wanted = asked.metrics(metrics)
    _check_classes(wanted, images)
    begun = ResultsFolder.begin(
        location(out),
        run={**identity_of(model, images, wanted, batch_size, device), "target": asked.identity()},
        images=(images.keys, images.labels) if isinstance(images, LabelledImages) else None,
        about={
            # As the report needs them, which then does without PyTorch.
            "metrics": {key: metric.facts().as_dict() for key, metric in wanted.items()},
            "machine": {**_machine(model), "workers": placed.workers},
            "command": command,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    )
    first = images.first()
    plans = {
        label: MethodPlan.of(label, method, wanted, first, images, batch_size)
        for label, method in chosen.items()
    }
    for plan in plans.values():
        begun.add_method(plan.label, plan.entry)
    listed = images if isinstance(images, LabelledImages) else None
    job = EvaluationJob(
        *(chosen, wanted, model, listed, asked, batch_size, fingerprint_of(model)),
        witness=None if listed is None else Witness.of(listed),
    )
    with showing(progress) as bars, placed.pool(job, device) as pool:
        begin = on_begin if bars is None else functools.partial(_shown, bars, on_begin)
        run = _Run(plans, begun, pool, listed is None, begin, on_method, on_refusal)
        drawn = _Drawn(images, examples)
        windows = _windows(begun, images)
        while (window := next(windows, None)) is not None:
            run.evaluate(window, drawn.among(window), _beyond([*plans.values()], images, window))
            del window  # else its pictures would be held while the next ones are read
    return Results.open(begun.path)


def _shown(
    bars: Bars,
    on_begin: Callable[[Piece, float, float], object],
    piece: Piece,
    done: float,
    total: float,
) -> None:
    known = math.isfinite(total)
    bars.show("passes through the network", round(done), round(total) if known else None)
    on_begin(piece, done, total)


class _Run:
    """Gives the pieces to workers, and keeps what comes of them.

    Args:
        plans: the methods by their labels.
        folder: where the pieces are kept.
        pool: the workers.
        streamed: whether a window's pictures are in memory here alone.
        on_begin: see `evaluate`.
        on_method: see `evaluate`.
        on_refusal: see `evaluate`.
    """

    def __init__(
        self,
        plans: Mapping[str, MethodPlan],
        folder: ResultsFolder,
        pool: WorkerPool[PieceTask, ShardResult | Refusal],
        streamed: bool,
        on_begin: Callable[[Piece, float, float], object],
        on_method: Callable[[str, Results], object],
        on_refusal: Callable[[str, str], object],
    ) -> None:
        self._plans = plans
        self._folder = folder
        self._pool = pool
        self._streamed = streamed
        self._on_begin = on_begin
        self._on_method = on_method
        self._on_refusal = on_refusal
        self._done = self._beyond = 0.0
        self._shared: dict[tuple[int, int], Shared] = {}

    def evaluate(self, window: Window, drawn: frozenset[int], beyond: float) -> None:
        """Do what is missing of a window; ``beyond`` are the passes of those after it."""
        self._window, self._drawn, self._beyond = window, drawn, beyond
        for plan in self._plans.values():
            plan.begin(window, self._folder)
        for plan in self._plans.values():
            self._proceed(plan)
        self._pool.work(self._commit, self._begin)
        for shared in self._shared.values():
            shared.free()
        self._shared.clear()
        del self._window

    def _proceed(self, plan: MethodPlan) -> None:
        """Submit what may be done of a method now, or end it."""
        if plan.ended:
            plan.end(self._window, self._folder, self._on_method, self._on_refusal)
        for piece in plan.next():
            examples = self._drawn & frozenset(range(piece.start, piece.stop))
            self._pool.submit(
                PieceTask(
                    *(piece.label, piece.start, piece.stop, plan.supported, examples),
                    window=self._share(piece) if self._streamed else None,
                    first=piece.start if self._streamed else 0,
                )
            )

    def _share(self, piece: Piece) -> Shared:
        """Put a piece's pictures where workers read them, once for all methods."""
        place = piece.start, piece.stop
        if place not in self._shared:
            self._shared[place] = self._pool.share(self._window.part(*place))
        return self._shared[place]

    def _begin(self, task: PieceTask) -> None:
        waiting = sum(plan.waiting for plan in self._plans.values())
        piece = self._plans[task.label].missing[task.start]
        self._on_begin(piece, self._done, self._done + waiting + self._beyond)

    def _commit(self, task: PieceTask, result: ShardResult | Refusal) -> None:
        plan = self._plans[task.label]
        if plan.refuses(result):
            self._folder.remove_pieces(key_of(plan.label))
            self._pool.cancel(lambda other: other.label == plan.label)
        else:
            assert isinstance(result, ShardResult)
            self._folder.write_piece(
                *(plan.label, plan.entry, task.start, result.rows, result.pictures)
            )
            self._done += plan.committed(task.start, result)
        if not self._pool.ending:
            self._proceed(plan)


def _windows(folder: ResultsFolder, images: LabelledImages | ImageStream) -> Iterator[Window]:
    """Yield the data a window at a time, a listing at once; the folder knows their pictures."""
    if isinstance(images, LabelledImages):
        return iter([Window(0, images, last=True)])

    def entered(window: Window) -> Window:
        held = window.images
        folder.enter_images(window.start, held.keys, held.labels, ended=window.last)
        return window

    return map(entered, images.windows())


def _beyond(
    plans: Sequence[MethodPlan], images: LabelledImages | ImageStream, window: Window
) -> float:
    """Return the passes that the pictures after a window take; infinite: who knows how many."""
    if window.last or isinstance(images, LabelledImages):
        return 0.0
    if images.limit is None:
        return math.inf
    left = images.limit - window.start - len(window.images)
    return left * sum(plan.passes for plan in plans if plan.refusal is None)


class _Drawn:
    """Chooses the pictures that are drawn: evenly spread, or the first of each class that comes.

    Args:
        images: the data.
        count: how many are drawn.
    """

    def __init__(self, images: LabelledImages | ImageStream, count: int) -> None:
        self._count = count
        self._classes: dict[int, int] = {NO_CLASS: -1}
        self._spread: frozenset[int] | None = None
        if isinstance(images, LabelledImages):
            last = len(images) - 1
            self._spread = frozenset(round(i * last / max(count - 1, 1)) for i in range(count))

    def among(self, window: Window) -> frozenset[int]:
        """Return the numbers of those that are drawn, as far as a window and those before it."""
        if self._spread is not None:
            return self._spread
        for number, label in enumerate(window.images.labels, window.start):
            if len(self._classes) <= self._count:
                self._classes.setdefault(label, number)
        return frozenset(self._classes.values())


def _check_classes(metrics: Mapping[str, Metric], images: LabelledImages | ImageStream) -> None:
    """Raise unless there are as many classes as the metrics need."""
    listed = isinstance(images, LabelledImages)
    classes = len(set(images.labels) - {NO_CLASS}) if listed else 0
    for metric in metrics.values():
        if metric.companions and not listed:
            raise UsageError(
                f"{metric.name} needs pictures of {metric.companions + 1} classes at once, but "
                f"those of {images.name} come one after the other; leave it out, or pass a folder, "
                "tar files on a disk, or a data set with a length"
            )
        if listed and metric.companions >= classes:
            raise UsageError(
                f"{metric.name} needs pictures of {metric.companions + 1} classes, got {classes} "
                f"in {images.name}; leave it out"
            )


def _machine(model: nn.Module) -> dict[str, Any]:
    device = device_of(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "processor": name,
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
