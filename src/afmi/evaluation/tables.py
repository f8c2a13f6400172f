"""Parquet tables that say what they are, and notice when a bit of them has changed.

Parquet's checksums cover the data of each page, not the headers and the footer, where a flipped
bit gives other numbers as well. So a digest of all that a table holds goes into its metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from afmi.errors import AfmiError
from afmi.files import Location

__all__ = [
    "DamagedTableError",
    "Source",
    "is_whole",
    "read_about",
    "read_table",
    "read_table_file",
    "source_of",
    "table_bytes",
]

Source = Path | bytes
"""Where a Parquet file is, or what it holds."""

_MARK = b"PAR1"  # at both ends of every Parquet file
_METADATA = b"afmi"


def source_of(path: Location) -> Source:
    """Return what a table can be read from; of an object that is not there nothing, b"".

    Raises:
        SourceError: the store cannot be reached.
    """
    if isinstance(path, Path):
        return path
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class DamagedTableError(Exception):
    """A table cannot be read, or holds something else than what was written; says why."""


def table_bytes(
    columns: Sequence[Any],
    schema: pa.Schema,
    about: Mapping[str, Any],
    *,
    dictionaries: bool = True,
) -> bytes:
    """Return a Parquet file of these columns.

    Args:
        columns: the values of each, or Arrow's arrays of them.
        schema: their names and types: numbers, text, or lists of numbers, which may be null.
        about: what the table is, as JSON holds it; `read_table` returns it.
        dictionaries: whether values that come often are stored once. Where few do, the file is
            smaller without.
    """
    arrays = [
        c if isinstance(c, (pa.Array, pa.ChunkedArray)) else pa.array(list(c), field.type)
        for c, field in zip(columns, schema, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=schema)
    # Numbers that are all different are smaller with their bytes sorted by place.
    split = [f"{f.name}.list.element" for f in schema if _is_list(f.type, pa.float32())]
    note = {"about": about, "digest": _digest(_decoded(table, schema), about)}
    # In memory: a full disk then raises an OSError, not one of Arrow's own.
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_METADATA: json.dumps(note)}),
        buffer,
        compression="zstd",
        write_page_checksum=True,
        # Readers skip rows by them, and nothing would notice a wrong one.
        write_statistics=False,
        use_dictionary=dictionaries,
        use_byte_stream_split=False if dictionaries else split,  # type: ignore[arg-type]
    )
    return buffer.getvalue()


def read_table(source: Source, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """Return a table, dictionaries decoded, and what it says that it is.

    Raises:
        DamagedTableError: when it cannot be read, or any of its values is not as it was written.
    """
    try:
        if isinstance(source, Path) and not source.is_file():  # a pipe would keep us waiting
            raise ValueError("it is no file")
        with pq.ParquetFile(_readable(source), page_checksum_verification=True) as file:
            note = _note(file.metadata)
            table = file.read()
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
        decoded = _decoded(table.select(schema.names), schema)
        if note["digest"] != _digest(decoded, note["about"]):
            raise ValueError("its contents do not fit its checksum")
    # Of Arrow's errors some are none of its own class: a KeyError, or a MemoryError where the
    # damaged number is a size.
    except Exception as error:
        raise DamagedTableError(
            " ".join(str(error).split())[:120] or type(error).__name__
        ) from error
    return decoded, note["about"]


def read_table_file(
    path: Location, schema: pa.Schema, remedy: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Return what `read_table` does, of a file or an object.

    Args:
        path: of it.
        schema: of the table.
        remedy: what happens when it is deleted, in words.

    Raises:
        AfmiError: when it is damaged or missing.
        SourceError: when the store cannot be reached.
    """
    try:
        return read_table(source_of(path), schema)
    except DamagedTableError as error:
        raise AfmiError(f"'{path}' is damaged ({error}); delete it, so that {remedy}") from error


def read_about(source: Source) -> dict[str, Any] | None:
    """Return what a table says that it is, without reading its rows; None where it is damaged."""
    try:
        with pq.ParquetFile(_readable(source)) as file:
            return _note(file.metadata)["about"]
    except Exception:
        return None


def is_whole(source: Source) -> bool:
    """Tell whether a file begins and ends as a Parquet file does."""
    if isinstance(source, Path) and not source.is_file():
        return False
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            begin = file.read(len(_MARK))
            end = file.seek(-len(_MARK), os.SEEK_END)
            return begin == file.read() == _MARK and end > len(_MARK)
    except (OSError, ValueError):  # it is too short, or may not be read
        return False


def _readable(source: Source) -> Any:
    return source if isinstance(source, Path) else pa.BufferReader(source)


def _note(metadata: pq.FileMetaData) -> dict[str, Any]:
    note = json.loads((metadata.metadata or {}).get(_METADATA, b"null"))
    if not isinstance(note, dict) or not isinstance(note.get("about"), dict):
        raise ValueError("it does not say what it is")
    return note


def _decoded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    types = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return table.cast(pa.schema(zip(schema.names, types, strict=True)))


def _is_list(kind: pa.DataType, of: pa.DataType | None = None) -> bool:
    """Tell whether a type is one of lists, of this type where one is given."""
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and of in (None, kind.value_type)


def _digest(table: pa.Table, about: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name} {column.type} {len(column)} {column.null_count} ".encode())
        if pa.types.is_string(column.type):
            # A dictionary is in the order of first appearance.
            encoded = column.combine_chunks().dictionary_encode()
            digest.update(json.dumps(encoded.dictionary.to_pylist()).encode())
            digest.update(encoded.indices.fill_null(-1).to_numpy().tobytes())
        elif _is_list(column.type):
            lists = column.combine_chunks()
            lengths = lists.is_valid()
            if pa.types.is_list(column.type):
                lengths = lists.value_lengths().fill_null(-1)
            digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            digest.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()
