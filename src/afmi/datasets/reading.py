"""Read the explanations of a data set: one after the other, by key, or as a table."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from afmi.batching import Unexplained
from afmi.data.labelled import LabelledImages, open_images
from afmi.data.preparing import prepared
from afmi.datasets.columns import compared_of, map_of
from afmi.datasets.folder import DatasetFolder
from afmi.errors import AfmiError, UsageError
from afmi.evaluation.directory import storable
from afmi.explanation import Explanation, shown_image
from afmi.files import Location, location
from afmi.network.classifier import preparing, shown_bands_of
from afmi.pictures.maps import upsample
from afmi.stores import RemotePath
from afmi.targets import Class, Target, recorded_target

__all__ = ["Explanations", "open_explanations"]

_GREY = 0.5


def open_explanations(
    folder: str | os.PathLike[str] | RemotePath,
    data: Any = None,
    model: nn.Module | None = None,
) -> Explanations:
    """Open what `afmi.explain_dataset` wrote; nothing is read before it is needed.

    Args:
        folder: its ``out``, a folder or a URL.
        data: the images that were explained, as they were given. None: where they were found, for
            those that have a place.
        model: prepares the images again. None: they are prepared as they were for the run, but for
            a reader of the user's own.

    Raises:
        AfmiError: when it is no such folder.
    """
    return Explanations(DatasetFolder(location(folder)), data, model)


class Explanations:
    """The explanations of a data set, in the order of its images.

    Iterating gives for each image its `Explanation`, or what is wrong with it: an `Unexplained`.
    An explanation's map is brought to the image's size as the method does; its image is read
    again where that is possible, and else is grey.

    Args:
        folder: where they are.
        data: see `open_explanations`.
        model: see `open_explanations`.
    """

    def __init__(self, folder: DatasetFolder, data: Any, model: nn.Module | None) -> None:
        self._folder = folder
        self._manifest = folder.manifest
        self._images = _Images(self._manifest, data, model)

    @property
    def path(self) -> Location:
        """The folder, or its place in a store."""
        return self._folder.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What was run: network, data, method, and what is the same for all images."""
        return self._manifest

    @property
    def planned(self) -> int | None:
        """How many images the data have; None: of a stream that has not ended, nobody knows."""
        return self._manifest["images"]

    @property
    def complete(self) -> bool:
        """Whether all images have their rows."""
        return len(self) == self.planned

    @functools.cached_property
    def _counts(self) -> dict[int, int]:
        """Rows of the pieces by their first images."""
        counts = {}
        for start in self._folder.starts():
            about = self._folder.read_about(start)
            if about is None:
                raise AfmiError(
                    f"'{self._folder.piece_path(start)}' is damaged; delete it, so that the run "
                    "does it again"
                )
            counts[start] = about["last"] - start + 1
        return counts

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Explanation | Unexplained]:
        for start, table in self._pieces():
            yield from (self._result(start + n, row) for n, row in enumerate(table.to_pylist()))

    def __getitem__(self, key: str | int) -> Explanation | Unexplained:
        """Return what came of an image, by its key or its number among those that have rows.

        Raises:
            KeyError: there is no such key.
            IndexError: there are not so many.
        """
        start, n = self._places[storable(key)] if isinstance(key, str) else self._place(key)
        (row,) = self._piece(start).slice(n, 1).to_pylist()
        return self._result(start + n, row)

    def _place(self, number: int) -> tuple[int, int]:
        left = number + len(self) if number < 0 else number
        for start, count in self._counts.items() if left >= 0 else ():
            if left < count:
                return start, left
            left -= count
        raise IndexError(f"expected a number below {len(self)}, got {number}")

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {
            key: (start, n)
            for start, table in self._pieces()
            for n, key in enumerate(table["key"].to_pylist())
        }

    @functools.cached_property
    def _piece(self) -> Any:
        return functools.lru_cache(maxsize=2)(self._folder.read_piece)

    def _pieces(self) -> Iterator[tuple[int, pa.Table]]:
        for start in self._counts:
            yield start, self._folder.read_piece(start)

    @property
    def keys(self) -> tuple[str, ...]:
        """The images' keys, in order."""
        return tuple(self._places)

    @functools.cached_property
    def errors(self) -> dict[str, str]:
        """By key why images could not be read or explained."""
        return {
            row["key"]: row["error"]
            for _, table in self._pieces()
            for row in table.select(["key", "error"]).to_pylist()
            if row["error"] is not None
        }

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows a piece at a time, for what does not fit into memory."""
        return (table for _, table in self._pieces())

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows at once.

        Args:
            columns: the ones wanted; None: all. Where each map is multiplied by its ``scale``, its
                numbers are those of the method.

        Raises:
            UsageError: there is no such column.
        """
        schema = self._folder.layout.schema
        wanted = list(schema.names if columns is None else columns)
        unknown = [name for name in wanted if name not in schema.names]
        if unknown:
            raise UsageError(
                f"expected columns among {', '.join(schema.names)}, got {', '.join(unknown)}"
            )
        empty = schema.empty_table().select(wanted)
        return pa.concat_tables([empty, *(table.select(wanted) for table in self.tables())])

    def _result(self, number: int, row: Mapping[str, Any]) -> Explanation | Unexplained:
        record, layout = self._manifest["record"], self._folder.layout
        source = self._images.file(row["key"])
        if row["error"] is not None:
            name, reason = source or row["key"], row["error"]
            named = reason if name in reason else f"{name!r} cannot be explained: {reason}"
            return Unexplained(number, source, named)
        if not layout.maps:
            raise UsageError(
                f"{str(self.path)!r} holds no maps, and so no explanations; table() has all that "
                "was kept (explain_dataset(…, maps=True) keeps maps)"
            )
        size = tuple(layout.size or row["size"])
        coarse = map_of(row["scale"], np.array(row["map"]), layout.map or row["map_size"])
        constants = ("signed", "unit", "method", "parameters", "layer", "reference", "model")
        constants += ("fingerprint",)
        return Explanation(
            image=self._images.image(row["key"], size),
            map=upsample(torch.from_numpy(coarse)[None, None], size)[0, 0],
            target=self._target(row, size),
            label=row["label"],
            score=row["score"],
            probability=row["probability"],
            **self._predicted(row),
            residual=row["residual"],
            agreement=row["agreement"],
            source=source,
            compared=compared_of(row.get("compared")),
            ends=tuple(record["ends"]),
            preparation=dict(self._manifest["preparation"]),
            versions=dict(record["versions"]),
            **{name: record[name] for name in constants},
        )

    def _target(self, row: Mapping[str, Any], size: tuple[int, ...]) -> Target:
        if not self._folder.layout.named:
            return Class(row["class"])
        return recorded_target(row["target"], row["label"], size)

    def _predicted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        names = ("predicted", "predicted_label", "predicted_probability")
        if self._folder.layout.predicted:
            return {name: row[name] for name in names}
        if row["class"] is None:
            return dict.fromkeys(names)
        return dict(zip(names, (row["class"], row["label"], row["probability"]), strict=True))

    def __repr__(self) -> str:
        of = "" if self.planned in (None, len(self)) else f" of {self.planned}"
        return f"Explanations({str(self.path)!r}, {len(self)}{of} images)"


class _Images:
    """Images of a data set, read again.

    Args:
        manifest: of the run.
        data: see `open_explanations`.
        model: see `open_explanations`.
    """

    def __init__(self, manifest: Mapping[str, Any], data: Any, model: nn.Module | None) -> None:
        self._source = manifest["source"]
        self._channels = manifest["record"]["channels"]
        self._preparation = manifest["preparation"]
        self._data = data
        self._model = model

    def file(self, key: str) -> str | None:
        """Return an image's file; None: it is none of its own."""
        root = self._source["root"]
        return None if root is None else str(Path(root) / key)

    def image(self, key: str, size: tuple[int, ...]) -> Tensor:
        """Return an image as records hold it, grey where it cannot be had."""
        shown = None
        try:
            inputs = self._read(key)
            if tuple(inputs.shape[2:]) == size:
                shown = shown_image(inputs[0], shown_bands_of(self._preparer))
        except Exception:  # moved, damaged or replaced meanwhile; what is known of it is kept
            pass
        if shown is None:
            channels = 3 if len(size) == 2 else self._channels
            shown = torch.full((channels, *size), _GREY, dtype=torch.float32, device="cpu")
        return shown

    def _read(self, key: str) -> Tensor:
        file = self.file(key)
        if self._data is None and file is not None:
            return prepared(self._preparer, Path(file))
        listed = self._listed
        if listed is None:
            raise AfmiError("the images came one after the other")
        return listed.read(self._numbers[key])

    @functools.cached_property
    def _preparer(self) -> nn.Module:
        if self._model is not None:
            return self._model
        return preparing(self._preparation)

    @functools.cached_property
    def _listed(self) -> LabelledImages | None:
        data = self._source["data"] if self._data is None else self._data
        if data is None:
            return None
        key = self._source["image_key"]
        try:
            return open_images(data, self._preparer, labelled=False, image_key=key)
        except AfmiError:  # a stream
            return None

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        assert self._listed is not None
        return {storable(key): number for number, key in enumerate(self._listed.keys)}
