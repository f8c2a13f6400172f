"""Lists of pictures in Parquet files: a column of paths, and one of labels where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afmi.errors import UsageError, first_line
from afmi.files import regular_file_size
from afmi.packages import imported

__all__ = ["PARQUET", "parquet_columns"]

PARQUET = (".parquet", ".pq")
"""Suffixes of such files."""


def parquet_columns(path: Path, name: str, wanted: Sequence[str]) -> list[list[Any]]:
    """Return columns of a Parquet file; the first holds paths, and the others text or numbers.

    Args:
        path: of the file.
        name: what errors call it.
        wanted: the names of the columns, whose case does not count.

    Raises:
        UsageError: it cannot be read, lacks a column, or a row has nothing in one.
    """
    pq: Any = imported("pyarrow.parquet", "a Parquet file", "afmi[evaluation]")
    pa: Any = imported("pyarrow", "a Parquet file", "afmi[evaluation]")
    try:
        regular_file_size(path)
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [_column(names, one, name) for one in wanted]
            table = file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{name!r} cannot be read as a Parquet file ({first_line(error)}); expected one with "
            f"the columns {', '.join(wanted)}"
        ) from error
    values = [table[column] for column in columns]
    kind = values[0].type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(
            f"expected paths in the column {columns[0]!r} of {name!r}, got {kind}; pictures that "
            "are in the file itself can be opened with datasets.load_dataset('parquet', "
            f"data_files={name!r}, split='train'), and passed as data"
        )
    for column, chunks in zip(columns, values, strict=True):
        if chunks.null_count:
            raise UsageError(
                f"{chunks.null_count} of {len(chunks)} rows of {name!r} have nothing in the column "
                f"{column!r}; leave them out"
            )
    return [chunks.to_pylist() for chunks in values]


def _column(names: Sequence[str], wanted: str, name: str) -> str:
    found = [one for one in names if one.casefold() == wanted.casefold()]
    if len(found) != 1:
        raise UsageError(
            f"expected one column {wanted!r} in {name!r}, got the columns "
            f"{', '.join(map(repr, names))[:200] or 'nothing'}; name it so, or say its name with "
            "image_key= and label_key="
        )
    return found[0]
