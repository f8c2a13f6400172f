"""Read the folder that an evaluation wrote; one method at a time is held in memory."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from afmi.errors import AfmiError, UsageError, near_matches
from afmi.evaluation.folder import ERROR, ResultsFolder
from afmi.files import Location, location
from afmi.metrics.columns import Column, MetricFacts, percent, point
from afmi.specs import fold
from afmi.stores import RemotePath

__all__ = ["Images", "Measured", "Measurements", "Results"]


@dataclass(frozen=True)
class Images:
    """The pictures of an evaluation.

    Attributes:
        numbers: that pieces and examples call them by, int64 (n,).
        keys: their names.
        labels: the class of each, int64 (n,).
    """

    numbers: np.ndarray
    keys: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Measurements:
    """What was measured of one method.

    Attributes:
        values: for each name such as ``insertion/accuracy_auc`` the numbers of all pictures,
            float64 (n,), NaN where missing.
        errors: position of each picture that could not be read or explained, and why not.
        metric_errors: for each metric's key the same of the pictures that it failed on.
        done: which pictures have been tried, bool (n,).
    """

    values: dict[str, np.ndarray]
    errors: dict[int, str]
    metric_errors: dict[str, dict[int, str]]
    done: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What one metric measured of one method.

    Attributes:
        prefix: of the names of its values, such as ``insertion/``.
        fractions: the shares at which its curves have points.
        values: all that was measured of the method, by name, (n,) each, NaN where missing.
    """

    prefix: str
    fractions: Sequence[float]
    values: Mapping[str, np.ndarray]

    @property
    def percents(self) -> np.ndarray:
        """The fractions in percent, (P,)."""
        return np.array([percent(fraction) for fraction in self.fractions])

    def scalar(self, name: str) -> np.ndarray | None:
        """Return a value of each image, (n,)."""
        return self.values.get(self.prefix + name)

    def curve(self, name: str) -> np.ndarray | None:
        """Return a curve's values of each image, (n, P)."""
        points = [self.scalar(point(name, fraction)) for fraction in self.fractions]
        known = [values for values in points if values is not None]
        return np.stack(known, axis=1) if known and len(known) == len(points) else None

    def images(self, column: Column) -> np.ndarray | None:
        """Return the column's numbers before they are divided: (n,), or (n, P) of a curve."""
        read = self.scalar if column.kind == "scalar" else self.curve
        numbers = read(column.source)
        if numbers is not None and column.kind == "area":
            widths = np.diff(self.percents / 100)
            numbers = (widths * (numbers[:, 1:] + numbers[:, :-1]) / 2).sum(axis=1)
        if numbers is not None and column.among:
            chosen = self.scalar(column.among)
            return None if chosen is None else np.where(chosen == 1, numbers.T, np.nan).T
        return numbers

    def per_image(self, column: Column) -> np.ndarray | None:
        """Return the column's number of each image, or its curve; None where it has none."""
        numbers = self.images(column)
        if numbers is None or column.aggregate == "ratio of means":
            return None
        if column.per:
            below = self.scalar(column.per)
            if below is None:
                return None
            with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is left out
                numbers = (numbers.T / below).T
        return np.abs(numbers) if column.aggregate == "median size" else numbers


@dataclass(frozen=True)
class Results:
    """What an evaluation measured, as it lies in its folder.

    Attributes:
        files: where it lies.
        manifest: what was run, on what and with which parameters; see ``manifest.json``.
        images: the pictures.
    """

    files: ResultsFolder
    manifest: Mapping[str, Any]
    images: Images

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | RemotePath) -> Results:
        """Open a folder that `afmi evaluate` wrote, finished or not; a URL names one in a store.

        Raises:
            UsageError: when there is no such folder, or no evaluation in it.
            AfmiError: when one of its files is damaged.
        """
        folder = location(folder)
        if not folder.is_dir():
            raise UsageError(f"no folder is called '{folder}'; give one that afmi evaluate wrote")
        files = ResultsFolder(folder)
        if not files.manifest_path.is_file():
            raise UsageError(
                f"'{folder}' holds no evaluation (no {files.manifest_path.name}); give a folder "
                "that afmi evaluate wrote"
            )
        results = cls(files, files.manifest(), _images(files.read_images()))
        if next(files.piece_paths(), None) is None:
            if results.refused and not results.methods:
                label, why = next(iter(results.refused.items()))
                raise UsageError(f"'{folder}' holds no measurements: {label} was refused ({why})")
            raise UsageError(
                f"'{folder}' holds no measurements yet; run afmi evaluate into it until the first "
                "piece is done"
            )
        return results

    @property
    def folder(self) -> Location:
        """Where it lies."""
        return self.files.path

    @cached_property
    def ended(self) -> bool:
        """Whether these are all pictures: False while a stream has not been read to its end."""
        return self.files.ended()

    @property
    def methods(self) -> tuple[str, ...]:
        """Labels of the methods, in the manifest's order, without the refused ones."""
        listed = self.manifest["methods"]
        return tuple(label for label, facts in listed.items() if not facts.get("refused"))

    @property
    def refused(self) -> dict[str, str]:
        """Unsupported methods and reasons."""
        listed = self.manifest["methods"].items()
        return {label: str(facts["refused"]) for label, facts in listed if facts.get("refused")}

    def facts(self, method: str) -> Mapping[str, Any]:
        """Return what the manifest says of a method: class, key, parameters, paper, family.

        Raises:
            UsageError: when the evaluation has no such method; near matches are listed.
        """
        listed = self.manifest["methods"]
        if method not in listed:
            near = near_matches(method, listed) or f"; there are {', '.join(listed)}"
            raise UsageError(f"this evaluation has no method called {method!r}{near}")
        return listed[method]

    def chosen(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the labels of methods that a user named, in the manifest's order.

        Args:
            names: labels or keys, in any spelling: ``A-FMI``, ``afmi``; None: all.

        Raises:
            UsageError: when none is named, or one is unknown or was refused.
        """
        if names is None:
            return self.methods
        refused = self.refused
        labels: dict[str, str] = {}
        for label in self.manifest["methods"]:
            labels.setdefault(fold(self._key(label)), label)
            labels[fold(label)] = label
        chosen = set()
        for name in names:
            if fold(name) not in labels:
                self.facts(name)  # raises, with near matches
            label = labels.get(fold(name), name)
            if label in refused:
                raise UsageError(f"{label} was not measured: {refused[label]}")
            chosen.add(label)
        if not chosen:
            raise UsageError(f"expected one method or more, out of {', '.join(self.methods)}")
        return tuple(label for label in self.methods if label in chosen)

    def read(self, method: str) -> Measurements:
        """Read all that was measured of a method.

        Where two pieces have the same picture, the one that begins later counts.

        Raises:
            UsageError: when the evaluation has no such method.
            AfmiError: when a piece is damaged, or of another method, run or list of pictures.
        """
        count = len(self.images)
        values: dict[str, np.ndarray] = {}
        errors: dict[str, dict[int, str]] = {}
        done = np.zeros(count, bool)
        for path in self.files.piece_paths(self._key(method)):
            piece = self.files.read_piece(path, method, self.facts(method))
            places = self._places(piece["image"].to_numpy(), path)
            done[places] = True
            metric = piece["metric"].combine_chunks().dictionary_encode()
            codes = metric.indices.to_numpy(zero_copy_only=False)
            numbers, notes = piece["value"].to_numpy(), piece["note"].to_pylist()
            for code, name in enumerate(metric.dictionary.to_pylist()):
                rows = np.flatnonzero(codes == code)
                metric_name, _, last = name.rpartition("/")
                if last == ERROR:
                    reasons = {int(places[row]): notes[row] or "no reason" for row in rows}
                    errors.setdefault(metric_name, {}).update(reasons)
                elif len(rows):
                    column = values.setdefault(name, np.full(count, np.nan))
                    column[places[rows]] = numbers[rows]
        return Measurements(values, errors.pop("", {}), errors, done)

    def values(self, method: str) -> dict[str, np.ndarray]:
        """Return each value's name with its numbers, float64 (n,), NaN where missing."""
        return self.read(method).values

    def errors(self, method: str) -> dict[int, str]:
        """Return the position of each picture that failed, and why."""
        return self.read(method).errors

    def complete(self, method: str) -> float:
        """Return the share of the pictures that are done, failed ones included: 0 to 1."""
        return float(self.read(method).done.mean()) if len(self.images) else 1.0

    @cached_property
    def metrics(self) -> dict[str, MetricFacts]:
        """What each metric declares of its values, by the first part of their names."""
        recorded = self.manifest["metrics"]
        return {key: MetricFacts.from_dict(record) for key, record in recorded.items()}

    def metric_label(self, key: str) -> str:
        """Return what tables call a metric, with the parameters that set it apart."""
        _, bracket, parameters = key.partition("(")
        if key not in self.metrics:
            return key
        return self.metrics[key].name + (f" ({parameters}" if bracket else "")

    def example(self, number: int, method: str, kind: str) -> Location:
        """Return where an example's ``map`` or ``insertion`` lies, if it was drawn."""
        return self.files.example_path(number, self._key(method), kind)

    @cached_property
    def examples(self) -> tuple[int, ...]:
        """The pictures that examples were drawn of, by number, in order."""
        return self.files.examples()

    def photograph(self, number: int) -> Location:
        """Return where the picture itself lies that examples were drawn of."""
        return self.files.example_path(number, "", "picture")

    @cached_property
    def positions(self) -> dict[int, int]:
        """The position of each picture by its number."""
        return {int(number): place for place, number in enumerate(self.images.numbers)}

    def _repr_html_(self) -> str:
        """Return a table for notebooks: what each method's images say at their middle."""
        heads = [(key, facts) for key, facts in self.metrics.items()]
        titles = ["method", "images", "failed"]
        titles += [f"{self.metric_label(k)}: {f.headline.title}" for k, f in heads]
        rows = [titles]
        for method in self.methods:
            measured = self.read(method)
            cells = [_average(Measured(f"{k}/", f.fractions, measured.values), f) for k, f in heads]
            done = f"{int(measured.done.sum())} of {len(self.images)}"
            rows.append([method, done, str(len(measured.errors)), *cells])
        refused = [f"{method} was not measured: {why}" for method, why in self.refused.items()]
        return _html_table(rows, f"Evaluation in {self.folder}; afmi report tells more", refused)

    def _key(self, method: str) -> str:
        return str(self.facts(method)["key"])

    def _places(self, numbers: np.ndarray, path: Location) -> np.ndarray:
        try:
            return np.array([self.positions[int(number)] for number in numbers], np.int64)
        except KeyError as error:
            raise AfmiError(
                f"'{path}' holds picture {error.args[0]}, which {self.files.images_path.name} "
                "lacks; delete the piece and run the evaluation again"
            ) from error


def _images(table: pa.Table) -> Images:
    return Images(
        table["image"].to_numpy().astype(np.int64),
        tuple(table["key"].to_pylist()),
        table["label"].to_numpy().astype(np.int64),
    )


def _average(measured: Measured, facts: MetricFacts) -> str:
    column = facts.headline
    numbers = None if column.kind == "curve" else measured.per_image(column)
    known = np.empty(0) if numbers is None else numbers[np.isfinite(numbers)]
    if not len(known):
        return "–"
    middle = float(known.mean() if column.aggregate == "mean" else np.median(known))
    return f"{middle:.3g}".replace("-", "−") + (f" {column.unit}" if column.unit else "")


def _html_table(rows: Sequence[Sequence[str]], caption: str, notes: Sequence[str]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows[1:])
    table = f"<table><caption>{html.escape(caption)}</caption>{row(rows[0], 'th')}{body}</table>"
    return table + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
