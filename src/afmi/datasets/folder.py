"""The folder of a data set's explanations: where everything is in it, and how it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from afmi.datasets.columns import Layout
from afmi.errors import AfmiError, SourceError, UsageError
from afmi.evaluation.directory import (
    check_same_run,
    check_usable,
    locked,
    manifest_bytes,
    storable,
    sweep,
)
from afmi.evaluation.manifest import run_digest
from afmi.evaluation.tables import (
    is_whole,
    read_about,
    read_table_file,
    source_of,
    table_bytes,
)
from afmi.files import Location, parse_json, write_files

__all__ = ["DatasetFolder"]

_PARTS = {"run": dict, "record": dict, "layout": dict, "preparation": dict, "source": dict}


@dataclass(frozen=True)
class DatasetFolder:
    """The explanations of one run: one network, one method, one data set.

    Every file is seen whole or not at all. A piece that two processes finish is the same file.

    In a store (`afmi.files.location`) one process writes at a time: nothing is locked there. Which
    pieces are there is asked once.

    Args:
        path: where they are.
    """

    path: Location

    @property
    def manifest_path(self) -> Location:
        """The file that says what was run."""
        return self.path / "manifest.json"

    def piece_path(self, start: int) -> Location:
        """The table that begins with image ``start``."""
        return self.path / "pieces" / f"{start:08d}.parquet"

    def picture_path(self, number: int) -> Location:
        """The overlay of an image, if it was drawn."""
        return self.path / "pictures" / f"{number:08d}.png"

    def starts(self) -> Iterator[int]:
        """Yield the first images of the pieces that are there, in order."""
        names = (path.stem for path in self.path.glob("pieces/*.parquet"))
        return iter(sorted(int(name) for name in names if name.isdecimal()))

    def known(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the manifest, where this run began here before; None: the folder is free.

        Raises:
            UsageError: when the folder holds another run's results, or other files.
        """
        check_usable(self.path, self.manifest_path)
        if not self.manifest_path.exists():
            return None
        manifest = self.read_manifest()
        check_same_run(self.path, manifest["run"], json.loads(json.dumps(run)))
        sweep(self.path)
        return manifest

    def begin(self, manifest: Mapping[str, Any]) -> DatasetFolder:
        """Enter what is run, unless another process just did.

        Raises:
            AfmiError: when it cannot be written.
        """
        with locked(self.path):
            if self.known(manifest["run"]) is None:
                write_files({self.manifest_path: manifest_bytes(dict(manifest))})
        return DatasetFolder(self.path)

    def end(self, images: int) -> None:
        """Enter how many images a stream had.

        Raises:
            UsageError: when an earlier call found more, or another number.
        """
        with locked(self.path):
            manifest = self.read_manifest()
            before = manifest["images"]
            further = [start for start in self.starts() if start >= images]
            if before not in (None, images) or further:
                raise UsageError(
                    f"{str(self.path)!r} holds explanations of other data: there were "
                    f"{before or f'more than {further[0]}'} images, now {images}; give the same "
                    "data, or choose another --out"
                )
            manifest["images"] = images
            write_files({self.manifest_path: manifest_bytes(manifest)})

    def read_manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            AfmiError: when it cannot be read.
        """
        try:
            manifest = parse_json(self.manifest_path.read_bytes(), constants=False)
            for part, kind in _PARTS.items():
                if not isinstance(manifest[part], kind):
                    raise ValueError(f"{part} is no {kind.__name__}")
            if not isinstance(manifest["images"], (int, type(None))):
                raise ValueError("images is no whole number")
            Layout.from_json(manifest["layout"])
        except SourceError:
            raise
        except (OSError, ValueError, LookupError, TypeError) as error:
            why = " ".join(str(error).split())[:160]
            raise AfmiError(
                f"'{self.manifest_path}' says of no explanations of a data set ({why}); expected "
                "the folder of afmi.explain_dataset (--out)"
            ) from error
        return manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was run."""
        return self.read_manifest()

    @cached_property
    def layout(self) -> Layout:
        """The columns."""
        return Layout.from_json(self.manifest["layout"])

    @cached_property
    def _about(self) -> dict[str, Any]:
        """Return what every piece says of itself."""
        manifest = self.manifest
        about = {
            "table": "explanations",
            "run": run_digest({"run": manifest["run"], "metrics": {}}),
            "layout": manifest["layout"],
            "record": manifest["record"],
        }
        return json.loads(json.dumps(about))

    def _about_piece(self, start: int, keys: Sequence[str]) -> dict[str, Any]:
        listed = json.dumps([storable(key) for key in keys])
        return {
            **self._about,
            "first": start,
            "last": start + len(keys) - 1,
            "keys": hashlib.blake2b(listed.encode(), digest_size=16).hexdigest(),
        }

    @cached_property
    def _listed(self) -> frozenset[int]:
        return frozenset(self.starts())

    def failed(self, start: int, keys: Sequence[str]) -> int | None:
        """Return how many images of a finished piece failed; None: the piece is to be done.

        One that a crash of the machine left empty or cut off is not finished.

        Raises:
            UsageError: when it is one of other images.
        """
        if not isinstance(self.path, Path) and start not in self._listed:
            return None
        about = self.read_about(start)
        if about is None:
            return None
        wanted = self._about_piece(start, keys)
        wrong = next((part for part in wanted if about.get(part) != wanted[part]), None)
        if wrong is not None:
            raise UsageError(
                f"'{self.piece_path(start)}' is of other data or of another run (its {wrong} differ"
                f"{'' if wrong.endswith('s') else 's'}); give the same data in the same order, or "
                "choose another --out"
            )
        return int(about["failed"])

    def write_piece(self, start: int, table: pa.Table, pictures: Mapping[int, bytes]) -> None:
        """Keep a finished piece.

        Args:
            start: its first image.
            table: its rows.
            pictures: overlays as PNG files by the images' numbers.

        Raises:
            AfmiError: when it cannot be written; nothing that was there is lost.
        """
        failed = len(table) - table["error"].null_count
        about = {**self._about_piece(start, table["key"].to_pylist()), "failed": failed}
        files: dict[Location, Any] = {self.picture_path(n): png for n, png in pictures.items()}
        # Last, so that a piece that is there has its pictures.
        files[self.piece_path(start)] = table_bytes(
            table.columns, table.schema, about, dictionaries=False
        )
        write_files(files)

    def read_about(self, start: int) -> dict[str, Any] | None:
        """Read what a piece says of itself; None: it is missing, empty, cut off or damaged."""
        source = source_of(self.piece_path(start))
        return read_about(source) if is_whole(source) else None

    def read_piece(self, start: int) -> pa.Table:
        """Read a piece's table.

        Raises:
            AfmiError: when it is damaged, or of another run.
        """
        path = self.piece_path(start)
        table, about = read_table_file(path, self.layout.schema, "the run does it again")
        if any(about.get(part) != value for part, value in self._about.items()):
            raise AfmiError(f"'{path}' is of another run than the manifest's; move it away")
        return table
