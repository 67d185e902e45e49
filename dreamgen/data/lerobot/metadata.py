"""The metadata of a LeRobot dataset (v2.0, v2.1, v3.0) in one form; the only reader of it.

lerobot itself refuses v2.0 and v2.1, takes seconds and half a gigabyte to import, and downloads what is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from dreamgen.data.lerobot.episodes import EpisodeColumns, Episodes
from dreamgen.data.lerobot.files import clear_link_cache, iter_json_lines, iter_parquet_rows, read_json_object
from dreamgen.data.lerobot.findings import FatalFindings, FindingSink
from dreamgen.data.lerobot.schema import (
    EPISODES_V2,
    EPISODES_V3,
    INFO,
    MODALITY,
    TASKS_V2,
    TASKS_V3,
    Schema,
    read_schema,
    whole_number,
)

PLACE_KEYS = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
UNNAMED_INDEX = "__index_level_0__"  # of pandas: the column of an index without a name


@dataclass(frozen=True)
class LeRobotMeta(Schema):
    """What `meta/` says: the schema of info.json, and the rest.

    Args:
        root: The dataset's folder.
        episodes: Sorted by number.
        tasks: task_index -> the task in words, in the order of the file.
        modality: GR00T's modality.json as it is, or None.
    """

    root: Path
    episodes: Episodes
    tasks: dict[int, str]
    modality: dict[str, Any] | None

    def cameras_with_frames(self) -> list[str]:
        """Return the color cameras that can be read: videos with at least one file, and pictures in the tables."""
        return [*self.episodes.existing_videos(self.cameras), *self.pictures]

    def counted_totals(self) -> dict[str, int]:
        """Return the totals that info.json should hold."""
        totals = {
            "total_episodes": len(self.episodes),
            "total_frames": int(self.episodes.length_N.sum()),
            "total_tasks": len(self.tasks),
        }
        if self.is_v3:
            return totals
        return totals | {
            "total_videos": len(self.episodes) * len(self.video_keys),
            "total_chunks": math.ceil(len(self.episodes) / self.chunks_size),
        }


def read_meta(root: Path) -> LeRobotMeta:
    """Read the metadata for a stage that needs all of it.

    Raises:
        UserError: listing what is missing or malformed, or naming a path template that leaves the dataset.
    """
    findings = FatalFindings(root)
    meta = read_metadata(root, findings)
    findings.raise_if_any()
    assert meta is not None, "a reader that returns nothing has added a fatal finding"
    meta.episodes.check_paths(str(root / INFO))
    return meta


def read_metadata(root: Path, findings: FindingSink) -> LeRobotMeta | None:
    """Read as much of the metadata as can be read.

    Args:
        root: The dataset's folder.
        findings: Receives everything that is wrong; episodes and tasks that cannot be read are left out.

    Returns:
        The metadata, or None where info.json cannot be used.
    """
    clear_link_cache()
    schema = read_schema(root, findings)
    if schema is None:
        return None
    tasks = _read_tasks(root, schema.is_v3, findings)
    episodes = (_read_episodes_v3 if schema.is_v3 else _read_episodes_v2)(root, schema, findings)
    modality = read_json_object(root, MODALITY, findings) if (root / MODALITY).exists() else None
    return LeRobotMeta(**vars(schema), root=root, episodes=episodes, tasks=tasks, modality=modality)


def _read_episodes_v2(root: Path, schema: Schema, findings: FindingSink) -> Episodes:
    columns = EpisodeColumns()
    for line, row in iter_json_lines(root, EPISODES_V2, findings):
        if _is_episode(row, EPISODES_V2, f"line {line}", findings):
            index = row["episode_index"]
            columns.add(_tasks_of(row), {}, index=index, length=row["length"], first_row=0, source=0, source_row=0,
                        chunk=index // schema.chunks_size, file=index)  # fmt: skip
    templates = (schema.data_path, schema.video_path)
    episodes = columns.episodes(root, templates, (EPISODES_V2,), schema.video_keys)
    _check_numbers(columns, episodes, EPISODES_V2, findings)
    return episodes


def _read_episodes_v3(root: Path, schema: Schema, findings: FindingSink) -> Episodes:
    files = sorted(path.relative_to(root).as_posix() for path in (root / EPISODES_V3).glob("*/*.parquet"))
    if not files:
        findings.add("missing-file", EPISODES_V3, "", "no parquet file", "chunk-000/file-000.parquet")
    places = [f"videos/{camera}/{name}" for camera in schema.video_keys
              for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]  # fmt: skip
    wanted = ("episode_index", "length", "tasks", *PLACE_KEYS, *places)
    columns = EpisodeColumns(schema.video_keys)
    for source, file in enumerate(files):
        for number, row in iter_parquet_rows(root, file, wanted, findings):
            if not _is_episode(row, file, f"row {number}", findings):
                continue
            place = _data_place(row, file, findings)
            if place is not None:
                videos = _video_places(row, file, schema.video_keys, findings)
                columns.add(_tasks_of(row), videos, index=row["episode_index"], length=row["length"], source=source,
                            source_row=number, **place)  # fmt: skip
    episodes = columns.episodes(root, (schema.data_path, schema.video_path), files, None)
    _check_numbers(columns, episodes, EPISODES_V3, findings)
    return episodes


def _is_episode(row: dict[str, Any], file: str, where: str, findings: FindingSink) -> bool:
    if not _is_count(row.get("episode_index")) or not _is_count(row.get("length")) or row["length"] == 0:
        found = {key: row.get(key) for key in ("episode_index", "length")}
        findings.add("episode-entry", file, where, found, "whole numbers, length at least 1")
        return False
    return True


def _is_count(value: object) -> TypeGuard[int]:
    number = whole_number(value)
    return number is not None and 0 <= number < 2**62  # what a column of int64 holds, with room for sums


def _tasks_of(row: dict[str, Any]) -> tuple[str, ...]:
    tasks = row.get("tasks")
    return tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list) else ()


def _data_place(row: dict[str, Any], file: str, findings: FindingSink) -> dict[str, int] | None:
    where = f"episode {row['episode_index']}"
    good = {key: row[key] for key in PLACE_KEYS if _is_count(row.get(key))}
    for key in (key for key in PLACE_KEYS if key not in good):
        findings.add("episode-entry", file, f"{where}, {key}", row.get(key), "a whole number from 0")
    if len(good) < len(PLACE_KEYS):
        return None
    num_rows = good["dataset_to_index"] - good["dataset_from_index"]
    if num_rows != row["length"]:
        findings.add("episode-length", file, where, f"dataset_to_index - dataset_from_index = {num_rows}",
                     f"length {row['length']}", fatal=False)  # fmt: skip
    return {
        "chunk": good["data/chunk_index"], "file": good["data/file_index"], "first_row": good["dataset_from_index"]
    }  # fmt: skip


def _video_places(
    row: dict[str, Any], file: str, cameras: tuple[str, ...], findings: FindingSink
) -> dict[str, tuple[int, int, float, float]]:
    places = {}
    for camera in cameras:
        key, where = f"videos/{camera}", f"episode {row['episode_index']}, videos/{camera}"
        chunk, number = (row.get(f"{key}/{name}") for name in ("chunk_index", "file_index"))
        span_s = [row.get(f"{key}/{name}") for name in ("from_timestamp", "to_timestamp")]
        if not _is_count(chunk) or not _is_count(number):
            findings.add("episode-entry", file, where, {"chunk_index": chunk, "file_index": number},
                         "whole numbers from 0", fatal=False)  # fmt: skip
            continue
        times_s = [float(time) for time in span_s if isinstance(time, float | int) and math.isfinite(time)]
        if len(times_s) < 2:
            findings.add("episode-entry", file, where, span_s, "from_timestamp and to_timestamp", fatal=False)
        else:
            places[camera] = (chunk, number, *times_s)
    return places


def _check_numbers(columns: EpisodeColumns, episodes: Episodes, file: str, findings: FindingSink) -> None:
    for number, count in columns.duplicates():
        findings.add("episode-duplicate", file, f"episode_index {number}", f"{count} entries", "each once")
    gaps = np.flatnonzero(episodes.index_N != np.arange(len(episodes)))
    if len(gaps):
        findings.add("episode-gap", file, "episode_index", f"no episode {gaps[0]}", "numbers from 0 without a gap",
                     fatal=False)  # fmt: skip
    if not len(episodes):
        findings.add("no-episodes", file, "", "no episode", "at least one")


def _read_tasks(root: Path, is_v3: bool, findings: FindingSink) -> dict[int, str]:
    file = TASKS_V3 if is_v3 else TASKS_V2
    tasks: dict[int, str] = {}
    by_text: dict[str, int] = {}
    rows = iter_parquet_rows(root, file, ("task", UNNAMED_INDEX, "task_index"), findings) if is_v3 \
        else iter_json_lines(root, file, findings)  # fmt: skip
    for number, row in rows:
        where = f"{'row' if is_v3 else 'line'} {number}"
        index, task = whole_number(row.get("task_index")), row.get("task", row.get(UNNAMED_INDEX))
        if not _is_count(index) or not isinstance(task, str):
            findings.add("task-entry", file, where, row, "task_index and task")
            continue
        if index in tasks:
            findings.add("task-duplicate", file, where, f"task_index {index} again", "each once", fatal=False)
            continue
        if task in by_text:
            findings.add("task-duplicate", file, where, f"{task!r} again, as {by_text[task]} and {index}", "each once",
                         fatal=False)  # fmt: skip
        tasks[index], by_text[task] = task, by_text.get(task, index)
        if not task.strip():
            findings.add("task-empty", file, where, repr(task), "an instruction", fatal=False)
    if is_v3 and list(tasks) != list(range(len(tasks))):
        findings.add("task-order", file, "task_index", list(tasks)[:20], "0, 1, 2 ... in row order", fatal=False)
    return tasks
