"""LeRobot v2.1 with GR00T's additions: one parquet and one mp4 an episode, `modality.json`, `stats.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.core.files import write_json, write_text
from export.episodes import Episode
from export.lerobot_tables import DatasetStatistics, as_lists, episode_columns, info_features, list_vectors
from export.modality import TASK_COLUMN, modality_json
from export.spec import DatasetSpec, task_indices

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNKS_SIZE = 1000

# GR00T cuts every statistic that it finds to a modality's slice, so `count`, of length 1, must not be among them.
GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


def write_lerobot_v21(root: Path, episodes: Sequence[Episode], spec: DatasetSpec) -> None:
    """Write a LeRobot v2.1 dataset that every GR00T release reads.

    Args:
        root: An empty folder.
        episodes: Numbered from 0.
        spec: What they share.
    """
    tasks = task_indices(episodes, spec)
    statistics = DatasetStatistics(spec.camera)
    episode_lines, statistics_lines, first_index = [], [], 0
    for episode in episodes:
        task_index = tasks[spec.task(episode)]
        columns = episode_columns(episode, first_index, task_index)
        columns[TASK_COLUMN] = columns["task_index"]
        own = statistics.add(episode, columns)
        place = {"episode_chunk": episode.index // CHUNKS_SIZE, "episode_index": episode.index}
        _write_rows(root / DATA_PATH.format(**place), columns)
        video = root / VIDEO_PATH.format(video_key=spec.camera, **place)
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(episode.video.path, video)
        episode_lines.append(
            {"episode_index": episode.index, "tasks": [spec.task(episode)], "length": episode.num_frames}
        )
        statistics_lines.append({"episode_index": episode.index, "stats": as_lists(own)})
        first_index += episode.num_frames
    meta = root / "meta"
    write_text(meta / "episodes.jsonl", _json_lines(episode_lines))
    write_text(meta / "episodes_stats.jsonl", _json_lines(statistics_lines))
    write_text(meta / "tasks.jsonl", _json_lines({"task_index": i, "task": task} for task, i in tasks.items()))
    write_json(meta / "stats.json", groot_statistics(statistics.figures(), spec))
    write_json(meta / "modality.json", modality_json(spec))
    write_json(meta / "info.json", _info(episodes, spec, first_index, len(tasks)))


def groot_statistics(figures: dict[str, dict[str, np.ndarray]], spec: DatasetSpec) -> dict[str, dict[str, list[float]]]:
    """Return GR00T's stats.json: six figures of every column, each of the vector's length; pictures are not in it."""
    columns = {name: stats for name, stats in as_lists(figures).items() if name != spec.camera}
    return {name: {stat: stats[stat] for stat in GROOT_STATISTICS} for name, stats in columns.items()}


def _write_rows(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: list_vectors(v) if v.ndim == 2 else pa.array(v) for name, v in columns.items()}
    pq.write_table(pa.table(arrays), path)


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    # A line separator within a JSON string would split the line for readers that follow Unicode's line breaks.
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    escaped = (
        line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") for line in lines
    )
    return "".join(line + "\n" for line in escaped)


def _info(episodes: Sequence[Episode], spec: DatasetSpec, total_frames: int, total_tasks: int) -> dict[str, Any]:
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
        "total_frames": total_frames,
        "total_tasks": total_tasks,
        "total_videos": len(episodes),
        "total_chunks": -(-len(episodes) // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": spec.fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }
