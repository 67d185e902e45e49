"""Parquet tables read in parts: runs of rows, and the rows of one episode where several share a file.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EPISODE = "episode_index"
READ_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class RowsByEpisode:
    """Which rows of a table belong to each episode.

    Args:
        row_N: Every row once, int64: those of an episode follow one another, ascending.
        episode_N: The episode of each of these, ascending.
    """

    row_N: np.ndarray
    episode_N: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> RowsByEpisode:
        """Sort the rows of a table by their `episode_index`; a row where it is empty belongs to no episode."""
        values = column.combine_chunks()
        # Arrow's own to_numpy imports pandas first, which takes a second.
        episode_N = values.to_numpy(zero_copy_only=False) if values.null_count else np.from_dlpack(values)
        row_N = np.argsort(episode_N, kind="stable")
        return cls(row_N, episode_N[row_N])

    def rows(self, episode_index: int) -> np.ndarray:
        """Return the rows of an episode, int64, ascending; none if the table has no such episode."""
        begin, end = (int(np.searchsorted(self.episode_N, episode_index, side)) for side in ("left", "right"))
        return self.row_N[begin:end]


def select_rows(table: pa.Table, row_N: np.ndarray) -> pa.Table:
    """Return some rows of a table, ascending; those that follow one another are not copied."""
    if not len(row_N):
        return table.slice(0, 0)
    first, num_spanned = int(row_N[0]), int(row_N[-1]) + 1 - int(row_N[0])
    return table.slice(first, num_spanned) if num_spanned == len(row_N) else table.take(pa.array(row_N))


class ParquetRows:
    """Runs of rows of a parquet file, in rising order; only the row groups that a run lies in are in RAM.

    Args:
        path: The file.
        is_wanted: Returns True for the columns to read.
    """

    def __init__(self, path: Path, is_wanted: Callable[[str], bool]) -> None:
        # A small file is read at once, which spares it Arrow's threads: handing over to them takes longer than reading.
        small = path.stat().st_size <= READ_AT_ONCE_BYTES
        self._file = pq.ParquetFile(pa.BufferReader(path.read_bytes()) if small else path)
        groups = self._file.metadata
        self._ends = np.cumsum([groups.row_group(i).num_rows for i in range(groups.num_row_groups)], dtype=np.int64)
        # From the fields: Arrow makes even an empty table with an import of pandas, which takes a second.
        self.schema = pa.schema([_without_extension(field) for field in self._file.schema_arrow])
        if len(set(self.schema.names)) < len(self.schema.names):
            raise ValueError("it has columns of one name")
        self.num_rows: int = groups.num_rows
        self._columns = [name for name in self.schema.names if is_wanted(name)]
        self._table, self._first, self._last = None, 0, 0

    def read(self, begin: int, end: int) -> pa.Table:
        """Return rows begin to end, as many of them as the file has."""
        begin, end = max(0, begin), min(end, self.num_rows)
        if self._table is None or begin < self._first or end > self._last:
            first, last = np.searchsorted(self._ends, [begin, max(begin, end - 1)], side="right")
            groups = range(first, min(last + 1, len(self._ends)))
            # Without threads: files are many and small, and several processes read them.
            table = self._file.read_row_groups(groups, self._columns, use_threads=False)
            self._table = without_extensions(table)
            self._first = int(self._ends[first - 1]) if first else 0
            self._last = self._first + self._table.num_rows
        return self._table.slice(begin - self._first, max(0, end - begin))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def without_extensions(table: pa.Table) -> pa.Table:
    """Return a table with plain lists where a library that is imported has given columns types of its own.

    The Hugging Face library `datasets` registers one for features of several axes, so what a file's columns are would
    depend on what the process has imported.
    """
    for place, column in enumerate(table.schema):
        if isinstance(column.type, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            plain = pa.chunked_array(chunks, type=column.type.storage_type)
            table = table.set_column(place, column.name, plain)
    return table


def _without_extension(field: pa.Field) -> pa.Field:
    is_extension = isinstance(field.type, pa.BaseExtensionType)
    return field.with_type(field.type.storage_type) if is_extension else field
