"""The unit of an evaluation: one method on a few pictures, a function without side effects."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from afmi.data.labelled import LabelledImages
from afmi.errors import AfmiError, LayerError, OperationError
from afmi.evaluation.folder import Row
from afmi.evaluation.meter import measured
from afmi.methods import Method
from afmi.metrics import Case, Metric
from afmi.metrics.base import blank_maps_allowed
from afmi.network.classifier import classify
from afmi.pictures import plots
from afmi.pictures.batches import neighbours
from afmi.pictures.transforms import to_image

__all__ = ["MetricWarning", "Shard", "ShardResult", "evaluate_shard"]

_PICTURE_SIDE = 240


class MetricWarning(UserWarning):
    """A metric could not be measured on some pictures; the others were."""


@dataclass(frozen=True)
class Shard:
    """One method on some of the pictures, and the metrics to measure.

    Attributes:
        method: explains; its model is the network.
        metrics: by the key that begins the names of their values.
        images: the whole data.
        start: the first picture.
        stop: the one after the last.
        batch_size: pictures that are explained at once.
        examples: pictures to draw.
    """

    method: Method
    metrics: Mapping[str, Metric]
    images: LabelledImages
    start: int
    stop: int
    batch_size: int = 8
    examples: Collection[int] = ()


@dataclass(frozen=True)
class ShardResult:
    """The measurements of a shard, and its drawings.

    Attributes:
        rows: (image, metric, value, note).
        pictures: for each example its drawings, by kind: ``picture``, ``map``, ``insertion``.
    """

    rows: list[Row] = field(default_factory=list)
    pictures: dict[int, dict[str, PIL.Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Picture:
    index: int
    inputs: Tensor
    companions: Tensor | None

    @property
    def shape(self) -> tuple[torch.Size, bool]:
        """What pictures must agree in to go through the network at once."""
        return self.inputs.shape, self.companions is None


def evaluate_shard(shard: Shard) -> ShardResult:
    """Explain the pictures and measure the maps.

    The same shard gives the same numbers, wherever and whenever it runs (seconds and memory
    apart), so shards can be spread over processes and machines. A picture that cannot be read, or
    that the method fails on, has a row ``error`` with the reason as its note, and no others. Where
    a metric fails, its rows are missing, and a `MetricWarning` says why.

    Raises:
        LayerError, OperationError: when the method cannot be used on the network at all.
    """
    result = ShardResult()
    pictures = _readable(shard, result)
    for batch in neighbours(pictures, shard.batch_size, lambda picture: picture.shape):
        _try(shard, batch, result)
    result.rows.sort(key=lambda row: (row[0], row[1]))
    return result


def _try(shard: Shard, batch: list[_Picture], result: ShardResult) -> None:
    """Measure a batch; if that fails, each picture by itself: none shall cost its neighbours."""
    try:
        _measure(shard, batch, result)
    except (LayerError, OperationError):
        raise
    except AfmiError as error:
        if len(batch) == 1:
            result.rows.append((batch[0].index, "error", float("nan"), str(error)))
            return
        for picture in batch:
            _try(shard, [picture], result)


def _readable(shard: Shard, result: ShardResult) -> Iterator[_Picture]:
    """Read the pictures one by one; one that cannot be read becomes a row."""
    count = max((metric.companions for metric in shard.metrics.values()), default=0)
    for index in range(shard.start, shard.stop):
        try:
            inputs = shard.images.read(index)
            companions = _companions(shard.images, index, count, inputs) if count else None
        except AfmiError as error:
            result.rows.append((index, "error", float("nan"), str(error)))
            continue
        yield _Picture(index, inputs, companions)


def _companions(images: LabelledImages, index: int, count: int, like: Tensor) -> Tensor | None:
    """Return pictures of other classes, all different, (1, M, C, H, W); None: not enough."""
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
        try:
            picture = images.read(position)
        except AfmiError:
            continue
        if picture.shape != like.shape:
            continue
        classes.add(label)
        companions.append(picture)
        if len(companions) == count:
            return torch.cat(companions)[None]
    return None


def _measure(shard: Shard, batch: list[_Picture], result: ShardResult) -> None:
    """Explain a batch and add its rows; nothing is added when it fails."""
    method = shard.method
    inputs = torch.cat([picture.inputs for picture in batch])
    targets = torch.tensor(
        [int(shard.images.labels[picture.index]) for picture in batch], device=inputs.device
    )
    # Blank maps are counted in a row of their own.
    with blank_maps_allowed():
        with measured(inputs.device) as cost:
            attribution = method.attribution(inputs, targets)
        logits = attribution.logits
        if logits is None:
            logits = classify(method.model, inputs)
        companions = [p.companions for p in batch if p.companions is not None]
        case = Case(
            method=method,
            inputs=inputs,
            targets=targets,
            attribution=attribution,
            logits=logits,
            seconds=cost.seconds / len(batch),
            peak_bytes=cost.peak_bytes,
            companions=torch.cat(companions) if companions else None,
        )
        values: dict[str, list[float]] = {}
        for key, metric in shard.metrics.items():
            if metric.companions and case.companions is None:
                continue
            try:
                measurements = metric.measure(case)
            except AfmiError as error:
                # It must not cost the other metrics; its own values are missing.
                warnings.warn(f"{metric.name}: {error}", MetricWarning, stacklevel=2)
                continue
            for name, numbers in measurements.items():
                values[f"{key}/{name}"] = numbers.tolist()
    low, high = attribution.maps.flatten(1).aminmax(dim=1)
    values["blank"] = (low == high).double().tolist()
    for n, picture in enumerate(batch):
        result.rows.extend((picture.index, name, row[n], None) for name, row in values.items())
        if picture.index in shard.examples:
            # What cannot be drawn (a picture of two channels) can be measured all the same.
            with suppress(AfmiError):
                result.pictures[picture.index] = _drawn(
                    inputs[n], attribution.maps[n, 0], signed=method.signed
                )


def _drawn(image: Tensor, map_: Tensor, *, signed: bool) -> dict[str, PIL.Image.Image]:
    drawn = {
        "picture": to_image(image),
        "map": plots.overlay(image, map_, signed=signed),
        "insertion": plots.insertion(image, map_, 0.1),
    }
    for picture in drawn.values():
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return drawn
