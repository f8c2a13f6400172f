"""Audit a network on labelled images: which classes are recognised for more than one reason."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.api import method_of
from afmi.auditing.grouping import ISOLATED, Grouping, check_installed, evidence_of, grouping_of
from afmi.auditing.interventions import intervention_on
from afmi.auditing.page import Drawn, Scatter, audit_page, thumbnail
from afmi.auditing.records import Audit, ClassAudit, Group, MapLead, Outlier
from afmi.auditing.regions import Marked, distinguishing_maps, marked
from afmi.data.labelled import LabelledImages, open_images
from afmi.datasets import Explanations, explain_dataset
from afmi.datasets.run import Progress
from afmi.engines import EngineLike
from afmi.errors import ImageError, SourceError, UsageError
from afmi.files import as_json, location, write_files
from afmi.methods import AFMI
from afmi.network.classifier import class_label, find_class, name_of, shown_bands_of
from afmi.pictures.references import ReferenceLike
from afmi.progress import report
from afmi.report.statistics import Estimate, means
from afmi.report.tables import csv_text
from afmi.stores import RemotePath
from afmi.targets import Difference, OneTarget

__all__ = ["audit"]

_HELD_BYTES = 512_000_000
"""What describes images in memory at once; of more classes the tables are read again. A class is
held whole."""
_CHANGED = 32
"""Images of a group that are changed."""
_MOST_PIXELS = 50_000_000
"""Numbers of all images that are changed together; of large images there are fewer."""
_PLACES = 16
"""Places along a side of the exact maps that are compared."""
_SHOWN = 7
"""Images of a group that are shown."""
_PICTURED = 160
"""Images of a class in its scatter."""
_OTHERS = 64
"""Images of other classes that regions are pasted into."""
_MOST_DRAWN = 20
"""Classes that are drawn and put to the test, the most suspicious ones."""


def _ignore(progress: Progress) -> None:
    """Do nothing with what is reported."""


def audit(
    model: nn.Module | None,
    data: Any,
    out: str | os.PathLike[str] | RemotePath,
    *,
    classes: Sequence[int | str] | None = None,
    versus: int | str | None = None,
    all_classes: bool = False,
    layer: Any = None,
    reference: ReferenceLike | None = None,
    threshold: float = ISOLATED,
    confirm: bool = True,
    seed: int = 0,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    batch_size: int = 8,
    engine: EngineLike = None,
    command: str | None = None,
    on_piece: Callable[[Progress], object] = _ignore,
) -> Audit:
    """Look for classes that a network recognises for two reasons, of which one may be wrong.

    Of every image the contribution of each feature map to the score of its own class is computed
    (`AFMI`, exact; they sum to the score's change from the reference), at the price of a forward
    pass. Images of a class that the network recognises for another reason than the rest, such as a
    watermark, stand apart by them. Of such a group the page shows the images with the place of what
    tells them apart, and what happens when it is pasted into images of other classes or removed:
    what the network uses is measured, whether it should use it is for a person to say. A class
    without a group apart may still rest on one wrong reason, when all of its images have it.

    Args:
        model: as in `afmi.explain`; None: the one that `afmi.load_model` gives without a name.
        data: labelled images that can be read again, as in `afmi.evaluate`.
        out: folder of the results; the same call resumes.
        classes: those to audit; None: all that have images.
        versus: set each class against this one, so that the question is why an image is recognised
            as its class rather than as that. None: the class's own score.
        all_classes: whether images are described by the contributions to the scores of all audited
            classes, and not of their own alone.
        layer: as in `afmi.explain`.
        reference: as in `afmi.explain`.
        threshold: mean silhouette from which a group is apart.
        confirm: whether images of groups apart are changed to see what the network says.
        seed: of groups, resampling and controls.
        limit: audit this many of the images, the classes taken in turn.
        image_key: as in `afmi.evaluate`.
        label_key: as in `afmi.evaluate`.
        batch_size: images that go through the network at once.
        engine: where the contributions are computed, as in `afmi.evaluate`.
        command: what the user typed, for the manifest.
        on_piece: called after each piece of images.

    Returns:
        The record, which is also written: ``audit.html``, ``audit.json``, ``classes.csv``,
        ``images.csv``, and the contributions in ``contributions/``.

    Raises:
        UsageError: when scikit-learn is missing, the data cannot be read again, the images are no
            pictures, or the folder holds another run.
        ImageError: when there are no images of the classes.
        TargetError: when a class is none of the network's.
        AfmiError: see `afmi.explain_dataset`.
    """
    check_installed()
    method = _method(model, layer, reference)
    everything = _images(method.model, data, limit, image_key, label_key)
    against = None if versus is None else find_class(method.model, versus)
    wanted = _classes(method.model, everything, classes, against)
    chosen = [n for n, label in enumerate(everything.labels) if label in wanted]
    images = everything if len(chosen) == len(everything) else everything.only(chosen)
    folder = location(out)
    explained = explain_dataset(
        *(None, images, folder / "contributions"),
        target=None if against is None else Difference(None, against),
        labelled=True,
        classes=wanted if all_classes else (),
        method=method,
        vectors="contribution",
        batch_size=batch_size,
        engine=engine,
        command=command,
        on_piece=on_piece,
    )
    rows = _Rows.of(explained, images)
    run = _Run(method, images, everything, rows, against, threshold, seed)
    found: list[_Found] = []
    for number, (index, vectors) in enumerate(_by_class(explained, rows, wanted)):
        report("classes audited", number, len(wanted))
        found.append(run.grouped(index, vectors))
    report("classes audited", len(wanted), len(wanted))
    found.sort(key=lambda one: _rank(one.audit))
    drawn = [run.drawn(one, confirm) for one in found[:_MOST_DRAWN] if one.audit.stable]
    results = {one.audit.index: one.audit for one in found}
    results |= {one.audit.index: one.audit for one in drawn}
    record = explained.manifest["record"]
    result = Audit(
        classes=tuple(sorted(results.values(), key=_rank)),
        model=name_of(method.model),
        data=images.name,
        layer=str(record["layer"]),
        reference=str(record["reference"]),
        versus="" if against is None else class_label(method.model, against),
        threshold=threshold,
        folder=folder,
        seed=seed,
        versions=dict(record["versions"]),
    )
    texts = {
        "images.csv": csv_text(run.image_rows(found)),
        "classes.csv": csv_text(result.rows()),
        "audit.json": as_json(result.to_dict(), indent=2),
        "audit.html": audit_page(result, sorted(drawn, key=lambda one: _rank(one.audit))),
    }
    write_files(
        {folder / name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    )
    return result


def _method(model: nn.Module | None, layer: Any, reference: ReferenceLike | None) -> AFMI:
    method = method_of(model, "AFMI", layer=layer, reference=reference, averaged=False)
    assert isinstance(method, AFMI)
    return method


def _images(
    model: nn.Module, data: Any, limit: int | None, image_key: str | None, label_key: str | None
) -> LabelledImages:
    images = open_images(data, model, limit=limit, image_key=image_key, label_key=label_key)
    first = images.first()
    if first.dim() != 4:
        raise UsageError(
            "an audit shows and changes pictures, so it expects a network of images (N, C, H, W), "
            f"got {tuple(first.shape)}; explain_dataset(vectors='contribution') has the numbers"
        )
    return images


def _classes(
    model: nn.Module,
    images: LabelledImages,
    classes: Sequence[int | str] | None,
    against: int | None,
) -> tuple[int, ...]:
    """Return the classes to audit that have images, in order."""
    there = {label for label in images.labels if label >= 0} - {against}
    wanted = there if classes is None else {find_class(model, one) for one in classes} & there
    if not wanted:
        raise ImageError(f"{images.name} has no images of the classes to audit")
    return tuple(sorted(wanted))


def _rank(one: ClassAudit) -> tuple[bool, bool, bool, float, int]:
    """Return what sorts the most suspicious classes to the front."""
    isolation = -one.isolation if np.isfinite(one.isolation) else np.inf
    return not one.confirmed, not one.suspicious, not one.stable, isolation, one.index


@dataclass(frozen=True)
class _Rows:
    """What is known of each image but its contributions, in the order of the data.

    Attributes:
        labels: classes, int (N,).
        predicted: classes predicted, int (N,); −1 where the image failed.
        scores: of what is explained, (N,); NaN where it failed.
    """

    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, explained: Explanations, images: LabelledImages) -> _Rows:
        table = explained.table(["predicted", "score"])
        return cls(
            np.array(images.labels),
            table["predicted"].fill_null(-1).to_numpy(),
            table["score"].fill_null(float("nan")).to_numpy().astype(np.float64),
        )

    def members(self, index: int) -> np.ndarray:
        """Return the images of a class that were explained."""
        return np.flatnonzero((self.labels == index) & (self.predicted >= 0))


@dataclass(frozen=True)
class _Vectors:
    """What is known of a class's images.

    Attributes:
        own: contributions to the score of the class itself, (N, K).
        evidence: by which images are grouped, by what it says: ``"what"``, the feature maps that
            speak for the class (or for all audited ones); ``"where"``, the places of the exact map
            that do.
    """

    own: np.ndarray
    evidence: dict[str, np.ndarray]


def _by_class(
    explained: Explanations, rows: _Rows, classes: Sequence[int]
) -> Iterator[tuple[int, _Vectors]]:
    """Yield each class with its contributions, a few classes in memory at a time."""
    layout = explained.manifest["layout"]
    width = layout["features"] * (1 + len(layout["classes"])) + _PLACES**2
    held: list[int] = []
    size = 0
    for index in classes:
        # In float32, and once more where a class's parts are put together.
        more = len(rows.members(index)) * width * 8
        if held and size + more > _HELD_BYTES:
            yield from _read(explained, rows, held)
            held, size = [], 0
        held.append(index)
        size += more
    yield from _read(explained, rows, held)


def _read(
    explained: Explanations, rows: _Rows, classes: Sequence[int]
) -> Iterator[tuple[int, _Vectors]]:
    layout = explained.manifest["layout"]
    columns = ["contribution", *(["contributions"] if layout["classes"] else [])]
    parts: dict[int, list[tuple[np.ndarray, ...]]] = {index: [] for index in classes}
    start = 0
    for table in explained.tables():
        labels = rows.labels[start : start + len(table)]
        known = rows.predicted[start : start + len(table)] >= 0
        start += len(table)
        for index in np.intersect1d(labels[known], classes).tolist():
            taken = table.take(np.flatnonzero((labels == index) & known)).combine_chunks()
            vectors = [
                taken[name].combine_chunks().flatten().to_numpy().reshape(len(taken), -1)
                for name in columns
            ]
            parts[index].append((*vectors, _shares(taken, layout["map"])))
    nothing = (np.zeros((0, 0), np.float32),) * (len(columns) + 1)
    for index in classes:
        each = parts.pop(index) or [nothing]
        *vectors, where = (np.concatenate(column) for column in zip(*each, strict=True))
        evidence = {"what": evidence_of(vectors[-1]), "where": evidence_of(where)}
        yield index, _Vectors(vectors[0], evidence)


def _shares(table: pa.Table, sides: Sequence[int] | None) -> np.ndarray:
    """Return for each image which share of what speaks for the class lies where.

    float32 (N, 16 · 16).

    Args:
        table: rows with maps.
        sides: of all maps; None: each row has its own.
    """
    flat = table["map"].combine_chunks().flatten().to_numpy().astype(np.float32)
    if sides is not None:
        maps = [torch.from_numpy(flat.reshape(len(table), 1, *sides))]
    else:
        sizes = table["map_size"].to_pylist()
        parts = torch.from_numpy(flat).split([math.prod(size) for size in sizes])
        maps = [part.view(1, 1, *size) for part, size in zip(parts, sizes, strict=True)]
    pooled = torch.cat([F.adaptive_avg_pool2d(each.clamp_min(0), _PLACES) for each in maps])
    places = pooled.flatten(1).numpy().astype(np.float64)
    shares = places / np.maximum(places.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    return shares.astype(np.float32)


@dataclass(frozen=True)
class _Found:
    """A class with what its groups were found from.

    Attributes:
        audit: the record.
        members: its images, int (N,).
        grouping: of them.
    """

    audit: ClassAudit
    members: np.ndarray
    grouping: Grouping


@dataclass(frozen=True)
class _Run:
    """Groups the images of a class, and puts groups to the test.

    Attributes:
        method: A-FMI on the network.
        images: those of the audited classes.
        everything: all images, also of other classes.
        rows: what is known of each image.
        against: the class that each is set against.
        threshold: mean silhouette from which a group is apart.
        seed: of everything random.
    """

    method: AFMI
    images: LabelledImages
    everything: LabelledImages
    rows: _Rows
    against: int | None
    threshold: float
    seed: int

    def grouped(self, index: int, vectors: _Vectors) -> _Found:
        """Return what is found of a class without changing an image."""
        parts = [
            self._by(index, by, evidence, vectors.own) for by, evidence in vectors.evidence.items()
        ]
        return min(parts, key=lambda one: _rank(one.audit))

    def _by(self, index: int, by: str, evidence: np.ndarray, own: np.ndarray) -> _Found:
        """Return what is found of a class when its images are described in one way."""
        members = self.rows.members(index)
        grouping = grouping_of(evidence, isolated=self.threshold, seed=self.seed)
        right = self.rows.predicted[members] == index
        numbers = range(1, len(grouping.isolation) + 1)
        record = ClassAudit(
            index=index,
            label=class_label(self.method.model, index),
            count=len(members),
            failed=int((self.rows.labels == index).sum()) - len(members),
            recognised=float(right.mean()) if len(members) else float("nan"),
            by=by,
            isolation=grouping.nearest,
            groups=tuple(self._group(grouping, n, members, own, right) for n in numbers),
            outliers=tuple(
                Outlier(self.images.keys[members[n]], float(grouping.distances[n]))
                for n in grouping.outliers
            ),
        )
        return _Found(record, members, grouping)

    def _group(
        self,
        grouping: Grouping,
        number: int,
        members: np.ndarray,
        vectors: np.ndarray,
        right: np.ndarray,
    ) -> Group:
        inside = grouping.groups == number
        of_group, of_rest = vectors[inside], vectors[~inside]
        maps = distinguishing_maps(of_group, of_rest)
        group, rest = (each.mean(0, dtype=np.float64) for each in (of_group, of_rest))
        lead = np.maximum(group - rest, 0)
        change = float(group.sum())
        scores = self.rows.scores[members]
        return Group(
            images=tuple(self.images.keys[members[n]] for n in _typical(grouping, number)),
            share=float(inside.mean()),
            isolation=grouping.isolation[number - 1],
            stability=grouping.stability[number - 1],
            recognised=float(right[inside].mean()),
            recognised_rest=float(right[~inside].mean()),
            score=_difference(scores[inside], scores[~inside], self.seed),
            effect=_effect(scores[inside], scores[~inside]),
            maps=tuple(
                MapLead(int(k), float(group[k]), float(rest[k]), float(lead[k] / lead.sum()))
                for k in maps
            ),
            carried=float(group[maps].sum()) / change if change else float("nan"),
        )

    def drawn(self, found: _Found, confirm: bool) -> Drawn:
        """Return a class with its groups drawn, and put to the test where that is wanted."""
        index = found.audit.index
        tested = confirm and found.audit.suspicious
        others = self._others(index) if tested else []
        most = _CHANGED if tested else _SHOWN
        of_rest = found.members[_typical(found.grouping, 0)].tolist()
        groups, pictures, rests = [], [], []
        for number, group in enumerate(found.audit.groups, 1):
            order = found.members[_typical(found.grouping, number)].tolist()
            maps = np.array([lead.number for lead in group.maps], dtype=np.int64)
            rest = self._marked(of_rest, index, maps, most)
            shown = self._marked(order, index, maps, most, rest)
            if tested and group.suspicious and shown is not None:
                done = intervention_on(self.method.model, shown, index, others, seed=self.seed)
                group = replace(group, intervention=done)
            groups.append(group)
            pictures.append(None if shown is None else shown.first(_SHOWN))
            rests.append(None if rest is None else rest.first(_SHOWN))
        return Drawn(
            audit=replace(found.audit, groups=tuple(groups)),
            groups=tuple(pictures),
            rest=rests[0],
            scatter=self._scatter(found),
            bands=shown_bands_of(self.method.model),
        )

    def _target(self, index: int) -> OneTarget:
        return index if self.against is None else Difference(index, self.against)

    def _marked(
        self,
        order: Sequence[int],
        index: int,
        maps: np.ndarray,
        number: int,
        rest: Marked | None = None,
    ) -> Marked | None:
        """Return the first images that can still be read, and have the size of the first."""
        read: list[Tensor] = []
        for one in order:
            inputs = self._read(self.images, one)
            if inputs is not None and (not read or inputs.shape == read[0].shape):
                read.append(inputs)
            if len(read) == number or sum(map(Tensor.numel, read)) > _MOST_PIXELS:
                break
        return marked(self.method, read, self._target(index), maps, rest) if read else None

    def _others(self, index: int) -> list[Tensor]:
        """Return images of other classes, evenly spread over the data."""
        there = [n for n, label in enumerate(self.everything.labels) if label not in (index, -1)]
        step = max(len(there) / _OTHERS, 1)
        chosen = [there[int(n * step)] for n in range(min(_OTHERS, len(there)))]
        read = (self._read(self.everything, n) for n in chosen)
        return [inputs for inputs in read if inputs is not None]

    def _read(self, images: LabelledImages, number: int) -> Tensor | None:
        """Return an image; None: it can be read no longer."""
        try:
            return images.read(number)
        except SourceError:
            raise
        except Exception:  # its row says why, or it is gone since
            return None

    def _scatter(self, found: _Found) -> Scatter:
        count = len(found.members)
        generator = np.random.default_rng(self.seed)
        chosen = generator.permutation(count)[:_PICTURED]
        # Some of each group in any case.
        small = [
            np.flatnonzero(found.grouping.groups == n + 1)[:_SHOWN]
            for n in range(len(found.grouping.isolation))
        ]
        chosen = np.unique(np.concatenate([chosen, *small]))
        thumbnails = {}
        for n in chosen.tolist():
            inputs = self._read(self.images, int(found.members[n]))
            if inputs is not None:
                thumbnails[n] = thumbnail(inputs[0], shown_bands_of(self.method.model))
        return Scatter(
            *(found.grouping.components, found.grouping.groups),
            *(np.array([*thumbnails], dtype=int), [*thumbnails.values()]),
        )

    def image_rows(self, found: Sequence[_Found]) -> list[list[Any]]:
        """Return a row for each image, the headings first."""
        group = np.full(len(self.images), -1)
        distance = np.full(len(self.images), np.nan)
        for one in found:
            group[one.members] = one.grouping.groups
            distance[one.members] = one.grouping.distances
        rows: list[list[Any]] = [["image", "class", "predicted", "score", "group", "distance"]]
        for n, key in enumerate(self.images.keys):
            known = self.rows.predicted[n] >= 0
            rows.append(
                [
                    *(key, self.images.labels[n], self.rows.predicted[n] if known else None),
                    *(self.rows.scores[n], group[n] if known else None, distance[n]),
                ]
            )
        return rows


def _typical(grouping: Grouping, number: int) -> np.ndarray:
    """Return the images of a group, those nearest to its centre first."""
    members = np.flatnonzero(grouping.groups == number)
    if not len(members):
        return members
    components = grouping.components[members]
    distance = np.linalg.norm(components - np.median(components, axis=0), axis=1)
    return members[np.argsort(distance, kind="stable")]


def _effect(group: np.ndarray, rest: np.ndarray) -> float:
    """Return the difference of means in standard deviations of the rest; NaN where it has none."""
    deviation = float(np.std(rest, ddof=1)) if len(rest) > 1 else 0.0
    return float(group.mean() - rest.mean()) / deviation if deviation > 0 else float("nan")


def _difference(group: np.ndarray, rest: np.ndarray, seed: int) -> Estimate:
    """Return mean(group) − mean(rest), with its interval (percentile bootstrap of both)."""
    first, second = means(group[:, None], seed=seed)[0], means(rest[:, None], seed=seed + 1)[0]
    value = first.value - second.value
    # Independent means: the half widths add up as squares.
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Estimate(
        value,
        float(value - below),
        float(value + above),
        first.count,
        first.missing + second.missing,
    )
