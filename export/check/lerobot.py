"""Reading a LeRobot dataset's metadata, v2.0 to v3.0, into one shape that all checks work on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from export.check.findings import Findings
from export.check.metadata import (
    EpisodeEntry,
    LeRobotEntry,
    VideoSpan,
    fill_template,
    read_json_lines,
    read_json_object,
    read_parquet,
    whole_number,
)

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


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
        findings.error(
            "version", INFO, "codebase_version", version, " or ".join(VERSIONS), "readers refuse the dataset"
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0:
        findings.error("fps", INFO, "fps", fps, "a number above 0", "no frame can be found by its time")
        fps = None
    features = _features(info, findings)
    if version not in VERSIONS or fps is None or features is None:
        return None
    cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
    read = _read_v3 if version == "v3.0" else _read_v2
    tasks, episodes = read(root, info, cameras, findings)
    modality = None
    if (root / "meta" / "modality.json").exists():
        modality = read_json_object(root, "meta/modality.json", findings, "GR00T cannot open the dataset")
    return LeRobotEntry(root, version, info, float(fps), features, tuple(episodes), tasks, modality)


def _features(info: dict[str, Any], findings: Findings) -> dict[str, dict[str, Any]] | None:
    features = info.get("features")
    if not isinstance(features, dict) or not features:
        findings.error("features", INFO, "features", features, "an object", "readers do not know the columns")
        return None
    good = {}
    for name, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sizes = [whole_number(size) for size in shape] if isinstance(shape, list) and shape else [None]
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str) or None in sizes:
            findings.error(
                "features", INFO, f"features.{name}", feature, "dtype and shape", "the column cannot be read"
            )
            continue
        if "/" in name:
            findings.error("features", INFO, f"features.{name}", name, 'a name without "/"', "LeRobot refuses it")
        good[name] = feature
    return good


def _read_v2(
    root: Path, info: dict[str, Any], cameras: list[str], findings: Findings
) -> tuple[dict[int, str], list[EpisodeEntry]]:
    tasks = _tasks(read_json_lines(root, "meta/tasks.jsonl", findings) or [], "meta/tasks.jsonl", findings)
    lines = read_json_lines(root, "meta/episodes.jsonl", findings) or []
    chunks_size = whole_number(info.get("chunks_size")) or 1000
    episodes, first_row = [], 0
    for number, row in _sorted_rows(lines, "meta/episodes.jsonl", "line", findings):
        values = {"episode_index": number, "episode_chunk": number // chunks_size}
        data_file = _path(info, "data_path", V2_DATA, values, findings)
        videos = {
            camera: VideoSpan(path)
            for camera in cameras
            if (path := _path(info, "video_path", V2_VIDEO, {**values, "video_key": camera}, findings))
        }
        if data_file:
            episodes.append(
                EpisodeEntry(number, row["length"], _tasks_of(row), "meta/episodes.jsonl", data_file, first_row, videos)
            )
        first_row += row["length"]
    return tasks, episodes


def _read_v3(
    root: Path, info: dict[str, Any], cameras: list[str], findings: Findings
) -> tuple[dict[int, str], list[EpisodeEntry]]:
    table = read_parquet(root, "meta/tasks.parquet", "the layout", findings)
    rows = [] if table is None else _task_rows(table, findings)
    tasks = _tasks(rows, "meta/tasks.parquet", findings)
    files = sorted(path.relative_to(root).as_posix() for path in (root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        findings.error(
            "missing file", "meta/episodes", "", "no parquet file", "chunk-000/file-000.parquet", "no episodes"
        )
    rows, named_by = [], []
    for file in files:
        # The statistics of each episode stand in the same rows; they are not needed to find frames.
        table = read_parquet(root, file, "the layout", findings, without="stats/")
        found = [] if table is None else table.to_pylist()
        rows += found
        named_by += [file] * len(found)
    of_row = {id(row): file for row, file in zip(rows, named_by, strict=True)}
    episodes = []
    for number, row in _sorted_rows(rows, "meta/episodes", "row", findings):
        entry = _v3_episode(number, row, of_row[id(row)], info, cameras, findings)
        if entry is not None:
            episodes.append(entry)
    return tasks, episodes


def _task_rows(table: pa.Table, findings: Findings) -> list[dict[str, Any]]:
    # The task stands in pandas' index, whose column is called `task`, or `__index_level_0__` where it has no name.
    names = {"__index_level_0__": "task"}
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    if {"task", "task_index"} - set(table.column_names):
        findings.error("tasks", "meta/tasks.parquet", "columns", ", ".join(table.column_names), "task_index and task",
                       "no episode gets its instruction")  # fmt: skip
        return []
    return table.select(["task_index", "task"]).to_pylist()


def _v3_episode(
    number: int, row: dict[str, Any], named_by: str, info: dict[str, Any], cameras: list[str], findings: Findings
) -> EpisodeEntry | None:
    where = f"episode {number}"

    def number_at(key: str) -> int | None:
        value = whole_number(row.get(key))
        if value is None or value < 0:
            findings.error("episode entry", named_by, f"{where}, {key}", row.get(key), "a whole number from 0",
                           "the episode cannot be found")  # fmt: skip
            return None
        return value

    chunk, file, first, last = (
        number_at(k) for k in ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    )
    if None in (chunk, file, first, last):
        return None
    if last - first != row["length"]:
        findings.error("length", named_by, where, f"dataset_to_index - dataset_from_index = {last - first}",
                       f"length {row['length']}", "windows run into the neighbouring episode")  # fmt: skip
    data_file = _path(info, "data_path", V3_DATA, {"chunk_index": chunk, "file_index": file}, findings)
    videos = {}
    for camera in cameras:
        key = f"videos/{camera}"
        chunk, file = number_at(f"{key}/chunk_index"), number_at(f"{key}/file_index")
        times = [row.get(f"{key}/{side}_timestamp") for side in ("from", "to")]
        if not all(isinstance(time, float | int) and math.isfinite(time) for time in times):
            findings.error("episode entry", named_by, f"{where}, {key}", times, "from_timestamp and to_timestamp",
                           "the frames cannot be found")  # fmt: skip
            continue
        values = {"video_key": camera, "chunk_index": chunk, "file_index": file}
        path = None if None in (chunk, file) else _path(info, "video_path", V3_VIDEO, values, findings)
        if path:
            videos[camera] = VideoSpan(path, float(times[0]), float(times[1]))
    return data_file and EpisodeEntry(number, row["length"], _tasks_of(row), named_by, data_file, first, videos)


def _sorted_rows(
    rows: list[dict[str, Any]], file: str, unit: str, findings: Findings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (episode_index, row) of well-formed rows by number; report the others, and gaps in the numbers."""
    good: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        number, length = whole_number(row.get("episode_index")), whole_number(row.get("length"))
        if number is None or number < 0 or length is None or length < 1:
            shown = {key: row.get(key) for key in ("episode_index", "length")}
            findings.error("episode entry", file, f"{unit} {place}", shown, "whole numbers, length at least 1",
                           "the episode cannot be found")  # fmt: skip
        elif number in good:
            findings.error("episode entry", file, f"{unit} {place}", f"episode_index {number} again", "each once",
                           "readers count an episode twice")  # fmt: skip
        else:
            good[number] = row
    if sorted(good) != list(range(len(good))):
        missing = next(i for i in range(len(good) + 1) if i not in good)
        findings.error("episode entry", file, "episode_index", f"no episode {missing}", "numbers from 0 without a gap",
                       "readers take another episode's entry")  # fmt: skip
    yield from sorted(good.items())


def _tasks_of(row: dict[str, Any]) -> tuple[str, ...]:
    tasks = row.get("tasks")
    return tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list) else ()


def _tasks(rows: list[dict[str, Any]], file: str, findings: Findings) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for place, row in enumerate(rows):
        index, task = whole_number(row.get("task_index")), row.get("task")
        if index is None or not isinstance(task, str):
            findings.error("tasks", file, f"row {place}", row, "task_index and task", "an instruction is lost")
        elif index in tasks:
            findings.error("tasks", file, f"row {place}", f"task_index {index} again", "each once",
                           "episodes get another task's instruction")  # fmt: skip
        else:
            tasks[index] = task
            if not task.strip():
                findings.warning("tasks", file, f"row {place}", "an empty task", "an instruction",
                                 "a policy is trained without words")  # fmt: skip
    if file.endswith(".parquet") and list(tasks) != list(range(len(tasks))):
        findings.error("tasks", file, "task_index", list(tasks)[:20], "0, 1, 2 ... in row order",
                       "LeRobot takes the row's place for task_index, so episodes get another instruction")  # fmt: skip
    return tasks


def _path(info: dict[str, Any], key: str, default: str, values: dict[str, Any], findings: Findings) -> str | None:
    template = info.get(key) or default
    path = fill_template(template, values) if isinstance(template, str) else None
    if path is None:
        findings.error("path template", INFO, key, template, default, "no file can be found")
    return path
