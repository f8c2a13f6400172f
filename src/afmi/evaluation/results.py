"""Read the folder that an evaluation wrote; one method at a time is held in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from afmi.errors import AfmiError, UsageError, near_matches
from afmi.metrics.columns import MetricFacts

__all__ = ["Images", "Measurements", "Results"]

_ERROR = "error"


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
        done: which pictures have been tried, bool (n,).
    """

    values: dict[str, np.ndarray]
    errors: dict[int, str]
    done: np.ndarray


@dataclass(frozen=True)
class Results:
    """What an evaluation measured, as it lies in its folder.

    Attributes:
        folder: where it lies.
        manifest: what was run, on what and with which parameters; see ``manifest.json``.
        images: the pictures.
    """

    folder: Path
    manifest: Mapping[str, Any]
    images: Images

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Results:
        """Open a folder that `afmi evaluate` wrote, finished or not.

        Raises:
            UsageError: when there is no such folder, or no evaluation in it.
            AfmiError: when one of its files is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"no folder is called '{folder}'; give one that afmi evaluate wrote")
        path = folder / "manifest.json"
        if not path.is_file():
            raise UsageError(
                f"'{folder}' holds no evaluation (no manifest.json); give a folder that afmi "
                "evaluate wrote"
            )
        try:
            manifest = json.loads(path.read_bytes())
            parts = ("run", "methods", "metrics")
            sound = all(isinstance(manifest[part], dict) for part in parts)
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise AfmiError(f"'{path}' is damaged; choose another folder")
        results = cls(folder, manifest, _read_images(folder / "images.parquet"))
        if next(folder.glob("pieces/*/*.parquet"), None) is None:
            if results.refused and not results.methods:
                label, why = next(iter(results.refused.items()))
                raise UsageError(f"'{folder}' holds no measurements: {label} was refused ({why})")
            raise UsageError(
                f"'{folder}' holds no measurements yet; run afmi evaluate into it until the first "
                "piece is done"
            )
        return results

    @property
    def methods(self) -> tuple[str, ...]:
        """Labels of the methods, in the manifest's order, without the refused ones."""
        listed = self.manifest["methods"]
        return tuple(label for label, facts in listed.items() if not facts.get("refused"))

    @property
    def refused(self) -> dict[str, str]:
        """Methods that the network cannot have, and why not."""
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
        by_key: dict[str, str] = {}
        for label in self.manifest["methods"]:
            by_key.setdefault(_fold(self._key(label)), label)
            by_key[_fold(label)] = label
        found = set()
        for name in names:
            label = by_key.get(_fold(name))
            if label is None:
                label = name
                self.facts(name)  # raises, with near matches
            if label in refused:
                raise UsageError(f"{label} was not measured: {refused[label]}")
            found.add(label)
        if not found:
            raise UsageError(f"expected one method or more, out of {', '.join(self.methods)}")
        return tuple(label for label in self.methods if label in found)

    def read(self, method: str) -> Measurements:
        """Read all that was measured of a method.

        Where two pieces tell of the same picture, the one that begins later counts.

        Raises:
            UsageError: when the evaluation has no such method.
            AfmiError: when a piece is damaged.
        """
        count = len(self.images)
        values: dict[str, np.ndarray] = {}
        errors: dict[int, str] = {}
        done = np.zeros(count, bool)
        for path in sorted(self._pieces(method).glob("*.parquet")):
            piece = _read_piece(path)
            places = self._places(piece.numbers, path)
            done[places] = True
            for code, name in enumerate(piece.names):
                rows = np.flatnonzero(piece.codes == code)
                if name == _ERROR:
                    errors |= {int(places[row]): piece.notes[row] or "no reason" for row in rows}
                elif len(rows):
                    column = values.setdefault(name, np.full(count, np.nan))
                    column[places[rows]] = piece.values[rows]
        return Measurements(values, errors, done)

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
        return self.metrics[key].name + (f" ({parameters}" if bracket else "")

    def example(self, number: int, method: str, kind: str) -> Path:
        """Return where an example's ``map`` or ``insertion`` lies, if it was drawn."""
        return self.folder / "examples" / f"{number:08d}-{self._key(method)}-{kind}.png"

    @cached_property
    def examples(self) -> tuple[int, ...]:
        """The pictures that examples were drawn of, by number, in order."""
        found = (self.folder / "examples").glob("*-picture.png")
        numbers = (path.name.partition("-")[0] for path in found)
        return tuple(sorted(int(number) for number in numbers if number.isdecimal()))

    def photograph(self, number: int) -> Path:
        """Return where the picture itself lies that examples were drawn of."""
        return self.folder / "examples" / f"{number:08d}-picture.png"

    @cached_property
    def positions(self) -> dict[int, int]:
        """The position of each picture by its number."""
        return {int(number): place for place, number in enumerate(self.images.numbers)}

    def _key(self, method: str) -> str:
        return str(self.facts(method)["key"])

    def _pieces(self, method: str) -> Path:
        return self.folder / "pieces" / self._key(method)

    def _places(self, numbers: np.ndarray, path: Path) -> np.ndarray:
        try:
            return np.array([self.positions[int(number)] for number in numbers], np.int64)
        except KeyError as error:
            raise AfmiError(
                f"'{path}' tells of picture {error.args[0]}, which images.parquet lacks; delete "
                "the piece and run the evaluation again"
            ) from error


@dataclass(frozen=True)
class _Piece:
    numbers: np.ndarray
    codes: np.ndarray
    names: list[str]
    values: np.ndarray
    notes: list[str | None]


def _read_piece(path: Path) -> _Piece:
    import pyarrow

    table = _read_table(path, ("image", "metric", "value", "note"), "the run redoes it")
    try:
        # One dictionary for all of it, however many row groups it has.
        metric = table["metric"].cast(pyarrow.string()).combine_chunks().dictionary_encode()
        return _Piece(
            table["image"].to_numpy(),
            metric.indices.to_numpy(zero_copy_only=False),
            metric.dictionary.to_pylist(),
            table["value"].cast(pyarrow.float64()).to_numpy(),
            table["note"].to_pylist(),
        )
    except (pyarrow.ArrowException, ValueError) as error:
        raise _damaged(path, error, "the run redoes it") from error


def _read_images(path: Path) -> Images:
    if not path.is_file():
        raise AfmiError(f"'{path}' is missing; run afmi evaluate into this folder again")
    table = _read_table(path, ("image", "key", "label"), "the run writes it again")
    return Images(
        table["image"].to_numpy().astype(np.int64),
        tuple(table["key"].to_pylist()),
        table["label"].to_numpy().astype(np.int64),
    )


def _read_table(path: Path, columns: Sequence[str], remedy: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(path, error, remedy) from error
    return table


def _damaged(path: Path, error: Exception, remedy: str) -> AfmiError:
    why = " ".join(str(error).split())[:120]
    return AfmiError(f"'{path}' is damaged ({why}); delete it, so that {remedy}")


def _fold(name: str) -> str:
    folded = name.casefold().replace("+", "plus").replace("×", "x")
    return "".join(c for c in folded if c.isalnum())
