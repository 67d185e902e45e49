"""LeRobot v2.1 with GR00T's additions: one parquet and one mp4 an episode, `modality.json`, `stats.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file, fsync, write_json, write_text
from export.episode_store import Episodes
from export.lerobot_statistics import Columns, PartStatistics, add_up, as_lists, columns_of
from export.lerobot_tables import episode_columns, info_features, list_vectors
from export.modality import TASK_COLUMN, modality_json
from export.spec import DatasetSpec
from export.workers import Workers

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNKS_SIZE = 1000
EPISODES_PER_TASK = 50
LINES = ("episodes.jsonl", "episodes_stats.jsonl")

# GR00T cuts every statistic that it finds to a modality's slice, so `count`, of length 1, must not be among them.
GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


def write_lerobot_v21(root: Path, done_markers: Path, episodes: Episodes, spec: DatasetSpec, workers: Workers) -> None:
    """Write a LeRobot v2.1 dataset that every GR00T release reads, or what is left of it to be written.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        marks: A folder beside it that says what is done.
        episodes: Numbered from 0.
        spec: What they share.
        workers: Who writes the files; their number changes no byte.
    """
    columns = columns_of(episodes, spec.fps)
    starts = range(0, len(episodes), EPISODES_PER_TASK)
    parts = [done_markers / f"{start:09d}.npz" for start in starts]
    tasks = [
        partial(write_episodes, root, part, episodes[start : start + EPISODES_PER_TASK], spec, columns)
        for part, start in zip(parts, starts, strict=True)
    ]
    with Progress("export: lerobot-v2.1", len(episodes), "episodes") as progress:
        for num_written in workers.run(tasks):
            progress.add(num_written)
    meta = root / "meta"
    for name in LINES:
        with atomic_file(meta / name) as temporary, temporary.open("wb") as joined:
            for part in parts:
                joined.write(_lines_of(part, name).read_bytes())
    write_text(meta / "tasks.jsonl", json_lines({"task_index": i, "task": t} for i, t in enumerate(episodes.tasks)))
    write_json(meta / "stats.json", groot_statistics(add_up(parts, columns, spec.camera_names), spec))
    write_json(meta / "modality.json", modality_json(spec))
    write_json(meta / "info.json", _info(episodes, spec))


def write_episodes(root: Path, mark: Path, episodes: Episodes, spec: DatasetSpec, columns: Columns) -> int:
    """Write the files of some episodes, unless they are marked done.

    Args:
        root: Folder of the dataset.
        mark: Where their statistics go, last of all; their lines of metadata go beside it.
        episodes: A few of them.
        spec: What all share.
        columns: Of the whole dataset.

    Returns:
        How many episodes.
    """
    if mark.exists():
        return len(episodes)
    statistics, lines, written = PartStatistics(columns, spec.camera_names), {name: [] for name in LINES}, []
    for episode in episodes:
        rows = episode_columns(episode)
        own = statistics.add(episode, rows)
        rows[TASK_COLUMN], own[TASK_COLUMN] = rows["task_index"], own["task_index"]
        place = {"episode_chunk": episode.index // CHUNKS_SIZE, "episode_index": episode.index}
        table = root / DATA_PATH.format(**place)
        videos = [root / VIDEO_PATH.format(video_key=camera, **place) for camera in spec.camera_names]
        for path in (table, *videos):
            path.parent.mkdir(parents=True, exist_ok=True)
        _write_rows(table, rows)
        for source, video in zip(episode.videos, videos, strict=True):
            shutil.copyfile(source.path, video)
        written += [table, *videos]
        lines["episodes.jsonl"].append(
            {"episode_index": episode.index, "tasks": [episode.task], "length": episode.num_frames}
        )
        lines["episodes_stats.jsonl"].append({"episode_index": episode.index, "stats": as_lists(own)})
    for path in written:  # together: the disk is waited for once rather than for every file
        fsync(path)
    for name, rows in lines.items():
        write_text(_lines_of(mark, name), json_lines(rows))
    statistics.save(mark)
    return len(episodes)


def groot_statistics(metrics: dict[str, dict[str, np.ndarray]], spec: DatasetSpec) -> dict[str, dict[str, list[float]]]:
    """Return GR00T's stats.json: six figures of every column, each of the vector's length; pictures are not in it."""
    columns = {name: stats for name, stats in as_lists(metrics).items() if name not in spec.camera_names}
    columns[TASK_COLUMN] = columns["task_index"]
    return {name: {stat: stats[stat] for stat in GROOT_STATISTICS} for name, stats in columns.items()}


def _write_rows(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: list_vectors(v) if v.ndim == 2 else pa.array(v) for name, v in columns.items()}
    pq.write_table(pa.table(arrays), path)


def _lines_of(mark: Path, name: str) -> Path:
    return mark.with_suffix(f".{name}")


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Return one JSON object a line, whatever a reader takes for a line's end."""
    # A line separator within a JSON string would split the line for readers that follow Unicode's line breaks.
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    escaped = (
        line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") for line in lines
    )
    return "".join(line + "\n" for line in escaped)


def _info(episodes: Episodes, spec: DatasetSpec) -> dict[str, Any]:
    video_info = {
        "video.height": spec.height,
        "video.width": spec.width,
        "video.codec": spec.codec,
        "video.pix_fmt": spec.pix_fmt,
        "video.is_depth_map": False,
        "video.fps": spec.fps,
        "video.channels": 3,
        "has_audio": False,
    }
    features = info_features(spec, video_info)
    features[TASK_COLUMN] = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v2.1",
        "robot_type": spec.robot_type,
        "total_episodes": len(episodes),
        "total_frames": episodes.num_frames,
        "total_tasks": len(episodes.tasks),
        "total_videos": len(episodes) * len(spec.cameras),
        "total_chunks": -(-len(episodes) // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": spec.fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }
