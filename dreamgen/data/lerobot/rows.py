"""The rows of LeRobot tables: columns as arrays, and what the rows of an episode say of its task.

Axes: N rows, D values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.parquet_rows import EPISODE, RowsByEpisode, select_rows
from dreamgen.data.trajectory import ACTION, STATE, read_columns, read_schema
from dreamgen.errors import UserError, reason_of

TASK = "task_index"
DESCRIPTION = "annotation.human.action.task_description"
ARROW_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


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


@dataclass(frozen=True)
class ScalarColumns:
    """The columns of a file that `EpisodeRows` are made of.

    Args:
        table: All rows.
        wide: Names of the vectors that are float64.
        by_episode: The rows of each episode; None if no column says it.
    """

    table: pa.Table
    wide: tuple[str, ...]
    by_episode: RowsByEpisode | None


def read_rows(episodes: Sequence[Episode]) -> list[EpisodeRows]:
    """Read each episode's rows; a shared file is opened once, and one that cannot be read refuses its episodes."""
    found: list[EpisodeRows] = []
    path, columns = None, None
    for episode in episodes:
        try:
            if columns is None or path != episode.data_file:
                path, columns = episode.data_file, _read_scalars(episode.data_file, episode.shares_file)
            found.append(_rows_of(columns, episode))
        except UserError as error:
            columns = None
            found.append(EpisodeRows(refused=reason_of(error)))
    return found


def _read_scalars(path: Path, is_shared: bool) -> ScalarColumns:
    schema = read_schema(path)
    names = [
        column.name
        for column in schema
        if (column.name in (TASK, EPISODE) or column.name.startswith("annotation."))
        and pa.types.is_integer(column.type)
    ]
    names += ["timestamp"] if "timestamp" in schema.names else []
    vectors = [name for name in (STATE, ACTION) if name in schema.names]
    wide = [name for name in vectors if getattr(schema.field(name).type, "value_type", None) == pa.float64()]
    # A file without any of these columns still has rows to count.
    table = read_columns(path, names or schema.names)
    if not is_shared or EPISODE not in table.column_names or not is_number(table[EPISODE].type):
        return ScalarColumns(table, tuple(wide), None)
    # One chunk a column rather than one a row group: each episode's part is then found at once.
    return ScalarColumns(table.combine_chunks(), tuple(wide), RowsByEpisode.of(table[EPISODE]))


def _rows_of(columns: ScalarColumns, episode: Episode) -> EpisodeRows:
    table = columns.table
    if episode.shares_file:
        if columns.by_episode is None:
            raise UserError(f"{episode.data_file} has no {EPISODE} column")
        table = select_rows(table, columns.by_episode.rows(episode.index))
    if table.num_rows == 0:
        raise UserError(f"{episode.data_file} has no rows of episode {episode.index}")
    counts = {
        name: Counter(table[name].drop_null().to_pylist())
        for name in table.column_names
        if name == TASK or name.startswith("annotation.")
    }
    first = table["timestamp"][0].as_py() if "timestamp" in table.column_names else None
    return EpisodeRows(counts, first if isinstance(first, int | float) else None, columns.wide)


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
