"""The rows of LeRobot tables: runs of rows, columns as arrays, and what the rows of an episode say of its task.

Axes: N rows, D values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.trajectory import ACTION, STATE, read_columns, read_schema
from dreamgen.errors import UserError, reason_of

TASK = "task_index"
DESCRIPTION = "annotation.human.action.task_description"
READ_AT_ONCE_BYTES = 1 << 20
ARROW_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


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


def is_number(kind: pa.DataType) -> bool:
    """Return True for a column of plain numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_list(kind: pa.DataType) -> bool:
    """Return True for a column of lists of any kind."""
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
        lengths = _list_lengths(values)
        if values.null_count or len(lengths) > 1:
            return None, str(outermost)
        per_row *= (lengths[0] or 0) if lengths else size
        values = values.flatten()
    if not is_number(values.type) or values.null_count or (num_rows and per_row != size):
        return None, str(outermost)
    return numbers(values).reshape(num_rows, size), ARROW_NAMES.get(str(values.type), str(values.type))


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return numbers without nulls, read-only; Arrow's own to_numpy imports pandas first, which takes a second."""
    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


def describe_column(column: pa.ChunkedArray) -> str:
    """Return in words what a column that is no matrix holds."""
    empty = f", {column.null_count} empty cells" if column.null_count else ""
    if not is_list(column.type):
        return f"{column.type}{empty}"
    lengths = sorted(length for length in _list_lengths(column) if length is not None)
    return f"{column.type} with {', '.join(map(str, lengths[:5]))} values{empty}"


def _list_lengths(column: pa.ChunkedArray | pa.Array) -> list[int | None]:
    return pc.call_function("list_value_length", [column]).unique().to_pylist()


@dataclass(frozen=True)
class EpisodeRows:
    """What an episode's rows say of its task, without its vectors.

    Args:
        counts: Column of task indices -> how many frames point to each.
        first_time_s: `timestamp` of the first row; None without that column.
        wide: Names of the vectors that are float64.
        refused: Why the rows cannot be read; None if they can.
    """

    counts: dict[str, Counter[int]] = field(default_factory=dict)
    first_time_s: float | None = None
    wide: tuple[str, ...] = ()
    refused: str | None = None


def read_rows(episodes: Sequence[Episode]) -> list[EpisodeRows]:
    """Read each episode's rows; a shared file is opened once, and one that cannot be read refuses its episodes."""
    found: list[EpisodeRows] = []
    path, table, wide = None, None, ()
    for episode in episodes:
        try:
            if table is None or path != episode.data_file:
                path, (table, wide) = episode.data_file, _read_scalars(episode.data_file)
            found.append(_rows_of(table, wide, episode))
        except UserError as error:
            table = None
            found.append(EpisodeRows(refused=reason_of(error)))
    return found


def _read_scalars(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    schema = read_schema(path)
    names = [
        column.name
        for column in schema
        if (column.name in (TASK, "episode_index") or column.name.startswith("annotation."))
        and pa.types.is_integer(column.type)
    ]
    names += ["timestamp"] if "timestamp" in schema.names else []
    vectors = [name for name in (STATE, ACTION) if name in schema.names]
    wide = [name for name in vectors if getattr(schema.field(name).type, "value_type", None) == pa.float64()]
    # A file without any of these columns still has rows to count.
    return read_columns(path, names or schema.names), tuple(wide)


def _rows_of(table: pa.Table, wide: tuple[str, ...], episode: Episode) -> EpisodeRows:
    if episode.shares_file:
        if "episode_index" not in table.column_names:
            raise UserError(f"{episode.data_file} has no episode_index column")
        table = table.filter(pa.array(table["episode_index"].to_numpy() == episode.index))
    if table.num_rows == 0:
        raise UserError(f"{episode.data_file} has no rows of episode {episode.index}")
    counts = {
        name: Counter(table[name].drop_null().to_pylist())
        for name in table.column_names
        if name == TASK or name.startswith("annotation.")
    }
    first = table["timestamp"][0].as_py() if "timestamp" in table.column_names else None
    return EpisodeRows(counts, first if isinstance(first, int | float) else None, wide)


def instruction_of(meta: LeRobotMeta, episode: Episode, rows: EpisodeRows) -> tuple[str, tuple[str, ...]]:
    """Return an episode's task in words and what had to be decided to get it.

    The frames' own task_index goes first, then the annotation of the task, then the only task of the metadata.

    Raises:
        UserError: if none of them gives a text.
    """
    for column in (TASK, DESCRIPTION):
        ranked = rows.counts.get(column, Counter()).most_common()
        text = meta.tasks.get(ranked[0][0], "") if ranked else ""
        if text:
            changes = [f"{len(ranked)} tasks in its frames: used the most frequent"] if len(ranked) > 1 else []
            changes += [f"instruction taken from {column}"] if column != TASK else []
            return text, tuple(changes)
    if len(episode.tasks) == 1:
        return episode.tasks[0], ("instruction taken from the episode's metadata",)
    raise UserError(
        f"episode {episode.index} has no instruction",
        actual=f"task_index {sorted(rows.counts.get(TASK, {}))}, tasks {list(episode.tasks)}",
        allowed="a task_index that the dataset's tasks list",
    )
