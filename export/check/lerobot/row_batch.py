"""A run of rows that whole episodes fill one behind the other: all of them are compared at once.

Axes: N rows, E episodes, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from dreamgen.data.images import decode_image
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.rows import describe_column, is_number, matrix, numbers
from dreamgen.data.lerobot.schema import INDEX_COLUMNS, NUMERIC
from dreamgen.data.lerobot.statistics import Statistics
from dreamgen.data.timeline import frame_times_s
from dreamgen.data.trajectory import ACTION, STATE
from export.check.alignment import Alignment, alignment_of
from export.check.findings import Findings
from export.check.lerobot.metadata import annotation_columns
from export.check.lerobot.states_in_images import MAX_EPISODES, MIN_ROWS, sampled_rows
from export.check.lerobot.statistics import EpisodeStatistics
from export.check.other_episodes import Thumbnail

TIME_TOLERANCE_S = 1e-4  # LeRobot's own: a frame farther off is an error for its loader


@dataclass(frozen=True)
class RowBatch:
    """Rows and the episodes that fill them.

    Args:
        dataset: The metadata.
        file: The table.
        table: The rows.
        positions: Of the episodes.
        num_rows_E: How many of the rows each has.
        usable: Columns that hold plain numbers.
    """

    dataset: LeRobotMeta
    file: str
    table: pa.Table
    positions: np.ndarray
    num_rows_E: np.ndarray
    usable: frozenset[str]

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

    def name(self, place: int) -> str:
        """Return how findings refer to one of the episodes."""
        return f"episode {self.dataset.episodes.index_N[self.positions[place]]}"

    def first_bad(self, bad_N: np.ndarray) -> Iterator[tuple[str, int, int]]:
        """Yield, for each episode with a bad row, (name, row in it, row in the batch) of the first."""
        if bad_N.any():
            rows = np.flatnonzero(bad_N)
            places, first = np.unique(self.place_N[rows], return_index=True)
            for place, row in zip(places.tolist(), rows[first].tolist(), strict=True):
                yield self.name(place), int(self.frame_N[row]), row


@dataclass(frozen=True)
class Motion:
    """What is kept of episodes to compare them with others.

    Args:
        alignments: How actions fit states.
        states: Position -> state_TD of some rows, of the first episodes.
    """

    alignments: list[Alignment] = field(default_factory=list)
    states: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, position: int, action_ND: np.ndarray | None, state_ND: np.ndarray | None) -> None:
        """Take an episode; None where its values are missing or not finite."""
        if state_ND is None:
            return
        if position < MAX_EPISODES and len(state_ND) >= MIN_ROWS:
            self.states[position] = state_ND[sampled_rows(len(state_ND))]
        if action_ND is not None and (found := alignment_of(position, action_ND, state_ND)):
            self.alignments.append(found)

    def merge(self, other: Motion) -> None:
        """Take the episodes of another part."""
        self.alignments.extend(other.alignments)
        self.states.update(other.states)


def check_row_batch(
    batch: RowBatch, recorded: EpisodeStatistics, findings: Findings, motion: Motion | None = None
) -> dict[str, Statistics]:
    """Compare rows with the metadata of their episodes.

    Args:
        batch: The rows.
        recorded: Statistics that the dataset records.
        findings: Receives what is wrong.
        motion: Receives what is compared with other episodes, if given.

    Returns:
        Statistics of the float features whose rows are all finite.
    """
    if batch.table.num_rows != len(batch.place_N):
        return {}  # the file ended early, which its row count shows
    _check_indices(batch, findings)
    _check_annotations(batch, findings)
    by_episode, of_batch, vectors = {}, {}, {}
    for name, values_ND in _float_features(batch, findings):
        bad_N = np.any(~np.isfinite(values_ND), axis=1)
        for episode, frame, row in batch.first_bad(bad_N):
            dim = int(np.argmin(np.isfinite(values_ND[row])))
            findings.add("not-finite", batch.file, f"{episode}, row {frame}, {name}[{dim}]", f"{values_ND[row, dim]}",
                         "finite numbers")  # fmt: skip
        if len(values_ND) and not bad_N.any():
            by_episode[name] = _statistics_by_episode(values_ND, batch)
            of_batch[name] = {
                "min": values_ND.min(axis=0).astype(np.float64), "max": values_ND.max(axis=0).astype(np.float64),
                "mean": values_ND.mean(axis=0, dtype=np.float64), "std": values_ND.std(axis=0, dtype=np.float64),
                "count": np.array([len(values_ND)]),
            }  # fmt: skip
        vectors |= {name: values_ND} if not bad_N.any() and name in (ACTION, STATE) else {}
    if motion is not None:
        for place, (begin, num_rows) in enumerate(zip(batch.starts_E.tolist(), batch.num_rows_E.tolist(), strict=True)):
            motion.add(int(batch.positions[place]), *(
                vectors[name][begin : begin + num_rows] if name in vectors else None for name in (ACTION, STATE)
            ))  # fmt: skip
    recorded.compare(batch.file, batch.positions, by_episode)
    return of_batch


def _statistics_by_episode(values_ND: np.ndarray, batch: RowBatch) -> Statistics:
    counts_E1 = batch.num_rows_E[:, None]
    return {
        "min": np.minimum.reduceat(values_ND, batch.starts_E, axis=0).astype(np.float64),
        "max": np.maximum.reduceat(values_ND, batch.starts_E, axis=0).astype(np.float64),
        "mean": np.add.reduceat(values_ND, batch.starts_E, axis=0, dtype=np.float64) / counts_E1,
    }


def _check_indices(batch: RowBatch, findings: Findings) -> None:
    columns = {name: values for name in INDEX_COLUMNS if (values := _numbers(batch, name, findings)) is not None}
    episodes, fps = batch.dataset.episodes, batch.dataset.fps
    if (times_N := columns.get("timestamp")) is not None:
        expected_N = frame_times_s(int(batch.num_rows_E.max()), fps)[batch.frame_N]
        for episode, frame, row in batch.first_bad(~(np.abs(times_N - expected_N) <= TIME_TOLERANCE_S)):
            findings.add("timestamp", batch.file, f"{episode}, row {frame}", f"{times_N[row]:.6f} s",
                         f"{frame}/{float(fps):g} = {expected_N[row]:.6f} s")  # fmt: skip
    positions_N = batch.positions[batch.place_N]
    for name, code, expected_N in (
        ("episode_index", "episode-index", episodes.index_N[positions_N]),
        ("frame_index", "frame-index", batch.frame_N),
        ("index", "index", episodes.first_row_N[positions_N] + batch.frame_N),
    ):
        if (values_N := columns.get(name)) is not None:
            for episode, frame, row in batch.first_bad(values_N != expected_N):
                findings.add(code, batch.file, f"{episode}, row {frame}, {name}", f"{values_N[row]:g}",
                             f"{expected_N[row]}")  # fmt: skip
    if (task_N := columns.get("task_index")) is not None:
        _check_tasks(batch, task_N, findings)


def _numbers(batch: RowBatch, name: str, findings: Findings) -> np.ndarray | None:
    if name not in batch.usable or name not in batch.table.column_names:
        return None
    column = batch.table.column(name)
    if column.null_count:
        findings.add("column-type", batch.file, name, f"{column.null_count} empty cells", "a number in every row")
        return None
    return numbers(column)


def _check_tasks(batch: RowBatch, task_N: np.ndarray, findings: Findings) -> None:
    # Rows of one task follow each other, so one of each run of equal pairs is enough.
    change_N = np.r_[True, (np.diff(task_N) != 0) | (np.diff(batch.place_N) != 0)]
    used: dict[int, set[Any]] = {}
    for place, task in zip(batch.place_N[change_N].tolist(), task_N[change_N].tolist(), strict=True):
        used.setdefault(place, set()).add(task)
    known, episodes = batch.dataset.tasks, batch.dataset.episodes
    for place, indices in used.items():
        position = int(batch.positions[place])
        listed = episodes.tasks(position)
        named = {known[index] for index in indices if index in known}
        if len(named) == len(indices) and named == set(listed):
            continue
        episode, source = batch.name(place), episodes.source(position)
        for index in sorted(indices - set(known)):
            findings.add("task-unknown", batch.file, f"{episode}, task_index", f"{index:g}",
                         "an index of the task table")  # fmt: skip
        if not listed:
            findings.add("episode-tasks", source, episode, "no task", "at least one")
            continue
        for task in sorted(named - set(listed)):
            findings.add("episode-tasks", source, episode, f"{list(listed)} without {task!r}", "the tasks of its rows")
        for task in (task for task in listed if task not in named):
            findings.add("episode-tasks", source, episode, f"the task {task!r}, which no row has",
                         "only tasks that rows refer to", severity="warning")  # fmt: skip


def _check_annotations(batch: RowBatch, findings: Findings) -> None:
    for name in annotation_columns(batch.dataset):
        if name not in batch.table.column_names or not pa.types.is_integer(batch.table.schema.field(name).type):
            continue
        cells = batch.table.column(name)
        if cells.null_count:
            findings.add("annotation-list", batch.file, name, f"{cells.null_count} empty cells", "a number in each row")
        for index in sorted({v for v in cells.unique().to_pylist() if v is not None} - set(batch.dataset.tasks)):
            findings.add("annotation-unknown", batch.file, name, str(index), "an index of tasks.jsonl")


def _float_features(batch: RowBatch, findings: Findings) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rows of each feature of floats as (N, D), and report types and lengths of all numeric ones."""
    for name, feature in batch.dataset.features.items():
        if feature["dtype"] not in NUMERIC or name not in batch.table.column_names:
            continue
        column = batch.table.column(name)
        values_ND, stored = matrix(column, math.prod(feature["shape"]))
        if values_ND is None:
            if name not in INDEX_COLUMNS or is_number(column.type):  # any other type was reported of the file
                size = " x ".join(map(str, feature["shape"]))
                findings.add("vector-length", batch.file, name, describe_column(column), f"vectors of {size}")
            continue
        if stored != feature["dtype"]:
            findings.add("column-type", batch.file, name, stored, f"{feature['dtype']} as in info.json",
                         severity="warning")  # fmt: skip
        if feature["dtype"].startswith("float"):
            yield name, values_ND


def check_stored_pictures(batch: RowBatch, findings: Findings) -> dict[tuple[str, int], np.ndarray]:
    """Decode the pictures in the table itself (dtype image).

    Returns:
        (camera, position of an episode) -> thumbnail_HWC, of episodes whose pictures are all sound.
    """
    thumbnails: dict[tuple[str, int], np.ndarray] = {}
    if batch.table.num_rows != len(batch.place_N):
        return thumbnails  # as in `check_row_batch`
    for name, feature in batch.dataset.features.items():
        if feature["dtype"] != "image" or name not in batch.table.column_names:
            continue
        cells = batch.table.column(name)
        for place, (begin, num_rows) in enumerate(zip(batch.starts_E.tolist(), batch.num_rows_E.tolist(), strict=True)):
            where = f"{batch.name(place)}, row {{}}, {name}"
            own = cells.slice(begin, num_rows)
            thumbnail_HWC = _check_stored_episode(batch.file, where, own, feature["shape"], findings)
            if thumbnail_HWC is not None:
                thumbnails[name, int(batch.positions[place])] = thumbnail_HWC
    return thumbnails


def _check_stored_episode(
    file: str, where: str, cells: pa.ChunkedArray, shape: Sequence[int], findings: Findings
) -> np.ndarray | None:
    """Decode the pictures of one episode and return their thumbnail_HWC; `where` has a place for the row."""
    thumbnail, size = Thumbnail(len(cells)), sorted(shape)[-2:]
    for row, cell in enumerate(cells):
        encoded = (cell.as_py() or {}).get("bytes") if pa.types.is_struct(cell.type) else None
        picture = decode_image(encoded, cv2.IMREAD_UNCHANGED) if encoded else None
        if picture is None:
            findings.add("damaged-picture", file, where.format(row), "no picture", "an encoded picture")
            continue
        if sorted(picture.shape[:2]) != size:
            findings.add("picture-size", file, where.format(row), f"{picture.shape[0]}x{picture.shape[1]}",
                         f"{shape} as in info.json")  # fmt: skip
        thumbnail.add(picture)
    return thumbnail.mean_HWC()
