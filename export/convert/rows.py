"""The rows of one episode, read from whichever version and put into the types that info.json states.

Axes: N rows, D dimensions, G row groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.timeline import frame_times_s
from dreamgen.errors import UserError
from export.convert.source import SourceDataset
from export.image_statistics import ImageHistogram, sampled_frames
from export.statistics import vector_statistics

TIME_TOLERANCE_S = 1e-4  # LeRobot's own
INDEX = {"dtype": "int64", "shape": [1], "names": None}
# What readers find frames by; written anew, so that they hold whatever the source says.
NUMBERED = {"timestamp": {"dtype": "float32", "shape": [1], "names": None}} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), INDEX
)


@dataclass(frozen=True)
class EpisodeRows:
    """An episode's table.

    Args:
        table: In the types of the target, a column a feature.
        figures: Statistics of each feature, as JSON holds them.
        notes: What had to be changed.
    """

    table: pa.Table
    metrics: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def target_features(dataset: SourceDataset) -> dict[str, dict[str, Any]]:
    """Return the features of the new info.json: the source's, and the numbered ones that it lacks."""
    return {**dataset.features, **NUMBERED}


def read_episode(
    dataset: SourceDataset, episode: Episode, pictures: dict[str, dict[str, Any]], tables: EpisodeTables,
    first_index: int, as_lists: bool,
) -> EpisodeRows:  # fmt: skip
    """Read an episode's rows and count their statistics.

    Args:
        dataset: The source.
        episode: One of its episodes.
        pictures: Statistics of its pictures by feature, where they are known.
        tables: Who reads the tables.
        first_index: Number of its first frame in the dataset.
        as_lists: v2.1: vectors of one dimension are lists, which GR00T stacks; v3.0 holds them as plain numbers.

    Raises:
        UserError: if rows or a column are missing, or a column cannot hold its feature.
    """
    source = tables.rows(episode)
    if source.num_rows != episode.length:
        raise UserError(
            f"{episode.data_file}: rows of episode {episode.index} differ from its length", actual=source.num_rows,
            allowed=episode.length, next_step=f"dreamgen check {dataset.root}",
        )  # fmt: skip
    numbered, notes = _numbered(dataset, episode, source, first_index)
    columns, metrics = {}, {}
    for name, feature in target_features(dataset).items():
        if feature.get("dtype") == "video":
            metrics[name] = pictures.get(name, {})
        elif name in numbered:
            columns[name] = pa.array(numbered[name])
            metrics[name] = _as_json(vector_statistics(numbered[name]))
        elif name not in source.column_names:
            raise UserError(f"{episode.data_file} has no column {name}, which info.json names",
                            next_step=f"dreamgen check {dataset.root}")  # fmt: skip
        else:
            column = source[name].combine_chunks()
            if feature.get("dtype") == "image":
                columns[name] = column
                metrics[name] = pictures.get(name) or _as_json(_image_statistics(column))
                continue
            columns[name] = _typed(column, name, feature, as_lists, episode)
            if name in dataset.vectors:
                metrics[name] = _as_json(vector_statistics(_matrix(columns[name], episode.length)))
    return EpisodeRows(pa.table(columns), {n: own for n, own in metrics.items() if own}, tuple(notes))


class EpisodeTables:
    """Reads the rows of episodes; of a table that several share, only the row groups that hold an episode."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._source: pq.ParquetFile | None = None
        self._range_G2: np.ndarray | None = None
        self._groups: list[int] | None = None
        self._read: pa.Table | None = None

    def rows(self, episode: Episode) -> pa.Table:
        """Return an episode's rows.

        Raises:
            UserError: if the file cannot be read.
        """
        try:
            # ParquetFile: read_table would take the folders' names for columns.
            if not episode.shares_file:
                return pq.ParquetFile(episode.data_file).read()
            if self._path != episode.data_file:
                self._path, self._groups, self._source = episode.data_file, None, pq.ParquetFile(episode.data_file)
                self._range_G2 = _episodes_of_groups(self._source.metadata)
            low_G, high_G = self._range_G2.T
            groups = np.flatnonzero((low_G <= episode.index) & (episode.index <= high_G)).tolist()
            if groups != self._groups:
                self._groups, self._read = groups, self._source.read_row_groups(groups)
            return self._read.filter(pc.field("episode_index") == episode.index)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{episode.data_file} cannot be read", actual=str(error)) from None


def _episodes_of_groups(metadata: pq.FileMetaData) -> np.ndarray:
    """Return the smallest and largest episode_index of each row group; any may be in one that does not say."""
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    column, ranges = names.index("episode_index") if "episode_index" in names else None, []
    for group in range(metadata.num_row_groups):
        counted = None if column is None else metadata.row_group(group).column(column).statistics
        known = counted is not None and counted.has_min_max
        ranges.append((counted.min, counted.max) if known else (0, np.iinfo(np.int64).max))
    return np.array(ranges, np.int64).reshape(-1, 2)


def _numbered(
    dataset: SourceDataset, episode: Episode, source: pa.Table, first_index: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    length, notes = episode.length, []
    times_s = frame_times_s(length, dataset.fps)
    wanted = {
        "timestamp": times_s.astype(np.float32),
        "frame_index": np.arange(length, dtype=np.int64),
        "episode_index": np.full(length, episode.index, np.int64),
        "index": first_index + np.arange(length, dtype=np.int64),
    }
    for name, values in wanted.items():
        given = source[name].to_numpy().astype(np.float64) if name in source.column_names else None
        if given is None:
            notes.append(f"{name} is missing: written")
        elif np.abs(given - values).max() > (TIME_TOLERANCE_S if name == "timestamp" else 0):
            notes.append(f"{name} is counted anew: the source begins with {given[0]:g} instead of {values[0]:g}"
                         if given[0] != values[0] else f"{name} is counted anew")  # fmt: skip
    if "task_index" not in source.column_names:
        if len(episode.tasks) != 1 or episode.tasks[0] not in dataset.tasks:
            raise UserError(f"{episode.data_file} has no column task_index, and the metadata name not one task",
                            actual=list(episode.tasks))  # fmt: skip
        notes.append("task_index is missing: written from the metadata")
        wanted["task_index"] = np.full(length, dataset.tasks.index(episode.tasks[0]), np.int64)
    else:
        wanted["task_index"] = source["task_index"].to_numpy().astype(np.int64)
        if wanted["task_index"].max() >= len(dataset.tasks) or wanted["task_index"].min() < 0:
            raise UserError(f"{episode.data_file}: task_index names no task", actual=int(wanted["task_index"].max()),
                            allowed=f"0 to {len(dataset.tasks) - 1}")  # fmt: skip
    return wanted, notes


def _typed(column: pa.Array, name: str, feature: dict[str, Any], as_lists: bool, episode: Episode) -> pa.Array:
    shape, dtype = list(feature.get("shape") or [1]), feature.get("dtype")
    if len(shape) != 1 or dtype in ("string", "language"):
        return column  # texts and arrays of several axes are nested in the same way in all versions
    kind = pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)
    try:
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type) \
            or pa.types.is_fixed_size_list(column.type)  # fmt: skip
        flat = (column.flatten() if is_list else column).cast(kind)
    except (pa.ArrowException, NotImplementedError) as error:
        raise UserError(f"{episode.data_file}: {name} cannot be {dtype}", actual=str(error)) from None
    if len(flat) != len(column) * shape[0] or flat.null_count:
        raise UserError(f"{episode.data_file}: rows of {name} do not hold {shape[0]} values each",
                        next_step="dreamgen check names the row")  # fmt: skip
    if shape == [1] and not (as_lists and name.startswith(("action", "observation."))):
        return flat
    if as_lists:
        offsets = pa.array(np.arange(len(column) + 1, dtype=np.int32) * shape[0])
        return pa.ListArray.from_arrays(offsets, flat)
    return pa.FixedSizeListArray.from_arrays(flat, shape[0])


def _matrix(column: pa.Array, num_rows: int) -> np.ndarray:
    flat = column
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(num_rows, -1)


def _image_statistics(column: pa.Array) -> dict[str, np.ndarray]:
    image = ImageHistogram.empty()
    for index in sampled_frames(len(column)):
        data = column[int(index)].as_py()["bytes"]
        frame_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if frame_HWC is None:
            raise UserError(f"the picture of row {index} is not within the table, or cannot be decoded")
        image = image.with_frame(frame_HWC)
    return image.metrics()


def _as_json(metrics: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: values.tolist() for name, values in metrics.items()}
