"""The list of an evaluation's pictures as it lies in the folder: whole, or of a stream in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from afmi.errors import AfmiError, SourceError, UsageError
from afmi.evaluation.directory import check_belongs, storable
from afmi.evaluation.tables import read_table_file, table_bytes
from afmi.files import Location, write_files

__all__ = ["ImageList"]

_SCHEMA = pa.schema([("image", pa.int32()), ("key", pa.string()), ("label", pa.int32())])


@dataclass
class ImageList:
    """Key and class of each picture, in order.

    Those of a listing are one table. Those of a stream are entered a window at a time, each window
    as a table of its own, which costs what the window is and not what came before; when the stream
    has ended, one table takes their place.

    Args:
        folder: of the results.
        run: digest of what is run, by which a table is known to belong to it.

    Attributes:
        keys: of all that are known.
        labels: the classes of them.
    """

    folder: Location
    run: str
    _all: bool = field(default=False, init=False)
    """Whether `keys` are known to be all."""

    @property
    def path(self) -> Location:
        """The table of all pictures."""
        return self.folder / "images.parquet"

    def part_path(self, start: int) -> Location:
        """The table of a part that begins with picture ``start``."""
        return self.folder / "images" / f"{start:08d}.parquet"

    @property
    def keys(self) -> list[str]:
        return self._known[0]

    @property
    def labels(self) -> list[int]:
        return self._known[1]

    def ended(self) -> bool:
        """Tell whether the pictures are all: False while those of a stream are still to come."""
        return self.path.is_file()

    def write(self, keys: Sequence[str], labels: Sequence[int]) -> None:
        """Write the table of all pictures, unless it is there already."""
        known = [storable(key) for key in keys], [int(label) for label in labels]
        table = self._bytes(0, *known, {})
        if not self.path.is_file() or self.path.read_bytes() != table:
            write_files({self.path: table})
        self._known, self._all = known, True

    def enter(self, start: int, keys: Sequence[str], labels: Sequence[int], *, ended: bool) -> None:
        """Enter the next pictures of a stream; see `ResultsFolder.enter_images`."""
        self._look_for_others()
        self._check_same(start, keys, labels, ended=ended)
        count = len(self.keys)
        further = slice(count - start, None)
        self.keys.extend(storable(key) for key in keys[further])
        self.labels.extend(int(label) for label in labels[further])
        if ended:
            if not self._all:
                self.write(self.keys, self.labels)
            for part in self._parts():
                part.unlink(missing_ok=True)
        elif count < len(self.keys):
            about = {"first": count}
            table = self._bytes(count, self.keys[count:], self.labels[count:], about)
            write_files({self.part_path(count): table})

    def read(self) -> pa.Table:
        """Read the table of all pictures; of a stream that has not ended, of those entered.

        Raises:
            AfmiError: when it is missing, damaged or that of another run.
        """
        if not self.path.is_file():
            try:
                return self._joined()
            except AfmiError:
                if not self.path.is_file():  # else the stream came to its end meanwhile
                    raise
        return self._read(self.path, {})

    @cached_property
    def _known(self) -> tuple[list[str], list[int]]:
        return _lists(self.read())

    def _look_for_others(self) -> None:
        """Learn what earlier calls, or other processes meanwhile, have entered."""
        if self._all:
            return
        if self.path.is_file():
            try:
                self._known, self._all = _lists(self._read(self.path, {})), True
                return
            except SourceError:
                raise
            except AfmiError:  # it is made again
                self.path.unlink(missing_ok=True)
        if "_known" not in self.__dict__:
            self._known = [], []
        while (part := self.part_path(len(self.keys))).is_file():
            try:
                keys, labels = _lists(self._read(part, {"first": len(self.keys)}))
            except SourceError:
                raise
            except AfmiError:  # likewise
                break
            self.keys.extend(keys)
            self.labels.extend(labels)

    def _check_same(
        self, start: int, keys: Sequence[str], labels: Sequence[int], *, ended: bool
    ) -> None:
        advice = "give the same data in the same order, or choose another --out"
        stop = start + len(keys)
        known = zip(self.keys[start:stop], self.labels[start:stop], strict=True)
        given = zip(map(storable, keys), labels, strict=True)
        for number, (before, now) in enumerate(zip(known, given, strict=False), start):
            if before != now:
                raise UsageError(
                    f"{str(self.folder)!r} holds results of other data: picture {number} was "
                    f"{before[0]} of class {before[1]}, now {now[0]} of class {now[1]}; {advice}"
                )
        count = len(self.keys)
        if (self._all and stop > count) or (ended and stop < count):
            before = f"{count} pictures{'' if self._all else ' or more'}"
            now = f"{stop}{'' if ended else ' or more'}"
            raise UsageError(
                f"{str(self.folder)!r} holds results of other data: there were {before}, now "
                f"{now}; {advice}"
            )

    def _parts(self) -> list[Location]:
        # By number: from 100,000,000 on names have a digit more.
        return sorted(self.folder.glob("images/*.parquet"), key=_start)

    def _joined(self) -> pa.Table:
        """Return the parts as one table.

        Where a damaged part was written again with more pictures, the next one has some of them.
        """
        joined = _SCHEMA.empty_table()
        tables, count = [joined], 0
        for path in self._parts():
            start = _start(path)
            table = self._read(path, {"first": start})
            if start > count:
                break
            if start < count:
                joined = pa.concat_tables(tables)
                shared = min(count - start, len(table))
                if not table.slice(0, shared).equals(joined.slice(start, shared)):
                    raise AfmiError(
                        f"'{path}' lists other pictures than those before it; delete the folder "
                        "to begin anew"
                    )
                table = table.slice(shared)
            tables.append(table)
            count += len(table)
        if not count:
            raise AfmiError(f"'{self.path}' is missing; run afmi evaluate into this folder again")
        return pa.concat_tables(tables)

    def _bytes(
        self, start: int, keys: Sequence[str], labels: Sequence[int], about: Mapping[str, Any]
    ) -> bytes:
        columns = (range(start, start + len(keys)), keys, labels)
        return table_bytes(columns, _SCHEMA, {**self._about, **about})

    @property
    def _about(self) -> dict[str, Any]:
        return {"table": "images", "run": self.run}

    def _read(self, path: Location, about: Mapping[str, Any]) -> pa.Table:
        table, found = read_table_file(path, _SCHEMA, "the run writes it again")
        check_belongs(path, found, {**self._about, **about})
        return table


def _start(part: Location) -> int:
    """Return the number of a part's first picture; -1: it is no part."""
    return int(part.stem) if part.stem.isdecimal() else -1


def _lists(table: pa.Table) -> tuple[list[str], list[int]]:
    return table["key"].to_pylist(), table["label"].to_pylist()
