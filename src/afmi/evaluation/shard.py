"""The unit of an evaluation: one method on a few pictures, a function without side effects."""

from __future__ import annotations

import hashlib
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from afmi.data.labelled import LabelledImages
from afmi.data.witness import Witness
from afmi.errors import AfmiError, LayerError, ModelError, OperationError, one_line
from afmi.evaluation.asked import Asked
from afmi.evaluation.failures import MemoryWarning, read_image, taken_apart
from afmi.evaluation.folder import ERROR, Row
from afmi.evaluation.meter import measured
from afmi.explanation import shown_image
from afmi.methods import Method
from afmi.metrics import Case, Metric
from afmi.metrics.base import blank_maps_allowed
from afmi.network.classifier import classify, shown_bands_of
from afmi.network.devices import check_device
from afmi.network.memory import from_lack_of_memory
from afmi.network.outputs import check_outputs
from afmi.pictures.batches import neighbours
from afmi.pictures.maps import is_blank
from afmi.pictures.views import INSERTED, view_of
from afmi.targets import TargetLike

__all__ = [
    "MetricWarning",
    "Shard",
    "ShardResult",
    "evaluate_shard",
]

_PICTURE_SIDE = 240

_TOO_LITTLE_MEMORY = (
    "there is too little memory to measure it; scale the picture down, or leave the metric out"
)

_UNSUPPORTED = (LayerError, OperationError)
"""What a method raises that cannot be used on the network at all."""


class MetricWarning(UserWarning):
    """A metric could not be measured on some pictures; their rows say why."""


@dataclass(frozen=True)
class Shard:
    """One method on some of the pictures, and the metrics to measure.

    Attributes:
        method: explains; its model is the network.
        metrics: by the key that begins the names of their values.
        images: the whole data, or of a stream the pictures that are in memory.
        start: the first picture.
        stop: the one after the last.
        batch_size: pictures that are explained at once.
        examples: pictures to draw.
        supported: whether the method has explained another picture of the data, so that the
            network is not the reason if it fails on these.
        asked: what is explained of each picture; None: the labelled class.
        witness: knows the data where they were listed, so that no picture is blamed where they
            are lost; None: nobody needs to ask.
    """

    method: Method
    metrics: Mapping[str, Metric]
    images: LabelledImages
    start: int
    stop: int
    batch_size: int = 8
    examples: Collection[int] = ()
    supported: bool = False
    asked: Asked | None = None
    witness: Witness | None = None

    def targets(self, batch: Sequence[_Picture], device: torch.device) -> TargetLike:
        """Return what is explained of each picture."""
        labels = [int(self.images.labels[picture.index]) for picture in batch]
        return (self.asked or Asked(self.method.model)).each(labels, device)


@dataclass(frozen=True)
class ShardResult:
    """The measurements of a shard, and its drawings.

    Attributes:
        rows: (image, metric, value, note).
        pictures: for each example its drawings, by kind: ``picture``, ``map``, ``insertion``.
        explained: how many pictures the method explained.
        failures: why it failed on others, by picture; those that cannot be read are left out.
    """

    rows: list[Row] = field(default_factory=list)
    pictures: dict[int, dict[str, PIL.Image.Image]] = field(default_factory=dict)
    explained: int = 0
    failures: dict[int, str] = field(default_factory=dict)

    def shifted(self, by: int) -> ShardResult:
        """Return the same of pictures whose numbers are higher by as much."""
        return ShardResult(
            rows=[(image + by, metric, value, note) for image, metric, value, note in self.rows],
            pictures={image + by: drawings for image, drawings in self.pictures.items()},
            explained=self.explained,
            failures={image + by: reason for image, reason in self.failures.items()},
        )


@dataclass(frozen=True)
class _Picture:
    index: int
    inputs: Tensor
    companions: Tensor | None

    @property
    def shape(self) -> tuple[torch.Size, bool]:
        """What pictures must agree in to go through the network at once."""
        return self.inputs.shape, self.companions is None


@dataclass(frozen=True)
class _Outcome:
    """What came of one picture: its rows and drawings, or one row with the error."""

    rows: list[Row]
    drawings: dict[int, dict[str, PIL.Image.Image]] = field(default_factory=dict)
    failure: tuple[int, str] | None = None
    unsupported: AfmiError | None = None


def evaluate_shard(shard: Shard) -> ShardResult:
    """Explain the pictures and measure the maps.

    The same shard gives the same numbers, wherever and whenever it runs (seconds and memory
    apart), so shards can be spread over processes and machines.

    A picture that cannot be read, that the method fails on with any ``Exception``, or for which
    the network gives NaN has a row ``error`` with the reason as its note, and no others. Where a
    metric fails on a picture, or lacks memory for it, the row ``<metric>/error`` takes the place of
    that metric's, and a `MetricWarning` says why. A batch that fails is taken apart, so no picture
    costs its neighbours.

    Raises:
        LayerError, OperationError: when the method raises it for each of the pictures and is not
            known to be supported.
        SourceError: when the place that the pictures come from cannot be reached.
        MemoryError: when there is too little memory to read or explain one of the pictures.
        DeviceError: when the device works no longer.
    """
    unread: list[Row] = []
    outcomes: list[_Outcome] = []
    for batch in neighbours(
        _read(shard, unread), shard.batch_size, lambda p: None if p is None else p.shape
    ):
        readable = [picture for picture in batch if picture is not None]
        outcomes += _outcomes(shard, readable) if readable else []
    refusals = [outcome.unsupported for outcome in outcomes]
    if refusals and refusals[0] is not None and None not in refusals and not shard.supported:
        raise refusals[0]
    rows = [*unread, *(row for outcome in outcomes for row in outcome.rows)]
    failures = dict(outcome.failure for outcome in outcomes if outcome.failure is not None)
    return ShardResult(
        rows=sorted(rows, key=lambda row: (row[0], row[1])),
        pictures={n: kinds for outcome in outcomes for n, kinds in outcome.drawings.items()},
        explained=len(outcomes) - len(failures),
        failures=failures,
    )


def _outcomes(shard: Shard, batch: list[_Picture]) -> list[_Outcome]:
    """Measure a batch."""
    results = taken_apart(
        partial(_explained, shard),
        batch,
        batch[0].inputs.device,
        shard.method,
        lambda picture: shard.images.keys[picture.index],
    )
    return [
        result if isinstance(result, _Outcome) else _failed(shard, picture, result)
        for picture, result in zip(batch, results, strict=True)
    ]


def _failed(shard: Shard, picture: _Picture, error: Exception) -> _Outcome:
    """Return what stands for a picture that the method fails on."""
    row = _error_row(picture.index, _cause(shard, picture, error))
    return _Outcome(
        [row],
        failure=(picture.index, str(row[3])),
        unsupported=error if isinstance(error, _UNSUPPORTED) else None,
    )


def _cause(shard: Shard, picture: _Picture, error: Exception) -> Exception:
    """Return what is wrong with the network's own outputs, if anything is; else the error."""
    with suppress(Exception):
        logits = classify(shard.method.model, picture.inputs)
        try:
            check_outputs(logits)
        except AfmiError as cause:
            return cause
    return error


def _error_row(index: int, error: Exception, metric: str = "") -> Row:
    name = f"{metric}/{ERROR}" if metric else ERROR
    return (index, name, float("nan"), one_line(error))


def _read(shard: Shard, unread: list[Row]) -> Iterator[_Picture | None]:
    """Read the pictures one by one; None stands for one that cannot be, which becomes a row."""
    count = max((metric.companions for metric in shard.metrics.values()), default=0)
    for index in range(shard.start, shard.stop):
        inputs = read_image(shard.images, index, shard.witness)
        if isinstance(inputs, Exception):
            unread.append(_error_row(index, inputs))
            yield None
        else:
            companions = _companions(shard, index, count, inputs) if count else None
            yield _Picture(index, inputs, companions)


def _companions(shard: Shard, index: int, count: int, like: Tensor) -> Tensor | None:
    """Return pictures of other classes, all different, (1, M, C, H, W); None: not enough."""
    images = shard.images
    digest = hashlib.blake2b(images.keys[index].encode(errors="surrogateescape"), digest_size=8)
    order = np.random.default_rng(int.from_bytes(digest.digest(), "little")).permutation(
        len(images)
    )
    classes = {int(images.labels[index])}
    companions: list[Tensor] = []
    for position in order.tolist():
        label = int(images.labels[position])
        if label in classes:
            continue
        picture = read_image(images, position, shard.witness)
        if isinstance(picture, Exception) or picture.shape != like.shape:
            continue  # its own row will say what it is
        classes.add(label)
        companions.append(picture)
        if len(companions) == count:
            return torch.cat(companions)[None]
    return None


def _explained(shard: Shard, batch: Sequence[_Picture]) -> list[_Outcome]:
    """Explain a batch and measure the maps."""
    method = shard.method
    inputs = torch.cat([picture.inputs for picture in batch])
    targets = shard.targets(batch, inputs.device)
    # Blank maps are counted in a row of their own.
    with blank_maps_allowed():
        with measured(inputs.device) as cost:
            attribution = method.attribution(inputs, targets)
        explained = attribution.targets if attribution.target is None else attribution.target
        assert explained is not None
        scores = attribution.scores
        logits = attribution.logits if scores is None else scores[:, None]
        if logits is None:
            logits = classify(method.model, inputs)
        companions = [p.companions for p in batch if p.companions is not None]
        case = Case(
            method=method,
            inputs=inputs,
            targets=explained,
            attribution=attribution,
            logits=logits,
            seconds=cost.seconds / len(batch),
            peak_bytes=cost.peak_bytes,
            companions=torch.cat(companions) if companions else None,
        )
        blank = is_blank(attribution.maps).float().tolist()
        outcomes = [
            _Outcome([(picture.index, "blank", blank[n], None)], _drawings(shard, picture, case, n))
            for n, picture in enumerate(batch)
        ]
        for key, metric in shard.metrics.items():
            if metric.companions and case.companions is None:
                continue
            values = _values(metric, case)
            for picture, outcome, value in zip(batch, outcomes, values, strict=True):
                if isinstance(value, Exception):
                    outcome.rows.append(_error_row(picture.index, value, key))
                else:
                    named = value.items()
                    outcome.rows.extend((picture.index, f"{key}/{n}", v, None) for n, v in named)
    return outcomes


def _values(metric: Metric, case: Case) -> list[dict[str, float] | Exception]:
    """Return a metric's values of each picture by name, or the error that it raised."""
    count = case.inputs.shape[0]
    try:
        columns = {name: numbers.tolist() for name, numbers in metric.measure(case).items()}
        return [{name: column[n] for name, column in columns.items()} for n in range(count)]
    except Exception as error:
        check_device(case.inputs.device, f"{metric.name} was measured", error)
        lacking = from_lack_of_memory(error)
        # What the network or the method can never do is tried on no picture by itself.
        if count == 1 or (isinstance(error, (ModelError, *_UNSUPPORTED)) and not lacking):
            # How many bytes were missing changes from run to run.
            said = AfmiError(_TOO_LITTLE_MEMORY) if lacking else error
            warnings.warn(f"{metric.name}: {one_line(said)}", MetricWarning, stacklevel=2)
            said.__traceback__ = said.__cause__ = said.__context__ = None  # they keep tensors
            return [said] * count
        if lacking:
            warnings.warn(
                f"{metric.name} ran out of memory with {count} images at once, which are measured "
                "one by one; a smaller batch_size (--batch-size) from the beginning keeps the last "
                "digits the same",
                MemoryWarning,
                stacklevel=2,
            )
        # The frames of the failed run would keep its tensors.
        traceback.clear_frames(error.__traceback__)
    return [value for n in range(count) for value in _values(metric, case.only(n))]


def _drawings(
    shard: Shard, picture: _Picture, case: Case, n: int
) -> dict[int, dict[str, PIL.Image.Image]]:
    if picture.index in shard.examples:
        # What cannot be drawn can be measured all the same.
        with suppress(Exception):
            image = shown_image(case.inputs[n], shown_bands_of(case.method.model))
            return {picture.index: _drawn(image, case.maps[n, 0], signed=case.method.signed)}
    return {}


def _drawn(image: Tensor, map_: Tensor, *, signed: bool) -> dict[str, PIL.Image.Image]:
    view = view_of(image, map_, signed=signed)
    drawn = {
        "picture": view.original(),
        "map": view.overlay(),
        "insertion": view.insertion(INSERTED),
    }
    for picture in drawn.values():
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return drawn
