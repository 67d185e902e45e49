"""Columns of parquet files as arrays, whatever their types turn out to be.

Axes: N rows, D values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NUMERIC = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
INDEX_COLUMNS = ("timestamp", "episode_index", "index", "task_index", "frame_index")
READ_AT_ONCE_BYTES = 1 << 20
NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


class FileRows:
    """Runs of rows of a parquet file, in rising order; only the row groups that a run lies in are in memory.

    Args:
        path: The file.
        wanted: Says of a column's name whether it is read.
    """

    def __init__(self, path: Path, wanted: Any) -> None:
        # A small file is read at once, which spares it Arrow's threads: handing over to them takes longer than reading.
        small = path.stat().st_size <= READ_AT_ONCE_BYTES
        self._file = pq.ParquetFile(pa.BufferReader(path.read_bytes()) if small else path)
        groups = self._file.metadata
        self._ends = np.cumsum([groups.row_group(i).num_rows for i in range(groups.num_row_groups)], dtype=np.int64)
        self.schema = self._file.schema_arrow
        self.num_rows = groups.num_rows
        self._columns = [name for name in self.schema.names if wanted(name)]
        self._table, self._first, self._last = None, 0, 0

    def read(self, begin: int, end: int) -> pa.Table:
        """Return rows begin to end; what lies beyond the file is not there."""
        begin, end = max(0, begin), min(end, self.num_rows)
        if self._table is None or begin < self._first or end > self._last:
            first, last = np.searchsorted(self._ends, [begin, max(begin, end - 1)], side="right")
            groups = range(first, min(last + 1, len(self._ends)))
            # Without threads: files are many and small, and several processes read them.
            self._table = self._file.read_row_groups(groups, self._columns, use_threads=False)
            self._first = int(self._ends[first - 1]) if first else 0
            self._last = self._first + self._table.num_rows
        return self._table.slice(begin - self._first, max(0, end - begin))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_number(kind: pa.DataType) -> bool:
    """Say whether a column holds plain numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_list(kind: pa.DataType) -> bool:
    """Say whether a column holds lists of any kind."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def matrix(column: pa.ChunkedArray | pa.Array, size: int) -> tuple[np.ndarray | None, str]:
    """Return rows as (N, D) in their own type, and that type's name; None where a row does not hold `size` numbers.

    Args:
        column: Numbers, or lists of them, nested to any depth.
        size: Numbers a row.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    num_rows, outermost = len(values), values.type
    per_row = 1
    while is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if values.null_count or len(lengths) > 1:
            return None, str(outermost)
        per_row *= lengths[0] if lengths else size
        values = values.flatten()
    if not is_number(values.type) or values.null_count or (num_rows and per_row != size):
        return None, str(outermost)
    flat = values.to_numpy(zero_copy_only=False)
    return flat.reshape(num_rows, size), NAMES.get(str(values.type), str(values.type))


def shape_of(column: pa.ChunkedArray) -> str:
    """Say in words what a column that is no matrix holds."""
    if not is_list(column.type):
        return f"{column.type}, {column.null_count} empty cells" if column.null_count else str(column.type)
    lengths = sorted({length for length in pc.unique(pc.list_value_length(column)).to_pylist() if length is not None})
    empty = f", {column.null_count} empty cells" if column.null_count else ""
    return f"{column.type} with {', '.join(map(str, lengths[:5]))} values{empty}"
