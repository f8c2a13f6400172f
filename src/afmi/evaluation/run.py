"""Run methods x pictures x metrics: in pieces that are kept as soon as they are done."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afmi.data.labelled import LabelledImages, open_images
from afmi.errors import LayerError, OperationError, UsageError
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import code_of, identity_of
from afmi.evaluation.meter import processor
from afmi.evaluation.results import Results
from afmi.evaluation.shard import Shard, ShardResult, evaluate_shard
from afmi.methods import Method, MethodsLike, chosen_methods
from afmi.methods.work import Work
from afmi.metrics import Metric, MetricsLike, chosen_metrics
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
    methods: MethodsLike = "all",
    metrics: MetricsLike | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    examples: int = 6,
    command: str | None = None,
    on_begin: Callable[[Piece, float, float], object] = _ignore,
    on_method: Callable[[str, Results], object] = _ignore,
    on_refusal: Callable[[str, str], object] = _ignore,
) -> Results:
    """Explain pictures by several methods and measure the maps against the true classes.

    The work is cut into pieces, each one method on a few pictures, and a piece is written as soon
    as it is done. The same call on the same folder resumes, however the last one stopped, and ends
    with the numbers of an uninterrupted run. Memory does not grow with the number of pictures.

    Several calls may work on one folder at once: no row is lost, but a piece that two of them
    begin is done twice (see `afmi.evaluation.folder.ResultsFolder`). Pieces that a crash of the
    machine left empty or cut off are done again; `Results.read` names those that are damaged
    otherwise.

    Args:
        model: a `Classifier`, or any ``nn.Module`` from images to logits.
        data: see `afmi.evaluation.open_images`.
        out: folder of the results; new, empty, or of the same run. Methods may be added to it.
        methods: see `chosen_methods`.
        metrics: see `chosen_metrics`; None: those that are standard.
        limit: evaluate this many of the pictures, the classes taken in turn.
        batch_size: pictures that are explained at once.
        examples: how many pictures the report shows.
        command: what the user typed, for the report.
        on_begin: called before each piece, with the passes done and the total.
        on_method: called when the last piece of a method is done.
        on_refusal: called with a method that the network does not support, or that fails on each
            of the first 64 pictures, and the reason. Nothing is kept of it.

    Returns:
        The `Results`.

    Raises:
        UsageError: when the folder holds another run's results, an argument does not fit, or the
            network supports none of the methods.
        AfmiError: when a file cannot be written (a full disk); what was finished is kept.
    """
    if batch_size < 1 or examples < 0:
        raise UsageError(
            f"expected a batch_size from 1 and examples from 0, got {batch_size} and {examples}"
        )
    chosen = chosen_methods(model, methods)
    wanted = chosen_metrics(metrics)
    images = open_images(data, model, limit=limit)
    _check_classes(wanted, images)
    folder = ResultsFolder.begin(
        Path(out),
        run=identity_of(model, images, wanted, batch_size),
        images=(images.keys, [int(label) for label in images.labels]),
        about={
            # As the report needs them, which then does without PyTorch.
            "metrics": {key: metric.facts().as_dict() for key, metric in wanted.items()},
            "machine": _machine(model),
            "command": command,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    )
    first = images.first()
    pieces = {
        label: _pieces(label, method, wanted, first, len(images))
        for label, method in chosen.items()
    }
    entries = {label: _entry(method, label, pieces[label]) for label, method in chosen.items()}
    for label, entry in entries.items():
        folder.add_method(label, entry)
    todo = {
        label: [p for p in pieces[label] if not folder.has_piece(label, entry, p.start)]
        for label, entry in entries.items()
    }
    total = sum(piece.passes for missing in todo.values() for piece in missing)
    drawn = {round(i * (len(images) - 1) / max(examples - 1, 1)) for i in range(examples)}
    done = 0.0
    for label, method in chosen.items():
        tried = _Tried(resumed=len(todo[label]) < len(pieces[label]))
        for piece in todo[label]:
            on_begin(piece, done, total)
            result = tried.run(
                Shard(
                    *(method, wanted, images, piece.start, piece.stop, batch_size),
                    examples=frozenset(drawn),
                    supported=tried.supported,
                )
            )
            if result is None:
                total -= sum(p.passes for p in todo[label] if p.start >= piece.start)
                folder.remove_pieces(key_of(label))
                break
            folder.write_piece(label, entries[label], piece.start, result.rows, result.pictures)
            done += piece.passes
        # Again, in case another process overwrote the manifest.
        folder.add_method(label, entries[label] | {"refused": tried.refusal})
        if tried.refusal is not None:
            on_refusal(label, tried.refusal)
        else:
            on_method(label, Results.open(folder.path))
    return Results.open(folder.path)


@dataclass
class _Tried:
    """What became of a method so far.

    Attributes:
        resumed: whether pieces of it were finished before.
        explained: pictures that it explained.
        failed: pictures that it failed on.
        refusal: why it is given up, if it is.
    """

    resumed: bool
    explained: int = 0
    failed: int = 0
    refusal: str | None = None

    @property
    def supported(self) -> bool:
        """Whether the method is known to work on the network."""
        return self.resumed or self.explained > 0

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


def _check_classes(metrics: Mapping[str, Metric], images: LabelledImages) -> None:
    """Raise unless there are as many classes as the metrics need."""
    classes = len(set(images.labels))
    for metric in metrics.values():
        if metric.companions >= classes:
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


def _pieces(
    label: str,
    method: Method,
    metrics: Mapping[str, Metric],
    first: torch.Tensor,
    count: int,
) -> list[Piece]:
    """Cut a method's work: the costlier it is, the fewer pictures a piece has."""
    work = [method.work(first), *(metric.work(method, first) for metric in metrics.values())]
    passes = sum(_passes(one) for one in work)
    size = int(min(max(_PASSES_PER_PIECE // max(passes, 1), 1), _LARGEST_PIECE))
    return [
        Piece(label, start, stop := min(start + size, count), (stop - start) * passes)
        for start in range(0, count, size)
    ]


def _passes(work: Work) -> float:
    return work.forwards + 2 * work.backwards


def _entry(method: Method, label: str, pieces: list[Piece]) -> dict[str, Any]:
    return {
        "class": type(method).__name__,
        "code": code_of(method),
        "key": key_of(label),
        "parameters": parameters(method),
        "images_per_piece": pieces[0].stop,
        "family": method.family,
        "paper": method.paper,
        "refused": None,
    }
