"""A run of rows that whole episodes fill one behind the other: all of them are compared at once.

Axes: N rows, E episodes, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.data.timeline import frame_times_s
from export.check.findings import Findings
from export.check.lerobot.columns import INDEX_COLUMNS, NUMERIC, is_number, matrix, shape_of
from export.check.lerobot.episodes import Episode, LeRobotEntry
from export.check.lerobot.modality import annotation_columns
from export.check.lerobot.ranges import Range, Ranges
from export.check.lerobot.recorded import RecordedStatistics

TIME_TOLERANCE_S = 1e-4  # LeRobot's own: a frame farther off is an error for its loader


@dataclass(frozen=True)
class RowBatch:
    """Rows and the episodes that fill them.

    Args:
        positions: Of the episodes.
        num_rows_E: How many of the rows each has.
        usable: Columns that hold plain numbers.
    """

    dataset: LeRobotEntry
    file: str
    table: pa.Table
    positions: np.ndarray
    num_rows_E: np.ndarray
    usable: set[str]
    fast: bool

    @cached_property
    def starts_E(self) -> np.ndarray:
        """First row of each episode."""
        return np.r_[0, np.cumsum(self.num_rows_E)[:-1]]

    @cached_property
    def place_N(self) -> np.ndarray:
        """Which of the episodes each row belongs to."""
        return np.repeat(np.arange(len(self.positions)), self.num_rows_E)

    @cached_property
    def frame_N(self) -> np.ndarray:
        """Number of each row in its episode."""
        return np.arange(len(self.place_N)) - self.starts_E[self.place_N]

    def episode(self, place: int) -> Episode:
        """Return one of the episodes."""
        return self.dataset.episodes[int(self.positions[place])]

    def first_bad(self, bad_N: np.ndarray) -> Iterator[tuple[Episode, int, int]]:
        """Yield, for each episode with a bad row, (episode, row in it, row in the block) of the first."""
        if bad_N.any():
            rows = np.flatnonzero(bad_N)
            places, first = np.unique(self.place_N[rows], return_index=True)
            for place, row in zip(places.tolist(), rows[first].tolist(), strict=True):
                yield self.episode(place), int(self.frame_N[row]), row


def check_row_batch(block: RowBatch, recorded: RecordedStatistics, ranges: Ranges, findings: Findings) -> None:
    """Compare rows with what their episodes say, and gather the figures of their vectors."""
    if block.table.num_rows != len(block.place_N):
        return  # the file ended early, which its row count tells
    _check_indices(block, findings)
    _check_annotations(block, findings)
    computed = {}
    for name, values_ND in _vectors(block, findings):
        bad_N = ~np.isfinite(values_ND).all(axis=1)
        for episode, row, at in block.first_bad(bad_N):
            column = int(np.argmin(np.isfinite(values_ND[at])))
            findings.add("not-finite", block.file, f"{episode.name}, row {row}, {name}[{column}]",
                         f"{values_ND[at, column]}", "finite numbers")  # fmt: skip
        if len(values_ND) and not bad_N.any():
            computed[name] = _episode_statistics(values_ND, block)
            ranges.add(name, Range(values_ND.min(axis=0).astype(np.float64), values_ND.max(axis=0).astype(np.float64),
                                   values_ND.sum(axis=0, dtype=np.float64), len(values_ND)))  # fmt: skip
    recorded.compare(block.file, block.positions, computed, findings)
    if not block.fast:
        _check_pictures(block, findings)


def _episode_statistics(values_ND: np.ndarray, block: RowBatch) -> dict[str, np.ndarray]:
    counts_E1 = block.num_rows_E[:, None]
    return {
        "min": np.minimum.reduceat(values_ND, block.starts_E, axis=0).astype(np.float64),
        "max": np.maximum.reduceat(values_ND, block.starts_E, axis=0).astype(np.float64),
        "mean": np.add.reduceat(values_ND, block.starts_E, axis=0, dtype=np.float64) / counts_E1,
    }


def _check_indices(block: RowBatch, findings: Findings) -> None:
    columns = {name: values for name in INDEX_COLUMNS if (values := _numbers(block, name, findings)) is not None}
    episodes = block.dataset.episodes
    if (times_N := columns.get("timestamp")) is not None:
        wanted_N = frame_times_s(int(block.num_rows_E.max()), block.dataset.exact_fps)[block.frame_N]
        for episode, row, at in block.first_bad(~(np.abs(times_N - wanted_N) <= TIME_TOLERANCE_S)):
            findings.add("timestamp", block.file, f"{episode.name}, row {row}", f"{times_N[at]:.6f} s",
                         f"{row}/{block.dataset.fps:g} = {wanted_N[at]:.6f} s")  # fmt: skip
    positions_N = block.positions[block.place_N]
    for name, code, wanted_N in (
        ("episode_index", "episode-index", episodes.index_N[positions_N]),
        ("frame_index", "frame-index", block.frame_N),
        ("index", "index", episodes.first_row_N[positions_N] + block.frame_N),
    ):
        if (values_N := columns.get(name)) is not None:
            for episode, row, at in block.first_bad(values_N != wanted_N):
                findings.add(code, block.file, f"{episode.name}, row {row}, {name}", f"{values_N[at]:g}",
                             f"{wanted_N[at]}")  # fmt: skip
    if (task_N := columns.get("task_index")) is not None:
        _check_tasks(block, task_N, findings)


def _numbers(block: RowBatch, name: str, findings: Findings) -> np.ndarray | None:
    if name not in block.usable or name not in block.table.column_names:
        return None
    column = block.table.column(name)
    if column.null_count:
        findings.add("column-type", block.file, name, f"{column.null_count} empty cells", "a number in every row")
        return None
    return column.to_numpy()


def _check_tasks(block: RowBatch, task_N: np.ndarray, findings: Findings) -> None:
    # Rows of one task follow each other, so that a run of equal pairs stands for all of them.
    change_N = np.r_[True, (np.diff(task_N) != 0) | (np.diff(block.place_N) != 0)]
    used: dict[int, set[float]] = {}
    for place, task in zip(block.place_N[change_N].tolist(), task_N[change_N].tolist(), strict=True):
        used.setdefault(place, set()).add(task)
    known = block.dataset.tasks
    for place, indices in used.items():
        listed = block.dataset.episodes.tasks(int(block.positions[place]))
        named = {known[index] for index in indices if index in known}
        if len(named) == len(indices) and named == set(listed):
            continue
        episode = block.episode(place)
        for index in sorted(indices - set(known)):
            findings.add("task-unknown", block.file, f"{episode.name}, task_index", f"{index:g}",
                         "an index of the task table")  # fmt: skip
        if not listed:
            findings.add("episode-tasks", episode.named_by, episode.name, "no task", "at least one")
            continue
        for task in sorted(named - set(listed)):
            findings.add("episode-tasks", episode.named_by, episode.name, f"{list(listed)} without {task!r}",
                         "the tasks of its rows")  # fmt: skip
        for task in (task for task in listed if task not in named):
            findings.add("episode-tasks", episode.named_by, episode.name, f"the task {task!r}, which no row has",
                         "only tasks that rows point at", severity="warning")  # fmt: skip


def _check_annotations(block: RowBatch, findings: Findings) -> None:
    for name in annotation_columns(block.dataset):
        if name not in block.table.column_names or not pa.types.is_integer(block.table.schema.field(name).type):
            continue
        cells = block.table.column(name)
        if cells.null_count:
            findings.add("annotation-list", block.file, name, f"{cells.null_count} empty cells", "a number in each row")
        for index in sorted({v for v in pc.unique(cells).to_pylist() if v is not None} - set(block.dataset.tasks)):
            findings.add("annotation-unknown", block.file, name, str(index), "an index of tasks.jsonl")


def _vectors(block: RowBatch, findings: Findings) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rows of each feature of floats as (N, D)."""
    for name, feature in block.dataset.features.items():
        if feature["dtype"] not in NUMERIC or name not in block.table.column_names:
            continue
        column = block.table.column(name)
        values_ND, stored = matrix(column, math.prod(feature["shape"]))
        if values_ND is None:
            if name not in INDEX_COLUMNS or is_number(column.type):  # what is no number at all was said of the file
                size = " x ".join(map(str, feature["shape"]))
                findings.add("vector-length", block.file, name, shape_of(column), f"vectors of {size}")
            continue
        if stored != feature["dtype"]:
            findings.add("column-type", block.file, name, stored, f"{feature['dtype']} as info.json says",
                         severity="warning")  # fmt: skip
        if feature["dtype"].startswith("float"):
            yield name, values_ND


def _check_pictures(block: RowBatch, findings: Findings) -> None:
    """Decode pictures that stand in the table itself (dtype image)."""
    for name, feature in block.dataset.features.items():
        if feature["dtype"] != "image" or name not in block.table.column_names:
            continue
        size = sorted(feature["shape"])[-2:]
        for row, cell in enumerate(block.table.column(name)):
            where = f"{block.episode(int(block.place_N[row])).name}, row {block.frame_N[row]}, {name}"
            encoded = (cell.as_py() or {}).get("bytes") if pa.types.is_struct(cell.type) else None
            picture = None if not encoded else cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
            if picture is None:
                findings.add("damaged-picture", block.file, where, "no picture", "an encoded picture")
            elif sorted(picture.shape[:2]) != size:
                findings.add("picture-size", block.file, where, f"{picture.shape[0]}x{picture.shape[1]}",
                             f"{feature['shape']} as info.json says")  # fmt: skip
