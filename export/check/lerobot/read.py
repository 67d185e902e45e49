"""Reading a LeRobot dataset's metadata, v2.0 to v3.0, into one shape that all checks work on, a row at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from export.check.files import (
    PARQUET_DAMAGE,
    existing,
    fill_template,
    iter_json_lines,
    json_line,
    open_parquet,
    read_json_object,
    whole_number,
)
from export.check.findings import Findings
from export.check.lerobot.episodes import (
    INFO,
    NO_FILE,
    V2_DATA,
    V2_VIDEO,
    V3_DATA,
    V3_VIDEO,
    EpisodeRows,
    EpisodeTable,
    LeRobotEntry,
)

VERSIONS = ("v2.0", "v2.1", "v3.0")
EPISODES_V2, TASKS_V2, TASKS_V3 = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/tasks.parquet"
EPISODE_STATISTICS = "meta/episodes_stats.jsonl"
ROWS_AT_ONCE = 1000
EPISODE_INDEX = re.compile(rb'"episode_index"\s*:\s*(\d+)\s*[,}]')


def read_lerobot(root: Path, findings: Findings) -> LeRobotEntry | None:
    """Read the metadata of a LeRobot dataset.

    Returns:
        The dataset, or None where so much is damaged that nothing else can be checked; findings say what.
    """
    info = read_json_object(root, INFO, findings)
    if info is None:
        return None
    version, fps = info.get("codebase_version"), info.get("fps")
    if version not in VERSIONS:
        findings.add("unknown-version", INFO, "codebase_version", version, " or ".join(VERSIONS))
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0:
        findings.add("fps", INFO, "fps", fps, "a number above 0")
        fps = None
    features = _features(info, findings)
    if version not in VERSIONS or fps is None or features is None:
        return None
    is_v3 = version == "v3.0"
    cameras = tuple(name for name, feature in features.items() if feature["dtype"] == "video")
    if not _templates_fit(info, is_v3, cameras, findings):
        return None
    tasks = _tasks(root, is_v3, findings)
    episodes = (_read_v3 if is_v3 else _read_v2)(root, info, cameras, findings)
    modality = None
    if (root / "meta" / "modality.json").exists():
        modality = read_json_object(root, "meta/modality.json", findings)
    lines = _statistics_lines(root, episodes, findings) if version == "v2.1" else None
    return LeRobotEntry(root, version, info, float(fps), features, episodes, tasks, modality, lines)


def _features(info: dict[str, Any], findings: Findings) -> dict[str, dict[str, Any]] | None:
    features = info.get("features")
    if not isinstance(features, dict) or not features:
        findings.add("feature", INFO, "features", features, "an object of features")
        return None
    good = {}
    for name, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sizes = [whole_number(size) for size in shape] if isinstance(shape, list) and shape else [None]
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str) or None in sizes:
            findings.add("feature", INFO, f"features.{name}", feature, "dtype and shape")
            continue
        if "/" in name:
            findings.add("feature", INFO, f"features.{name}", name, 'a name without "/"')
        good[name] = feature
    return good


def _templates_fit(info: dict[str, Any], is_v3: bool, cameras: tuple[str, ...], findings: Findings) -> bool:
    names = ("chunk_index", "file_index") if is_v3 else ("episode_chunk", "episode_index")
    values, fit = {**dict.fromkeys(names, 0), "video_key": "camera"}, True
    for key, default in (("data_path", V3_DATA if is_v3 else V2_DATA), ("video_path", V3_VIDEO if is_v3 else V2_VIDEO)):
        template = info.get(key) or default
        if key == "video_path" and not cameras:
            continue
        if not isinstance(template, str) or fill_template(template, values) is None:
            findings.add("path-template", INFO, key, template, default)
            fit = False
    return fit


def _read_v2(root: Path, info: dict[str, Any], cameras: tuple[str, ...], findings: Findings) -> EpisodeTable:
    chunks_size = max(1, whole_number(info.get("chunks_size")) or 1000)
    rows = EpisodeRows(())
    for place, row in iter_json_lines(root, EPISODES_V2, findings):
        if _well_formed(row, EPISODES_V2, f"line {place}", findings):
            number = row["episode_index"]
            rows.add(_tasks_of(row), {}, index=number, length=row["length"], first=0, chunk=number // chunks_size,
                     file=0, source=0, row=0)  # fmt: skip
    _check_numbers(rows, EPISODES_V2, findings)
    return rows.table((EPISODES_V2,), has_spans=False)


def _read_v3(root: Path, info: dict[str, Any], cameras: tuple[str, ...], findings: Findings) -> EpisodeTable:
    files = sorted(path.relative_to(root).as_posix() for path in (root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        findings.add("missing-file", "meta/episodes", "", "no parquet file", "chunk-000/file-000.parquet")
    rows = EpisodeRows(cameras)
    for source, file in enumerate(files):
        for place, row in _parquet_rows(root, file, findings):
            if not _well_formed(row, file, f"row {place}", findings):
                continue
            found = _v3_place(row, file, cameras, findings)
            if found is not None:
                data, videos = found
                rows.add(_tasks_of(row), videos, index=row["episode_index"], length=row["length"], source=source,
                         row=place, **data)  # fmt: skip
    _check_numbers(rows, "meta/episodes", findings)
    return rows.table(tuple(files), has_spans=True)


def _parquet_rows(root: Path, file: str, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    opened = open_parquet(root, file, "the layout", findings)
    if opened is None:
        return
    with opened:
        # The statistics of each episode stand in the same rows; they are read where they are compared.
        columns = [name for name in opened.schema_arrow.names if not name.startswith("stats/")]
        try:
            place = 0
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    yield place, row
                    place += 1
        except PARQUET_DAMAGE as error:
            findings.add("unreadable-file", file, "", str(error), "a parquet file")


def _v3_place(row: dict[str, Any], named_by: str, cameras: tuple[str, ...], findings: Findings,
              ) -> tuple[dict[str, int], dict[str, tuple[int, int, float, float]]] | None:  # fmt: skip
    where = f"episode {row['episode_index']}"

    def number_at(key: str) -> int | None:
        value = whole_number(row.get(key))
        if value is None or value < 0:
            findings.add("episode-entry", named_by, f"{where}, {key}", row.get(key), "a whole number from 0")
            return None
        return value

    keys = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    chunk, file, first, last = (number_at(key) for key in keys)
    if None in (chunk, file, first, last):
        return None
    if last - first != row["length"]:
        findings.add("episode-length", named_by, where, f"dataset_to_index - dataset_from_index = {last - first}",
                     f"length {row['length']}")  # fmt: skip
    videos = {}
    for camera in cameras:
        key = f"videos/{camera}"
        times = [row.get(f"{key}/{side}_timestamp") for side in ("from", "to")]
        place = (number_at(f"{key}/chunk_index"), number_at(f"{key}/file_index"))
        if not all(isinstance(time, float | int) and math.isfinite(time) for time in times):
            findings.add("episode-entry", named_by, f"{where}, {key}", times, "from_timestamp and to_timestamp")
        elif None not in place:
            videos[camera] = (*place, float(times[0]), float(times[1]))
    return {"chunk": chunk, "file": file, "first": first}, videos


def _well_formed(row: dict[str, Any], file: str, where: str, findings: Findings) -> bool:
    number, length = whole_number(row.get("episode_index")), whole_number(row.get("length"))
    if number is None or length is None or not 0 <= number < 2**62 or not 1 <= length < 2**62:
        shown = {key: row.get(key) for key in ("episode_index", "length")}
        findings.add("episode-entry", file, where, shown, "whole numbers, length at least 1")
        return False
    return True


def _check_numbers(rows: EpisodeRows, file: str, findings: Findings) -> None:
    for number, count in rows.duplicates():
        findings.add("episode-duplicate", file, f"episode_index {number}", f"{count} entries", "each once")
    numbers = rows.table((file,), has_spans=False).index_N
    gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
    if len(gaps):
        findings.add("episode-gap", file, "episode_index", f"no episode {gaps[0]}", "numbers from 0 without a gap")
    if not len(numbers):
        findings.add("no-episodes", file, "", "no episode", "at least one")


def _tasks_of(row: dict[str, Any]) -> list[str]:
    tasks = row.get("tasks")
    return [task for task in tasks if isinstance(task, str)] if isinstance(tasks, list) else []


def _tasks(root: Path, is_v3: bool, findings: Findings) -> dict[int, str]:
    file = TASKS_V3 if is_v3 else TASKS_V2
    tasks: dict[int, str] = {}
    by_text: dict[str, int] = {}
    for place, row in _task_rows_v3(root, findings) if is_v3 else iter_json_lines(root, file, findings):
        where, index, task = (
            f"{'row' if is_v3 else 'line'} {place}",
            whole_number(row.get("task_index")),
            row.get("task"),
        )
        if index is None or not isinstance(task, str):
            findings.add("task-entry", file, where, row, "task_index and task")
            continue
        if index in tasks:
            findings.add("task-duplicate", file, where, f"task_index {index} again", "each once")
            continue
        if task in by_text:
            findings.add("task-duplicate", file, where, f"{task!r} again, as {by_text[task]} and {index}", "each once")
        tasks[index], by_text[task] = task, by_text.get(task, index)
        if not task.strip():
            findings.add("task-empty", file, where, repr(task), "an instruction")
    if is_v3 and list(tasks) != list(range(len(tasks))):
        findings.add("task-order", file, "task_index", list(tasks)[:20], "0, 1, 2 ... in row order")
    return tasks


def _task_rows_v3(root: Path, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    # The task stands in pandas' index, whose column is called `task`, or `__index_level_0__` where it has no name.
    for place, row in _parquet_rows(root, TASKS_V3, findings):
        if place == 0 and not ({"task", "__index_level_0__"} & set(row) and "task_index" in row):
            findings.add("task-entry", TASKS_V3, "columns", ", ".join(row), "task_index and task")
            return
        yield place, {"task": row.get("task", row.get("__index_level_0__")), "task_index": row.get("task_index")}


def _statistics_lines(root: Path, episodes: EpisodeTable, findings: Findings) -> np.ndarray | None:
    """Return where each episode's statistics stand, so that each process reads only its own; None without the file."""
    if not (root / EPISODE_STATISTICS).exists():
        findings.add("statistics-missing", EPISODE_STATISTICS, "", "it does not exist", "one line an episode")
        return None
    path = existing(root, EPISODE_STATISTICS, "the layout", findings)
    if path is None:
        return None
    places_N2, offset = np.zeros((len(episodes), 2), np.int64), 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            # Each line is large; its number nearly always stands at the head, and the rest is read where it is used.
            match = EPISODE_INDEX.search(line[:64])
            row = {"episode_index": int(match[1])} if match else json_line(line, EPISODE_STATISTICS, number, findings)
            index = whole_number((row or {}).get("episode_index"))
            position = NO_FILE if index is None or abs(index) >= 2**62 else int(
                np.searchsorted(episodes.index_N, index)
            )  # fmt: skip
            if 0 <= position < len(episodes) and episodes.index_N[position] == index:
                places_N2[position] = offset, len(line)
            elif row is not None:
                findings.add("episode-entry", EPISODE_STATISTICS, f"line {number}", f"episode_index {index}",
                             "an episode of episodes.jsonl")  # fmt: skip
            offset += len(line)
    for position in np.flatnonzero(places_N2[:, 1] == 0).tolist():
        findings.add("statistics-missing", EPISODE_STATISTICS, f"episode {episodes.index_N[position]}", "no line",
                     "one line an episode")  # fmt: skip
    return places_N2
