"""The metadata of a LeRobot dataset in one form, whichever version wrote it.

v3.0 is read through lerobot. lerobot refuses v2.0 and v2.1, so their JSON files are read here.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from dreamgen.core.errors import Problems, UserError
from dreamgen.core.files import inside, read_json

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Episode:
    """Where one episode's rows and pictures are.

    Args:
        index: Its number in the dataset.
        length: Frames, as the metadata says.
        tasks: Task strings, as the metadata lists them.
        data_file: Parquet with its rows.
        shares_file: True when `data_file` holds rows of other episodes too.
        videos: Camera -> mp4; it need not exist.
        spans_s: Camera -> from and to in its mp4, in seconds; empty when each episode has its own mp4.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: Path
    shares_file: bool
    videos: dict[str, Path]
    spans_s: dict[str, tuple[float, float]] = field(default_factory=dict)


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
    episodes: tuple[Episode, ...]
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
    if not episodes:
        raise UserError(f"{root} has no episodes", allowed="a dataset with at least one episode")
    modality_file = root / "meta" / "modality.json"
    modality = read_json(modality_file) if modality_file.is_file() else None
    return LeRobotMeta(root, version, info, Fraction(str(info["fps"])), tuple(episodes), tasks, modality)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        UserError: if the file is missing, or naming the line that is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", next_step="copy the dataset again, with all of meta/") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", actual=str(error)) from None
    for number, line in enumerate(text.split("\n"), start=1):  # tasks hold U+2028 as it is
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {number} is not JSON", actual=str(error), allowed="an object a line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not an object", actual=line[:80])
        yield row


def fill_template(template: str, named_by: str, **values: object) -> str:
    """Fill a path template that came from data; only plain fields with a plain width are allowed.

    Raises:
        UserError: if it has any other field, conversion or format.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{named_by} is not a path template", actual=template, allowed=str(error)) from None
    for _, name, spec, conversion in fields:
        plain_width = not spec or (len(spec) <= 4 and spec.rstrip("d").isdigit())
        if name is not None and (name not in values or conversion or not plain_width):
            raise UserError(
                f"{named_by} is not a path template",
                actual=template,
                allowed=f"fields {', '.join(sorted(values))}, with a width such as :03d",
            )
    try:
        return template.format(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{named_by} cannot be filled in", actual=template, allowed=str(error)) from None


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


def _read_v2(root: Path, info: dict[str, Any]) -> tuple[list[Episode], dict[int, str]]:
    meta, cameras = root / "meta", _video_keys(info)
    try:
        tasks = {int(row["task_index"]): str(row["task"]) for row in read_jsonl(meta / "tasks.jsonl")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{meta / 'tasks.jsonl'} has a line without task_index or task", actual=repr(error)) from None
    episodes = []
    for number, row in enumerate(read_jsonl(meta / "episodes.jsonl"), start=1):
        try:
            index, length = int(row["episode_index"]), int(row["length"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{meta / 'episodes.jsonl'} line {number} lacks episode_index or length", actual=repr(error)
            ) from None
        names = row.get("tasks", [])
        values = {"episode_chunk": index // info.get("chunks_size", 1000), "episode_index": index}
        episodes.append(
            Episode(
                index,
                length,
                tuple(str(task) for task in (names if isinstance(names, list) else [names])),
                _path(root, info, "data_path", values),
                False,
                {key: _path(root, info, "video_path", {**values, "video_key": key}) for key in cameras},
            )
        )
    return episodes, tasks


def _read_v3(root: Path, info: dict[str, Any]) -> tuple[list[Episode], dict[int, str]]:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    # lerobot answers a missing file with a download, so all that it opens is looked for first.
    meta = root / "meta"
    if not (meta / "tasks.parquet").is_file() or not any((meta / "episodes").glob("*/*.parquet")):
        raise UserError(
            f"{meta} lacks tasks.parquet or episodes/", allowed="the files of LeRobot v3.0",
            next_step="copy the dataset again, with all of meta/; LeRobotDataset.finalize() writes them",
        )  # fmt: skip
    try:
        loaded = LeRobotDatasetMetadata(f"local/{root.name or 'demos'}", root=root)
        rows = list(loaded.episodes) if loaded.episodes is not None else []
        tasks = {int(row.task_index): str(name) for name, row in loaded.tasks.iterrows()} if rows else {}
        return [_episode_v3(root, info, row) for row in rows], tasks
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"lerobot cannot read {meta}", actual=f"{type(error).__name__}: {error}") from None


def _episode_v3(root: Path, info: dict[str, Any], row: dict[str, Any]) -> Episode:
    videos, spans_s = {}, {}
    for key in _video_keys(info):
        if row.get(f"videos/{key}/file_index") is None:
            continue
        place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        videos[key] = _path(root, info, "video_path", {**place, "video_key": key})
        spans_s[key] = (row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"])
    place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
    return Episode(
        row["episode_index"],
        row["length"],
        tuple(row["tasks"]),
        _path(root, info, "data_path", place),
        True,
        videos,
        spans_s,
    )


def _path(root: Path, info: dict[str, Any], key: str, values: dict[str, Any]) -> Path:
    named_by = f"{root / 'meta' / 'info.json'}: {key}"
    return inside(root, fill_template(info[key], named_by, **values), named_by)


def _video_keys(info: dict[str, Any]) -> list[str]:
    return [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]


def _is_depth(feature: dict[str, Any]) -> bool:
    tables = [table for key in ("video_info", "info") if isinstance(table := feature.get(key), dict)]
    return any(table.get("is_depth_map") or table.get("video.is_depth_map") for table in tables)
