"""The rows of each episode, read from any version and converted to the types that info.json gives.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.files import PARQUET_DAMAGE
from dreamgen.data.lerobot.rows import is_list
from dreamgen.data.lerobot.writer import vector_array
from dreamgen.data.parquet_rows import ParquetRows, without_extensions
from dreamgen.data.timeline import frame_times_s
from dreamgen.errors import UserError, quoted
from export.convert.source import SourceDataset

TIME_TOLERANCE_S = 1e-4  # LeRobot's own
ROW_DAMAGE = (*PARQUET_DAMAGE, KeyError, TypeError, OverflowError, NotImplementedError)  # NumPy's, and Arrow's


def read_rows(dataset: SourceDataset, version: str) -> Iterator[tuple[Episode, pa.Table, list[str]]]:
    """Read the rows of each episode.

    Args:
        dataset: The source, or some of its episodes.
        version: Of the converted dataset.

    Yields:
        The episode; its table in the types of the converted dataset, without videos; notes on what was changed.

    Raises:
        UserError: if rows or a column are missing, or a column cannot hold its feature.
    """
    tables = EpisodeTables()
    for episode, first_index in zip(dataset.episodes, dataset.first_index_N.tolist(), strict=True):
        source = tables.rows(episode)
        if source.num_rows != episode.length:
            raise UserError(
                f"{episode.data_file}: rows of episode {episode.index} differ from its length", actual=source.num_rows,
                allowed=episode.length, next_step=f"dreamgen check {quoted(dataset.root)}",
            )  # fmt: skip
        try:
            table, notes = _converted(dataset, version, episode, source, first_index)
        except ROW_DAMAGE as error:
            raise UserError(
                f"{episode.data_file}: the rows of episode {episode.index} do not hold what info.json says",
                actual=str(error)[:200], next_step=f"dreamgen check {quoted(dataset.root)}",
            ) from None  # fmt: skip
        yield episode, table, notes


def _converted(
    dataset: SourceDataset, version: str, episode: Episode, source: pa.Table, first_index: int
) -> tuple[pa.Table, list[str]]:
    indices, notes = _indices(dataset, episode, source, first_index)
    columns = {}
    for name, feature in dataset.features.items():
        dtype = feature.get("dtype")
        if name in indices:
            columns[name] = pa.array(indices[name])
        elif dtype != "video":
            if name not in source.column_names:
                raise UserError(f"{episode.data_file} has no column {name}, which info.json names",
                                next_step=f"dreamgen check {quoted(dataset.root)}")  # fmt: skip
            column = source[name].combine_chunks()
            columns[name] = column if dtype == "image" else _typed(column, name, feature, version, episode)
    return pa.table(columns), notes


class EpisodeTables:
    """Reads the rows of episodes; of a table that several share, only the row groups that hold an episode."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._shared: ParquetRows | None = None
        self._episode_N = np.empty(0, np.int64)

    def rows(self, episode: Episode) -> pa.Table:
        """Return an episode's rows.

        Raises:
            UserError: if the file cannot be read.
        """
        try:
            # ParquetFile: read_table would take the folders' names for columns.
            if not episode.shares_file:
                table = pq.ParquetFile(episode.data_file, pre_buffer=False).read(use_threads=False)
                return without_extensions(table)
            shared = self._shared
            if shared is None or self._path != episode.data_file:
                shared = ParquetRows(episode.data_file, lambda _: True)
                self._path, self._shared = episode.data_file, shared
                self._episode_N = pq.ParquetFile(self._path).read(["episode_index"])["episode_index"].to_numpy()
            own = np.flatnonzero(self._episode_N == episode.index)
            table = shared.read(own[0], own[-1] + 1) if len(own) else shared.read(0, 0)
            return table.filter(pc.field("episode_index") == episode.index)
        except PARQUET_DAMAGE as error:
            raise UserError(f"{episode.data_file} cannot be read", actual=str(error)) from None


def as_float64(column: pa.ChunkedArray, num_rows: int) -> np.ndarray:
    """Return a numeric column of any shape as float64 of shape (num_rows, dimensions)."""
    flat = column.combine_chunks()
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(num_rows, -1)


def _indices(
    dataset: SourceDataset, episode: Episode, source: pa.Table, first_index: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Recompute the columns by which readers find frames, and note where the source differs."""
    length, notes = episode.length, []
    times_s = frame_times_s(length, dataset.fps)
    indices = {
        "timestamp": times_s.astype(np.float32),
        "frame_index": np.arange(length, dtype=np.int64),
        "episode_index": np.full(length, episode.index, np.int64),
        "index": first_index + np.arange(length, dtype=np.int64),
    }
    for name, values in indices.items():
        given = source[name].to_numpy().astype(np.float64) if name in source.column_names else None
        if given is None:
            notes.append(f"{name} is missing: written")
        elif np.abs(given - values).max() > (TIME_TOLERANCE_S if name == "timestamp" else 0):
            notes.append(f"{name} is recomputed: the source begins with {given[0]:g} instead of {values[0]:g}"
                         if given[0] != values[0] else f"{name} is recomputed")  # fmt: skip
    if "task_index" not in source.column_names:
        if len(episode.tasks) != 1 or episode.tasks[0] not in dataset.tasks:
            raise UserError(f"{episode.data_file} has no column task_index, and the metadata does not name one task",
                            actual=list(episode.tasks))  # fmt: skip
        notes.append("task_index is missing: written from the metadata")
        indices["task_index"] = np.full(length, dataset.tasks.index(episode.tasks[0]), np.int64)
    else:
        indices["task_index"] = source["task_index"].to_numpy().astype(np.int64)
        if indices["task_index"].max() >= len(dataset.tasks) or indices["task_index"].min() < 0:
            raise UserError(f"{episode.data_file}: task_index names no task", actual=int(indices["task_index"].max()),
                            allowed=f"0 to {len(dataset.tasks) - 1}")  # fmt: skip
    return indices, notes


def _typed(column: pa.Array, name: str, feature: dict[str, Any], version: str, episode: Episode) -> pa.Array:
    shape, dtype = list(feature.get("shape") or [1]), feature.get("dtype")
    if len(shape) != 1 or dtype in ("string", "language"):
        return column  # strings and arrays of several axes are nested in the same way in all versions
    kind = pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)
    try:
        flat = (column.flatten() if is_list(column.type) else column).cast(kind)
    except (pa.ArrowException, NotImplementedError) as error:
        raise UserError(f"{episode.data_file}: {name} cannot be {dtype}", actual=str(error)) from None
    if len(flat) != len(column) * shape[0] or flat.null_count:
        raise UserError(f"{episode.data_file}: rows of {name} do not hold {shape[0]} values each",
                        next_step="dreamgen check finds the row")  # fmt: skip
    return vector_array(flat, shape[0], version, name)
