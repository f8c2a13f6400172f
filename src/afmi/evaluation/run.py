"""Run methods x pictures x metrics: in pieces that are kept as soon as they are done."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afmi.data.labelled import NO_CLASS, LabelledImages, open_images
from afmi.data.streams import ImageStream, Window, open_data
from afmi.data.unlabelled import may_lack_labels
from afmi.errors import LayerError, OperationError, UsageError
from afmi.evaluation.asked import Asked, AskedLike
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import code_of, identity_of
from afmi.evaluation.meter import processor
from afmi.evaluation.results import Results
from afmi.evaluation.shard import Shard, ShardResult, evaluate_shard
from afmi.methods import Method, MethodsLike, chosen_methods
from afmi.methods.work import Work
from afmi.metrics import Metric, MetricsLike
from afmi.network.wrappers import runnable
from afmi.specs import key_of, parameters

__all__ = ["Piece", "evaluate"]

_LARGEST_PIECE = 64
"""Pictures: a piece of a cheap method."""
_PASSES_PER_PIECE = 4096
"""Through the network, about: what a killed run may lose of a costly method."""
_HOPELESS = _LARGEST_PIECE
"""Pictures: a method that fails on each of so many, the first, is given up."""


@dataclass(frozen=True)
class Piece:
    """A part of the work that is kept as a whole.

    Attributes:
        label: the method's.
        start: the first picture.
        stop: the one after the last.
        passes: through the network that it takes, about; a backward pass counts as two.
    """

    label: str
    start: int
    stop: int
    passes: float


def _ignore(*_: object) -> None:
    """Do nothing with what is reported."""


def evaluate(
    model: nn.Module,
    data: Any,
    out: str | os.PathLike[str],
    *,
    target: AskedLike = None,
    methods: MethodsLike = "all",
    metrics: MetricsLike | None = None,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    batch_size: int = 8,
    examples: int = 6,
    command: str | None = None,
    on_begin: Callable[[Piece, float, float], object] = _ignore,
    on_method: Callable[[str, Results], object] = _ignore,
    on_refusal: Callable[[str, str], object] = _ignore,
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
        out: folder of the results; new, empty, or of the same run. Methods may be added to it.
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
        command: what the user typed, for the report.
        on_begin: called before each piece, with the passes done and the total; infinite where the
            number of pictures is not known.
        on_method: called when the last piece of a method is done.
        on_refusal: called with a method that the network does not support, or that fails on each
            of the first 64 pictures, and the reason. Nothing is kept of it.

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
    model = runnable(model)
    chosen = chosen_methods(model, methods)
    asked = Asked.of(model, target)
    companions = any(metric.companions for metric in asked.metrics(metrics).values())
    if asked.labelled or companions or not may_lack_labels(data):
        images = open_data(
            *(data, model),
            limit=limit,
            image_key=image_key,
            label_key=label_key,
            window=_LARGEST_PIECE,
        )
    else:
        images = open_images(data, model, limit=limit, image_key=image_key, labelled=False)
    asked = asked.on(images.first(), images.labels)
    wanted = asked.metrics(metrics)
    _check_classes(wanted, images)
    begun = ResultsFolder.begin(
        Path(out),
        run={**identity_of(model, images, wanted, batch_size), "target": asked.identity()},
        images=(images.keys, images.labels) if isinstance(images, LabelledImages) else None,
        about={
            # As the report needs them, which then does without PyTorch.
            "metrics": {key: metric.facts().as_dict() for key, metric in wanted.items()},
            "machine": _machine(model),
            "command": command,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    )
    first = images.first()
    plans = [_Plan.of(label, method, wanted, first, images) for label, method in chosen.items()]
    for plan in plans:
        begun.add_method(plan.label, plan.entry)
    drawn, done = _Drawn(images, examples), 0.0
    for folder, window in _windows(begun, images):
        for plan in plans:
            plan.begin(window, folder)
        total = done + sum(plan.waiting for plan in plans) + _beyond(plans, images, window)
        for plan in plans:
            for piece in plan.missing:
                on_begin(piece, done, total)
                result = plan.run(
                    Shard(
                        *(plan.method, wanted, window.images),
                        *(piece.start - window.start, piece.stop - window.start, batch_size),
                        examples=drawn.among(window),
                        supported=plan.supported,
                        asked=asked,
                    )
                )
                if result is None:
                    total -= sum(p.passes for p in plan.missing if p.start >= piece.start)
                    folder.remove_pieces(key_of(plan.label))
                    break
                result = result.shifted(window.start)
                folder.write_piece(
                    *(plan.label, plan.entry, piece.start, result.rows, result.pictures)
                )
                done += piece.passes
            plan.end(window, folder, on_method, on_refusal)
    return Results.open(begun.path)


def _windows(
    folder: ResultsFolder, images: LabelledImages | ImageStream
) -> Iterator[tuple[ResultsFolder, Window]]:
    """Yield the data a window at a time, a listing at once, with the folder that knows them."""
    if isinstance(images, LabelledImages):
        yield folder, Window(0, images, last=True)
        return
    keys: list[str] = []
    labels: list[int] = []
    for window in images.windows():
        keys += window.images.keys
        labels += window.images.labels
        yield folder.with_images(keys, labels, ended=window.last), window


def _beyond(plans: Sequence[_Plan], images: LabelledImages | ImageStream, window: Window) -> float:
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
        """Return the positions in a window of those that are drawn."""
        if self._spread is not None:
            return self._spread
        for number, label in enumerate(window.images.labels, window.start):
            if len(self._classes) <= self._count:
                self._classes.setdefault(label, number)
        return frozenset(number - window.start for number in self._classes.values())


@dataclass
class _Plan:
    """A method on its way through the data.

    Attributes:
        label: the method's.
        method: explains.
        entry: of the method in the manifest.
        passes: through the network that a picture takes, metrics included, about.
        missing: pieces of the present window that are to be done.
        resumed: whether pieces of it were finished before.
        explained: pictures that it explained.
        failed: pictures that it failed on.
        refusal: why it is given up, if it is.
    """

    label: str
    method: Method
    entry: dict[str, Any]
    passes: float
    missing: list[Piece] = field(default_factory=list)
    resumed: bool = False
    explained: int = 0
    failed: int = 0
    refusal: str | None = None

    @classmethod
    def of(
        cls,
        label: str,
        method: Method,
        metrics: Mapping[str, Metric],
        first: torch.Tensor,
        images: LabelledImages | ImageStream,
    ) -> _Plan:
        """Plan a method's work: the costlier it is, the fewer pictures a piece has."""
        work = [method.work(first), *(metric.work(method, first) for metric in metrics.values())]
        passes = sum(_passes(one) for one in work)
        size = int(min(max(_PASSES_PER_PIECE // max(passes, 1), 1), _LARGEST_PIECE))
        if isinstance(images, LabelledImages):
            size = min(size, len(images))
        else:  # a window is made of whole pieces
            size = max(n for n in range(1, size + 1) if _LARGEST_PIECE % n == 0)
        return cls(label, method, _entry(method, label, size), passes)

    @property
    def supported(self) -> bool:
        """Whether the method is known to work on the network."""
        return self.resumed or self.explained > 0

    @property
    def waiting(self) -> float:
        """Passes that the missing pieces take."""
        return sum(piece.passes for piece in self.missing)

    def begin(self, window: Window, folder: ResultsFolder) -> None:
        """Find the pieces of a window that are missing."""
        if self.refusal is not None:
            self.missing = []
            return
        size, end = self.entry["images_per_piece"], window.start + len(window.images)
        pieces = [
            Piece(self.label, start, stop := min(start + size, end), (stop - start) * self.passes)
            for start in range(window.start, end, size)
        ]
        self.missing = [p for p in pieces if not folder.has_piece(self.label, self.entry, p.start)]
        self.resumed |= len(self.missing) < len(pieces)

    def run(self, shard: Shard) -> ShardResult | None:
        """Evaluate a shard; None where the method is given up, for the reason in ``refusal``."""
        try:
            result = evaluate_shard(shard)
        except (LayerError, OperationError) as error:
            self.refusal = str(error)
            return None
        self.explained += result.explained
        self.failed += len(result.failures)
        if not self.supported and self.failed >= _HOPELESS:
            reason = next(iter(result.failures.values()), "")
            self.refusal = f"it fails on each of the first {self.failed} pictures: {reason}"
            return None
        return result

    def end(
        self,
        window: Window,
        folder: ResultsFolder,
        on_method: Callable[[str, Results], object],
        on_refusal: Callable[[str, str], object],
    ) -> None:
        """Enter and tell what became of the method, as soon as that is known."""
        given_up = self.refusal is not None and self.entry["refused"] is None
        self.entry["refused"] = self.refusal
        if window.last or given_up:
            # Again, in case another process overwrote the manifest.
            folder.add_method(self.label, self.entry)
        if given_up:
            on_refusal(self.label, str(self.refusal))
        elif window.last and self.refusal is None:
            on_method(self.label, Results.open(folder.path))


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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "processor": name,
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _passes(work: Work) -> float:
    return work.forwards + 2 * work.backwards


def _entry(method: Method, label: str, size: int) -> dict[str, Any]:
    return {
        "class": type(method).__name__,
        "code": code_of(method),
        "key": key_of(label),
        "parameters": parameters(method),
        "images_per_piece": size,
        "family": method.family,
        "paper": method.paper,
        "refused": None,
    }
