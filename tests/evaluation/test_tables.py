"""Tables with lists of numbers come back as they were written, and a changed bit is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afmi.evaluation.tables import DamagedTableError, read_table, table_bytes

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("vector", pa.list_(pa.float32(), 4)),
        ("map", pa.list_(pa.float16())),
    ]
)
COLUMNS: list[list[Any]] = [
    ["a", "b", "c"],
    [np.arange(4, dtype=np.float32), None, np.ones(4, np.float32)],
    [np.ones(2, np.float16), None, np.zeros(3, np.float16)],
]


@pytest.mark.parametrize("dictionaries", [True, False])
def test_lists_and_nulls_come_back(tmp_path: Path, dictionaries: bool) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(table_bytes(COLUMNS, SCHEMA, {"of": "lists"}, dictionaries=dictionaries))
    table, about = read_table(path, SCHEMA)
    assert about == {"of": "lists"}
    assert table.schema.equals(SCHEMA)
    assert table["vector"].to_pylist() == [[0, 1, 2, 3], None, [1, 1, 1, 1]]
    assert table["map"].to_pylist() == [[1, 1], None, [0, 0, 0]]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("vector", [[0, 1, 2, 4], None, [1, 1, 1, 1]]),
        ("vector", [None, [0, 1, 2, 3], [1, 1, 1, 1]]),
        ("map", [[1, 1, 0], None, [0, 0]]),
        ("map", [[1, 1], [], [0, 0, 0]]),
    ],
)
def test_other_numbers_or_other_rows_are_noticed(tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(table_bytes(COLUMNS, SCHEMA, {}))
    table = pq.read_table(path)
    place = table.schema.names.index(column)
    changed = pa.array(value, SCHEMA.field(column).type)
    pq.write_table(table.set_column(place, SCHEMA.field(column), changed), path)
    with pytest.raises(DamagedTableError, match="do not fit its checksum"):
        read_table(path, SCHEMA)
