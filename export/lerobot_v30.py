"""LeRobot v3.0: many episodes in each parquet and mp4 file, read by `LeRobotDataset` of lerobot 0.4 to 0.6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dreamgen.core.files import write_json
from dreamgen.core.timeline import frame_time_s
from export.episodes import Episode
from export.lerobot_tables import DatasetStatistics, as_lists, episode_columns, fixed_size_vectors, info_features
from export.numbered_files import FileNumber, ParquetFiles
from export.spec import DatasetSpec, task_indices
from export.video_files import VideoFiles, VideoPlace

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{FILE}.parquet"
EPISODES_PER_ROW_GROUP = 1000
MB = 1024 * 1024


@dataclass(frozen=True)
class FileLimits:
    """LeRobot's own limits, which its info.json repeats."""

    data_mb: float = 100
    video_mb: float = 200
    chunks_size: int = 1000


def write_lerobot_v30(root: Path, episodes: Sequence[Episode], spec: DatasetSpec, limits: FileLimits | None = None):
    """Write a LeRobot v3.0 dataset.

    Args:
        root: An empty folder.
        episodes: Numbered from 0.
        spec: What they share.
        limits: Sizes of files; LeRobot's own when not given.
    """
    limits = limits or FileLimits()
    tasks = task_indices(episodes, spec)
    statistics = DatasetStatistics(spec.camera)
    video_path = VIDEO_PATH.replace("{video_key}", spec.camera)
    first_index, rows = 0, []
    with (
        ParquetFiles(root, DATA_PATH, int(limits.data_mb * MB), limits.chunks_size) as data,
        VideoFiles(root, video_path, spec.fps, int(limits.video_mb * MB), limits.chunks_size) as videos,
        ParquetFiles(root, EPISODES_PATH, int(limits.data_mb * MB), limits.chunks_size) as meta,
    ):
        for episode in episodes:
            columns = episode_columns(episode, first_index, tasks[spec.task(episode)])
            own = statistics.add(episode, columns)
            data_number = data.append(_data_table(columns))
            video_place = videos.append(episode.video.path)
            rows.append(_episode_row(episode, spec, first_index, data_number, video_place, as_lists(own)))
            first_index += episode.num_frames
            if len(rows) == EPISODES_PER_ROW_GROUP or episode is episodes[-1]:
                _append_episode_rows(meta, rows, spec)
                rows = []
    write_json(root / "meta" / "stats.json", as_lists(statistics.figures()))
    names = pd.Index(list(tasks), name="task")
    pd.DataFrame({"task_index": list(tasks.values())}, index=names).to_parquet(root / "meta" / "tasks.parquet")
    write_json(root / "meta" / "info.json", _info(episodes, spec, limits, first_index, len(tasks)))


def _data_table(columns: dict[str, np.ndarray]) -> pa.Table:
    return pa.table({n: fixed_size_vectors(v) if v.ndim == 2 else pa.array(v) for n, v in columns.items()})


def _episode_row(episode: Episode, spec: DatasetSpec, first_index: int, data_number: FileNumber,
                 video: VideoPlace, statistics: dict[str, dict[str, list]]) -> dict[str, Any]:  # fmt: skip
    key = f"videos/{spec.camera}"
    return {
        "episode_index": episode.index,
        "tasks": [spec.task(episode)],
        "length": episode.num_frames,
        "data/chunk_index": data_number.chunk,
        "data/file_index": data_number.file,
        "dataset_from_index": first_index,
        "dataset_to_index": first_index + episode.num_frames,
        f"{key}/chunk_index": video.number.chunk,
        f"{key}/file_index": video.number.file,
        f"{key}/from_timestamp": frame_time_s(video.first_frame, spec.fps),
        f"{key}/to_timestamp": frame_time_s(video.first_frame + episode.num_frames, spec.fps),
        **{f"stats/{name}/{stat}": v for name, figures in statistics.items() for stat, v in figures.items()},
    }


def _append_episode_rows(meta: ParquetFiles, rows: list[dict[str, Any]], spec: DatasetSpec) -> None:
    table = pa.Table.from_pylist(rows, schema=_episode_schema(rows[0], spec))
    number = meta.place(table)
    for name, value in (("chunk_index", number.chunk), ("file_index", number.file)):
        table = table.append_column(f"meta/episodes/{name}", pa.array(np.full(len(rows), value, np.int64)))
    meta.append(table)


def _episode_schema(row: dict[str, Any], spec: DatasetSpec) -> pa.Schema:
    def kind(name: str) -> pa.DataType:
        if name == "tasks":
            return pa.list_(pa.string())
        if name.endswith("_timestamp"):
            return pa.float64()
        if not name.startswith("stats/"):
            return pa.int64()
        if name.endswith("/count"):
            return pa.list_(pa.int64())
        is_image = name.startswith(f"stats/{spec.camera}/")
        return pa.list_(pa.list_(pa.list_(pa.float64()))) if is_image else pa.list_(pa.float64())

    return pa.schema([(name, kind(name)) for name in row])


def _info(
    episodes: Sequence[Episode], spec: DatasetSpec, limits: FileLimits, total_frames: int, total_tasks: int
) -> dict[str, Any]:
    # The keys and their order are those that lerobot 0.6 writes, with the encoder settings that we know.
    video_info = {
        "video.height": spec.height,
        "video.width": spec.width,
        "video.codec": spec.codec,
        "video.pix_fmt": spec.pix_fmt,
        "video.fps": spec.fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": spec.gop,
        "video.crf": spec.crf,
        "is_depth_map": False,
    }
    return {
        "codebase_version": "v3.0",
        "fps": spec.fps,
        "features": info_features(spec, video_info),
        "total_episodes": len(episodes),
        "total_frames": total_frames,
        "total_tasks": total_tasks,
        "chunks_size": limits.chunks_size,
        # Readers want whole numbers here, also where a file was kept smaller than one.
        "data_files_size_in_mb": max(1, round(limits.data_mb)),
        "video_files_size_in_mb": max(1, round(limits.video_mb)),
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "robot_type": spec.robot_type,
        "splits": {"train": f"0:{len(episodes)}"},
    }
