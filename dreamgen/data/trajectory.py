"""States and actions of one clip, read from any parquet file with LeRobot's column names.

Axes: T frames, S state, A action, D either. They are written as lists of float32, one row per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.data.parquet_rows import EPISODE, ParquetRows, RowsByEpisode, select_rows
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file, regular_file

STATE, ACTION = "observation.state", "action"
ACTION_STD = "action_std"  # of labels: uncertainty of each dimension of the action, in its unit
SMALL_FILE_BYTES = 1 << 20
UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError)
# Metadata of label files that this program wrote.
MADE_BY, UNCERTAINTY = b"dreamgen.made_by", b"dreamgen.uncertainty"


@dataclass(frozen=True)
class Trajectory:
    """States and actions of the robot during a clip.

    Args:
        num_rows: Rows of the source, one per frame.
        state_TS: float32; None if the source has no state.
        action_TA: float32; None if the source has no action.
    """

    num_rows: int
    state_TS: np.ndarray | None
    action_TA: np.ndarray | None

    def at(self, rows: np.ndarray, action_kind: str = "absolute") -> Trajectory:
        """Resample the trajectory.

        Args:
            rows: Source row of each frame, ascending, from `dreamgen.data.timeline.resampled_indices`.
            action_kind: "absolute" selects actions, as states always are. "delta" sums the rows from a frame's row up
                to the next frame's row; frames with the same row divide it equally. This keeps the total motion, the
                sum over all rows.

        Returns:
            One row per frame, float32.
        """
        action_TA = self.action_TA
        if action_TA is not None and len(rows):
            action_TA = _deltas_at(action_TA, rows) if action_kind == "delta" else action_TA[rows]
        return Trajectory(len(rows), None if self.state_TS is None else self.state_TS[rows], action_TA)

    def first(self, num_rows: int) -> Trajectory:
        """Return the first rows, those with a video frame."""
        parts = (None if values_TD is None else values_TD[:num_rows] for values_TD in (self.state_TS, self.action_TA))
        return Trajectory(min(num_rows, self.num_rows), *parts)


@dataclass(frozen=True)
class SharedTable:
    """A file with the rows of several episodes, opened once for all of them.

    Args:
        path: The file.
        names: Its columns.
        rows: Reads the vectors, in runs of rows.
        by_episode: The rows of each episode.
    """

    path: Path
    names: list[str]
    rows: ParquetRows
    by_episode: RowsByEpisode

    def read(self, episode_index: int) -> pa.Table:
        """Return the rows of an episode, with the vectors.

        Raises:
            UserError: if they cannot be read.
        """
        own = self.by_episode.rows(episode_index)
        begin, end = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
        try:
            return select_rows(self.rows.read(begin, end), own - begin)
        except UNREADABLE as error:
            raise _damaged(self.path, error) from None


def read_trajectory(
    path: Path, state_dim: int | None = None, action_dim: int | None = None, episode_index: int | None = None,
    include_state: bool = True,
) -> Trajectory:  # fmt: skip
    """Read `observation.state` and `action`, if the file has them.

    Args:
        path: Parquet file with one row per frame.
        state_dim: Required length of the state; None for any.
        action_dim: Required length of the action; None for any.
        episode_index: Read only the rows of this episode, in a file of several; None for all rows. Such a file stays
            open for the next episode.
        include_state: Whether to read the state.

    Raises:
        UserError: if the file is missing or damaged, a vector has the wrong length, or a value is not finite.
    """
    wanted = (STATE, ACTION) if include_state else (ACTION,)
    shared = None if episode_index is None else shared_table(path, wanted)
    available = read_schema(path).names if shared is None else shared.names
    for name, dim in ((STATE, state_dim), (ACTION, action_dim)):
        if dim is not None and name not in available:
            raise UserError(f"{path} has no column {name}", actual=", ".join(available)[:200])
    names = [name for name in wanted if name in available]
    if shared is not None and episode_index is not None:
        table = shared.read(episode_index)
    else:  # with filters: of a file that is damaged, the episodes that are not
        filters = None if episode_index is None else [(EPISODE, "=", episode_index)]
        table = read_columns(path, names or None, filters)
    return Trajectory(
        table.num_rows,
        vector_column(table, STATE, state_dim, path) if STATE in names else None,
        vector_column(table, ACTION, action_dim, path) if ACTION in names else None,
    )


def write_trajectory(
    path: Path, trajectory: Trajectory, made_by: str | None = None, uncertainty: float | None = None
) -> None:
    """Write states and actions, if there are any, as lists of float32, atomically.

    Args:
        path: The parquet file.
        trajectory: The rows.
        made_by: What made them, for the file's metadata.
        uncertainty: How uncertain the actions are, for the file's metadata.
    """
    vectors = {ACTION: trajectory.action_TA, STATE: trajectory.state_TS}
    columns = {name: _lists(values_TD) for name, values_TD in vectors.items() if values_TD is not None}
    table = pa.Table.from_arrays([*columns.values()], names=[*columns])
    notes = {MADE_BY: made_by, UNCERTAINTY: None if uncertainty is None else repr(uncertainty)}
    if metadata := {name: text.encode() for name, text in notes.items() if text is not None}:
        table = table.replace_schema_metadata(metadata)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def read_schema(path: Path) -> pa.Schema:
    """Return the schema of a parquet file.

    Raises:
        UserError: if it is missing or not parquet.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", allowed="a parquet file with one row a frame")
    try:
        schema = pq.read_schema(regular_file(path))
    except UNREADABLE as error:
        raise _damaged(path, error) from None
    if twice := {name for name in schema.names if schema.names.count(name) > 1}:
        raise UserError(f"{path} has columns of one name", actual=", ".join(sorted(twice)), allowed="each name once")
    return schema


def shared_table(path: Path, vectors: tuple[str, ...]) -> SharedTable | None:
    """Open a file of several episodes; the last files are not opened again.

    Args:
        path: Parquet file with one row per frame, in rising order of the episodes for speed.
        vectors: Columns to read, as far as the file has them.

    Returns:
        The table; None if it does not say, or not for all rows, to which episode a row belongs.
    """
    state = path.stat() if path.is_file() else None
    return _opened(path, vectors, (state.st_mtime_ns, state.st_size) if state else None)


@lru_cache(maxsize=4)
def _opened(path: Path, vectors: tuple[str, ...], _: tuple[int, int] | None) -> SharedTable | None:
    try:
        schema = read_schema(path)
        if EPISODE not in schema.names or not _is_number(schema.field(EPISODE).type):
            return None
        by_episode = RowsByEpisode.of(read_columns(path, [EPISODE])[EPISODE])
        return SharedTable(path, schema.names, ParquetRows(path, (*vectors, EPISODE).__contains__), by_episode)
    except (UserError, *UNREADABLE):
        return None


def read_columns(path: Path, names: list[str] | None, filters: list | None = None) -> pa.Table:
    """Read some columns of a parquet file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        if filters is not None:
            return pq.read_table(path, columns=names, filters=filters)
        # Read a small file in this thread: starting others takes longer than reading.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return file.read(names, use_threads=path.stat().st_size > SMALL_FILE_BYTES)
    except UNREADABLE as error:
        raise _damaged(path, error) from None


def _deltas_at(action_TA: np.ndarray, rows: np.ndarray) -> np.ndarray:
    starts, num_frames = np.unique(rows, return_counts=True)
    sums_NA = np.add.reduceat(action_TA.astype(np.float64), starts, axis=0)  # of each start up to the next one
    return np.repeat(sums_NA / num_frames[:, None], num_frames, axis=0).astype(np.float32)


def vector_column(table: pa.Table, name: str, dim: int | None, path: Path) -> np.ndarray:
    """Return a column of vectors.

    Args:
        table: One row per frame.
        name: The column.
        dim: Required length of a vector; None for any.
        path: Where the table was read, for errors.

    Returns:
        values_TD, float32.

    Raises:
        UserError: if a cell is empty, or not a vector of finite numbers of one length.
    """
    column = table[name].combine_chunks()
    if column.null_count:
        raise UserError(f"{path}: {name} has empty cells", actual=f"{column.null_count} of {len(column)}")
    if isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1:
            raise UserError(f"{path}: {name} changes its length", actual=sorted(lengths), allowed="one length")
        values = column.flatten()
        width = lengths[0] if lengths else 0
    else:  # LeRobot writes a feature of shape [1] as plain numbers
        values, width = column, 1
    if not _is_number(values.type):
        raise UserError(f"{path}: {name} is not a vector of numbers", actual=str(column.type))
    if len(column) and (not width or dim not in (None, width)):
        raise UserError(f"{path}: {name} has the wrong length", actual=width, allowed=dim or "at least 1")
    with np.errstate(over="ignore"):
        found = values.to_numpy(zero_copy_only=False) if values.null_count else np.from_dlpack(values)
        values_TD = found.astype(np.float32).reshape(len(column), width)
    bad = np.argwhere(~np.isfinite(values_TD))
    if len(bad):
        raise UserError(
            f"{path}: {name} has {len(bad)} values that are not finite",
            actual=f"{values_TD[tuple(bad[0])]} in row {bad[0][0]}, dimension {bad[0][1]}",
            allowed="finite float32",
        )
    return values_TD


def _lists(values_TD: np.ndarray) -> pa.ListArray:
    """Return rows as lists of float32, from their memory: `pa.array` imports pandas, a second for each worker."""
    values_TD = np.ascontiguousarray(values_TD, np.float32)
    ends = np.arange(len(values_TD) + 1, dtype=np.int32) * values_TD.shape[1]
    offsets = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
    values = pa.Array.from_buffers(pa.float32(), values_TD.size, [None, pa.py_buffer(values_TD)])
    return pa.ListArray.from_arrays(offsets, values)


def _damaged(path: Path, error: Exception) -> UserError:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged or is not parquet", actual=first_line)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
