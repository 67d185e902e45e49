"""The metadata of a LeRobot dataset in one form, whichever version wrote it.

Read here and not through lerobot, which refuses v2.0 and v2.1, takes seconds and half a gigabyte to import, and answers
a missing file with a download.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.episodes import NO_FILE, Episode, Episodes, FilePlaces
from dreamgen.errors import Problems, UserError
from dreamgen.run.files import read_json

__all__ = ["VERSIONS", "Episode", "Episodes", "LeRobotMeta", "read_jsonl", "read_meta"]

VERSIONS = ("v2.0", "v2.1", "v3.0")
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class LeRobotMeta:
    """What `meta/` says.

    Args:
        root: The dataset's folder.
        version: One of `VERSIONS`.
        info: info.json as it stands.
        fps: Frames a second.
        episodes: In the order of the metadata.
        tasks: task_index -> the task in words.
        modality: GR00T's modality.json as it stands, or None.
    """

    root: Path
    version: str
    info: dict[str, Any]
    fps: Fraction
    episodes: Episodes
    tasks: dict[int, str]
    modality: dict[str, Any] | None

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are colour video."""
        return [
            key
            for key, feature in self.info["features"].items()
            if feature.get("dtype") == "video" and not _is_depth(feature)
        ]


def read_meta(root: Path) -> LeRobotMeta:
    """Read the metadata of a LeRobot dataset on this machine.

    Raises:
        UserError: if a file is missing or not what its version prescribes, or a path template leaves the dataset.
    """
    info = _read_info(root / "meta" / "info.json")
    version = info["codebase_version"]
    read = _read_v3 if version == "v3.0" else _read_v2
    episodes, tasks = read(root, info)
    if not len(episodes):
        raise UserError(f"{root} has no episodes", allowed="a dataset with at least one episode")
    episodes.check_paths(str(root / "meta" / "info.json"))
    modality_file = root / "meta" / "modality.json"
    modality = read_json(modality_file) if modality_file.is_file() else None
    return LeRobotMeta(root, version, info, Fraction(str(info["fps"])), episodes, tasks, modality)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        UserError: if the file is missing, or naming the line that is not an object.
    """
    try:
        # newline: tasks hold U+2028 as it is, and other marks at which Python would end a line.
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row_of(path, number, line)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", next_step="copy the dataset again, with all of meta/") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", actual=str(error)) from None


def _row_of(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number} is not JSON", actual=str(error), allowed="an object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number} is not an object", actual=line[:80])
    return row


def _read_info(path: Path) -> dict[str, Any]:
    info = read_json(path)
    problems = Problems()
    if info.get("codebase_version") not in VERSIONS:
        problems.add(
            f"{path}: codebase_version is not one that can be read",
            actual=info.get("codebase_version"), allowed=", ".join(VERSIONS),
        )  # fmt: skip
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 10_000:
        problems.add(f"{path}: fps is not a frame rate", actual=fps, allowed="a positive number")
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        problems.add(f"{path}: features is not a table of features", allowed="name: {dtype, shape, names}")
    for key in ("data_path", "video_path"):
        if not isinstance(info.get(key), str):
            problems.add(f"{path}: {key} is not a path template", actual=info.get(key), allowed="text")
    chunks_size = info.get("chunks_size", 1000)
    if not isinstance(chunks_size, int) or chunks_size < 1:
        problems.add(f"{path}: chunks_size is not a count", actual=chunks_size, allowed="at least 1")
    problems.raise_if_any("the dataset's info.json cannot be used")
    return info


def _read_v2(root: Path, info: dict[str, Any]) -> tuple[Episodes, dict[int, str]]:
    meta = root / "meta"
    try:
        tasks = {int(row["task_index"]): str(row["task"]) for row in read_jsonl(meta / "tasks.jsonl")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{meta / 'tasks.jsonl'} has a line without task_index or task", actual=repr(error)) from None
    index, length, task_list, task_lists = array("q"), array("q"), array("q"), {}
    for number, row in enumerate(read_jsonl(meta / "episodes.jsonl"), start=1):
        try:
            index.append(int(row["episode_index"]))
            length.append(int(row["length"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{meta / 'episodes.jsonl'} line {number} lacks episode_index or length", actual=repr(error)
            ) from None
        names = row.get("tasks", [])
        names = tuple(str(task) for task in (names if isinstance(names, list) else [names]))
        task_list.append(task_lists.setdefault(names, len(task_lists)))
    index_N = np.array(index, np.int64)
    places = FilePlaces(index_N // info.get("chunks_size", 1000), index_N)
    return Episodes(
        root.resolve(), info["data_path"], info["video_path"], False, index_N, np.array(length, np.int64),
        tuple(task_lists), np.array(task_list, np.int64), places, dict.fromkeys(_video_keys(info), places),
    ), tasks  # fmt: skip


def _read_v3(root: Path, info: dict[str, Any]) -> tuple[Episodes, dict[int, str]]:
    meta, cameras = root / "meta", _video_keys(info)
    files = sorted((meta / "episodes").glob("*/*.parquet"))
    if not (meta / "tasks.parquet").is_file() or not files:
        raise UserError(
            f"{meta} lacks tasks.parquet or episodes/", allowed="the files of LeRobot v3.0",
            next_step="copy the dataset again, with all of meta/; LeRobotDataset.finalize() writes them",
        )  # fmt: skip
    places = ["data/chunk_index", "data/file_index"]
    of_camera = {c: [f"videos/{c}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
                 for c in cameras}  # fmt: skip
    task_lists: dict[tuple[str, ...], int] = {}
    task_list, parts = array("q"), []
    try:
        table = pq.ParquetFile(meta / "tasks.parquet").read()
        text = "task" if "task" in table.column_names else "__index_level_0__"  # pandas' index, with or without a name
        tasks = dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))
        for path in files:
            source = pq.ParquetFile(path)
            there = source.schema_arrow.names
            wanted = [n for own in of_camera.values() for n in own if f"{n.rpartition('/')[0]}/file_index" in there]
            for batch in source.iter_batches(
                ROWS_AT_ONCE, columns=["episode_index", "length", "tasks", *places, *wanted]
            ):
                for names in batch["tasks"].to_pylist():
                    task_list.append(task_lists.setdefault(tuple(names), len(task_lists)))
                parts.append({n: batch[n].to_numpy(zero_copy_only=False) for n in batch.schema.names if n != "tasks"})
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{meta} cannot be read", actual=f"{type(error).__name__}: {error}") from None

    def column(name: str, kind: type = np.int64, absent: float = NO_FILE) -> np.ndarray:
        own = [part[name] if name in part else np.full(len(part["length"]), absent) for part in parts]
        values_N = np.concatenate(own).astype(np.float64)
        return np.where(np.isnan(values_N), absent, values_N).astype(kind)

    videos = {c: FilePlaces(column(names[0]), column(names[1]), *(column(n, np.float64, 0) for n in names[2:]))
              for c, names in of_camera.items()}  # fmt: skip
    return Episodes(
        root.resolve(), info["data_path"], info["video_path"], True, column("episode_index"), column("length"),
        tuple(task_lists), np.array(task_list, np.int64), FilePlaces(*map(column, places)), videos,
    ), tasks  # fmt: skip


def _video_keys(info: dict[str, Any]) -> list[str]:
    return [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]


def _is_depth(feature: dict[str, Any]) -> bool:
    tables = [table for key in ("video_info", "info") if isinstance(table := feature.get(key), dict)]
    return any(table.get("is_depth_map") or table.get("video.is_depth_map") for table in tables)
