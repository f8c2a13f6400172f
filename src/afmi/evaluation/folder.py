"""The folder of an evaluation: where everything is in it, and how it is written and read.

No other module knows a file's name or a table's columns, but `afmi.evaluation.image_list` those of
the list of pictures. Nothing here needs PyTorch, so a report does without its import, which takes
seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from afmi.errors import AfmiError, SourceError, UsageError
from afmi.evaluation.directory import (
    check_belongs,
    check_same_run,
    check_usable,
    locked,
    manifest_bytes,
    sweep,
)
from afmi.evaluation.image_list import ImageList
from afmi.evaluation.manifest import differences, parse_manifest, run_digest
from afmi.evaluation.tables import (
    is_whole,
    read_about,
    read_table_file,
    source_of,
    table_bytes,
)
from afmi.files import Location, check_length, write_files

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["ERROR", "Drawings", "ResultsFolder", "Row"]

ERROR = "error"
"""The metric of the rows that say why a picture failed; ``<metric>/error``: why a metric did."""

Row = tuple[int, str, float, str | None]
"""(image, metric, value, note): a line of a piece."""

Drawings = Mapping[int, Mapping[str, "PIL.Image.Image"]]
"""For each example its drawings by kind: ``picture``, ``map``, ``insertion``."""

_PIECE = pa.schema(
    [
        ("image", pa.int32()),
        ("method", pa.dictionary(pa.int16(), pa.string())),
        ("metric", pa.dictionary(pa.int16(), pa.string())),
        ("value", pa.float64()),
        ("note", pa.string()),
    ]
)
_FIXED = ("class", "code", "parameters", "images_per_piece")
"""What must stay the same of a method, for its pieces to be of one kind."""
_PICTURE = "picture"  # the kind of drawing that is the same for every method


@dataclass(frozen=True)
class ResultsFolder:
    """The results of one run: one network, one set of pictures, one set of metrics.

    Several processes may work in one folder. Every file is seen whole or not at all, and a piece
    that two of them finish has the same numbers but for its seconds and bytes, so it does not
    matter whose stays. The manifest is read, changed and replaced by one process at a time where
    the system can lock files (all but a few network file systems); where it cannot, a method that
    another process entered in the same few milliseconds may go missing from it, and `evaluate`
    enters it again as soon as the method is done.

    In a store (`afmi.files.location`) one process writes at a time: nothing is locked there. An
    object is put whole, and so is never seen half. Which pieces are there is asked once a method.

    Args:
        path: where the results are.
    """

    path: Location
    _listed: dict[str, set[str]] = field(default_factory=dict, compare=False, repr=False)
    """In a store, for each method's key the names of its pieces."""

    @property
    def manifest_path(self) -> Location:
        """The file that says what was run."""
        return self.path / "manifest.json"

    @property
    def images_path(self) -> Location:
        """The table of the pictures, once they are all there."""
        return self._images.path

    def piece_path(self, key: str, start: int) -> Location:
        """The table of a method's piece that begins with image ``start``."""
        return self.path / "pieces" / key / f"{start:08d}.parquet"

    def piece_paths(self, key: str = "*") -> Iterator[Location]:
        """The finished pieces of a method, in order; by default those of all methods."""
        return iter(sorted(self.path.glob(f"pieces/{key}/*.parquet")))

    def example_path(self, image: int, key: str, kind: str) -> Location:
        """Where a drawing of an example lies, if it was drawn.

        Args:
            image: the picture's number.
            key: of the method; does not matter for the picture itself.
            kind: ``picture``, ``map`` or ``insertion``.
        """
        parts = [f"{image:08d}", kind] if kind == _PICTURE else [f"{image:08d}", key, kind]
        return self.path / "examples" / f"{'-'.join(parts)}.png"

    def examples(self) -> tuple[int, ...]:
        """The numbers of the pictures that examples were drawn of, in order."""
        names = (path.name for path in self.path.glob(f"examples/*-{_PICTURE}.png"))
        numbers = (name.partition("-")[0] for name in names)
        return tuple(sorted(int(number) for number in numbers if number.isdecimal()))

    @classmethod
    def begin(
        cls,
        path: Location,
        run: Mapping[str, Any],
        images: tuple[Sequence[str], Sequence[int]] | None,
        about: Mapping[str, Any],
    ) -> ResultsFolder:
        """Make the folder of a run, or open the one that it began in.

        Args:
            path: where the results are, or will be.
            run: what identifies the run; all of it must be as it was.
            images: key and label of each picture; None: they come later, by `enter_images`.
            about: further parts of the manifest, kept from the call that began the run;
                ``metrics`` among them.

        Raises:
            UsageError: when the folder holds another run's results, or other files.
            AfmiError: when it cannot be written.
        """
        folder = cls(path)
        identity = json.loads(json.dumps(run))
        check_usable(path, folder.manifest_path)
        with locked(path):
            if folder.manifest_path.exists():
                check_same_run(path, folder.manifest()["run"], identity)
            else:
                manifest = {"run": identity, "methods": {}, **about}
                write_files({folder.manifest_path: manifest_bytes(manifest)})
            if images is not None:
                folder._images.write(*images)
        sweep(path)
        return folder

    def enter_images(
        self, start: int, keys: Sequence[str], labels: Sequence[int], *, ended: bool
    ) -> None:
        """Enter the next pictures of a stream; those that are known already must agree.

        Args:
            start: the number of the first; those before it were entered.
            keys: of them.
            labels: the class of each.
            ended: whether no more will come.

        Raises:
            UsageError: another run into this folder had other pictures, or another number.
            AfmiError: when they cannot be written.
        """
        with locked(self.path):
            self._images.enter(start, keys, labels, ended=ended)

    def ended(self) -> bool:
        """Tell whether the pictures are all: False while those of a stream are still to come."""
        return self._images.ended()

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            AfmiError: when it cannot be read.
        """
        try:
            if not self.manifest_path.is_file():
                raise ValueError("it is no file")
            return parse_manifest(self.manifest_path.read_bytes())
        except SourceError:
            raise
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())[:160]
            raise AfmiError(
                f"'{self.manifest_path}' is damaged ({why}); choose another folder"
            ) from error

    def add_method(self, label: str, entry: Mapping[str, Any]) -> None:
        """Enter a method, unless it is there, or note that it cannot be used (``refused``).

        Raises:
            UsageError: when it is there with other parameters.
            AfmiError: when it cannot be written, or the paths of its files are too long.
        """
        added = json.loads(json.dumps(entry))
        for path in (
            self.piece_path(key := entry["key"], 0),
            self.example_path(0, key, "insertion"),
        ):
            check_length(path)
        with locked(self.path):
            manifest = self.manifest()
            known = manifest["methods"].get(label)
            if known == added:
                return
            fixed = [{key: part.get(key) for key in _FIXED} for part in (known or added, added)]
            different = differences(*fixed)
            if different:
                raise UsageError(
                    f"{str(self.path)!r} holds results of {label} with other settings "
                    f"({different}); choose another --out"
                )
            manifest["methods"][label] = added
            write_files({self.manifest_path: manifest_bytes(manifest)})

    def has_piece(self, label: str, entry: Mapping[str, Any], start: int) -> bool:
        """Tell whether a method's piece that begins with image ``start`` is finished.

        One that a crash of the machine left empty or cut off is not, so it is done again. Its
        numbers are not checked here; `read_piece` names the file if they are damaged.

        Args:
            label: of the method.
            entry: of the method in the manifest.
            start: the piece's first image.

        Raises:
            AfmiError: when it is one of another method, run or list of pictures.
        """
        path = self.piece_path(key := entry["key"], start)
        if not isinstance(path, Path):
            if key not in self._listed:
                self._listed[key] = {piece.name for piece in self.piece_paths(key)}
            if path.name not in self._listed[key]:
                return False
        source = source_of(path)
        if not is_whole(source):
            return False
        about = read_about(source)
        if about is not None:
            check_belongs(path, about, self._about_piece(label, entry, start))
        return True

    def remove_pieces(self, key: str) -> None:
        """Remove the pieces of a method that was refused: errors, and nothing else."""
        for path in self.piece_paths(key):
            path.unlink(missing_ok=True)
        self._listed.pop(key, None)

    def write_piece(
        self,
        label: str,
        entry: Mapping[str, Any],
        start: int,
        rows: Sequence[Row],
        drawings: Drawings,
    ) -> None:
        """Keep a finished piece.

        Args:
            label: of the method.
            entry: of the method in the manifest.
            start: the piece's first image.
            rows: its numbers.
            drawings: of the examples in it.

        Raises:
            AfmiError: when it cannot be written; nothing that was there is lost.
        """
        key = entry["key"]
        images, metrics, values, notes = list(zip(*rows, strict=True)) or [(), (), (), ()]
        files: dict[Location, Any] = {
            self.example_path(image, key, kind): _png(picture)
            for image, kinds in drawings.items()
            for kind, picture in kinds.items()
        }
        # Last, so that a piece that is there has its examples.
        columns = (images, [label] * len(rows), metrics, values, notes)
        about = self._about_piece(label, entry, start)
        path = self.piece_path(key, start)
        files[path] = table_bytes(columns, _PIECE, about)
        write_files(files)
        if key in self._listed:
            self._listed[key].add(path.name)

    def read_piece(self, path: Location, label: str, entry: Mapping[str, Any]) -> pa.Table:
        """Read a piece's table, dictionaries decoded.

        Args:
            path: of the piece.
            label: of the method that it must be of.
            entry: of the method in the manifest.

        Raises:
            AfmiError: when it is damaged, or of another method, run or list of pictures.
        """
        table, about = read_table_file(path, _PIECE, "the run redoes it")
        start = int(path.stem) if path.stem.isdecimal() else -1
        check_belongs(path, about, self._about_piece(label, entry, start))
        return table

    def read_images(self) -> pa.Table:
        """Read the table of the pictures, as far as those of a stream have come.

        Raises:
            AfmiError: when it is missing, damaged or that of another run.
        """
        return self._images.read()

    @cached_property
    def _images(self) -> ImageList:
        return ImageList(self.path, run_digest(self.manifest()))

    def _about_piece(self, label: str, entry: Mapping[str, Any], start: int) -> dict[str, Any]:
        """Return what a piece says that it is, as JSON holds it."""
        keys, labels = self._images.keys, self._images.labels
        stop = min(start + entry["images_per_piece"], len(keys))
        listed = json.dumps([keys[start:stop], labels[start:stop]])
        about = {
            "table": "piece",
            "run": self._images.run,
            "method": label,
            "settings": {key: entry[key] for key in _FIXED if key in entry},
            "first": start,
            "last": stop - 1,
            "pictures": hashlib.blake2b(listed.encode(), digest_size=16).hexdigest(),
        }
        return json.loads(json.dumps(about))


def _png(picture: PIL.Image.Image) -> Callable[[IO[bytes]], object]:
    return lambda file: picture.save(file, "PNG")
