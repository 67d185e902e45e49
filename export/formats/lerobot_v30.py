"""LeRobot v3.0: many episodes in each parquet and mp4 file, read by `LeRobotDataset` of lerobot 0.4 to 0.6.

Which file an episode goes to follows from whole numbers that are known beforehand, so every file is a task of its own:
they are written in any order by any number of workers, and one that exists need not be written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.timeline import frame_time_s
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file, write_json
from export.episode_store import Episodes
from export.episodes import Episode
from export.file_layout import FileNumber, RowFile, VideoPlaces, row_files, video_places
from export.lerobot_statistics import Columns, PartStatistics, add_up, as_lists, columns_of
from export.lerobot_tables import episode_columns, fixed_size_vectors, info_features
from export.spec import DatasetSpec
from export.video_files import join_clips
from export.workers import Workers

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{FILE}.parquet"
EPISODES_PER_ROW_GROUP = 500
MB = 1024 * 1024


@dataclass(frozen=True)
class FileLimits:
    """LeRobot's own limits, which its info.json repeats."""

    data_mb: float = 100
    video_mb: float = 200
    chunks_size: int = 1000


def write_lerobot_v30(root: Path, done_markers: Path, episodes: Episodes, spec: DatasetSpec, workers: Workers,
                      limits: FileLimits | None = None) -> None:  # fmt: skip
    """Write a LeRobot v3.0 dataset, or what is left of it to be written.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        marks: A folder beside it that says what is done.
        episodes: Numbered from 0.
        spec: What they share.
        workers: Who writes the files; their number changes no byte.
        limits: Sizes of files; LeRobot's own when not given.
    """
    limits = limits or FileLimits()
    columns = columns_of(episodes, spec.fps)
    places = [video_places(episodes, camera, int(limits.video_mb * MB), limits.chunks_size)
              for camera in range(len(spec.cameras))]  # fmt: skip
    row_parts = row_files(episodes, columns, int(limits.data_mb * MB), limits.chunks_size)
    tasks = [partial(write_rows, root, done_marker_of(done_markers, part), part.number, episodes[part.span],
                     [of_camera[part.span] for of_camera in places], spec, columns) for part in row_parts]  # fmt: skip
    for number, (camera, of_camera) in enumerate(zip(spec.camera_names, places, strict=True)):
        path = VIDEO_PATH.replace("{video_key}", camera)
        tasks += [partial(write_video_file, root / path.format(**file.number.indices()), episodes[file.span], number,
                          spec.fps) for file in of_camera.files()]  # fmt: skip
    with Progress("export: lerobot-v3.0", len(tasks), "files") as progress:
        for _ in workers.run(tasks):
            progress.add()
    meta = root / "meta"
    statistics = add_up([done_marker_of(done_markers, part) for part in row_parts], columns, spec.camera_names)
    write_json(meta / "stats.json", as_lists(statistics))
    _write_tasks(meta / "tasks.parquet", episodes.tasks)
    write_json(meta / "info.json", _info(episodes, spec, limits))


def done_marker_of(done_markers: Path, part: RowFile) -> Path:
    """Return where the statistics of a file's episodes are kept, once it is written."""
    return done_markers / f"{part.number.chunk:03d}-{part.number.file:03d}.npz"


def write_video_file(path: Path, episodes: Episodes, camera: int, fps: int) -> None:
    """Join the episodes' mp4s of one camera into one, unless that exists."""
    if not path.exists():
        num_frames = join_clips(path, (clip.videos[camera] for _, _, clip in episodes.clips()), fps)
        assert num_frames == episodes.num_frames, f"{path} has {num_frames} frames instead of {episodes.num_frames}"


def write_rows(root: Path, mark: Path, number: FileNumber, episodes: Episodes, places: Sequence[VideoPlaces],
               spec: DatasetSpec, columns: Columns) -> None:  # fmt: skip
    """Write one file of rows and the one of the same number with their episodes' metadata, unless they are marked done.

    Args:
        root: Folder of the dataset.
        mark: Where their statistics go, last of all.
        number: Of both files.
        episodes: Those of the file.
        places: Where their frames lie, by camera.
        spec: What all share.
        columns: Of the whole dataset.
    """
    if mark.exists():
        return
    statistics, lines = PartStatistics(columns, spec.camera_names), []
    with _parquet(root / DATA_PATH.format(**number.indices())) as data, \
         _parquet(root / EPISODES_PATH.format(**number.indices())) as meta:  # fmt: skip
        for position, episode in enumerate(episodes):
            rows = episode_columns(episode)
            own = statistics.add(episode, rows)
            data.write_table(_data_table(rows))  # a row group an episode, as lerobot does
            videos = {}
            for camera, place in zip(spec.camera_names, places, strict=True):
                videos |= _video_columns(camera, place, position, episode.num_frames, spec.fps)
            lines.append(_episode_row(episode, number, videos, as_lists(own)))
            if len(lines) == EPISODES_PER_ROW_GROUP or position == len(episodes) - 1:
                meta.write_table(pa.Table.from_pylist(lines, schema=_episode_schema(lines[0], spec)))
                lines = []
    statistics.save(mark)


class _parquet:
    """A parquet file whose schema is that of the first table; whole or absent."""

    def __init__(self, path: Path) -> None:
        self._file, self._writer = atomic_file(path), None

    def write_table(self, table: pa.Table) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema, compression="snappy")
        self._writer.write_table(table)

    def __enter__(self) -> _parquet:
        self._path = self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()
        self._file.__exit__(*error)


def _write_tasks(path: Path, tasks: tuple[str, ...]) -> None:
    import pandas as pd  # a second to import, which no worker needs

    names = pd.Index(list(tasks), name="task")
    with atomic_file(path) as temporary:
        pd.DataFrame({"task_index": np.arange(len(names))}, index=names).to_parquet(temporary)


def _data_table(columns: dict[str, np.ndarray]) -> pa.Table:
    return pa.table({n: fixed_size_vectors(v) if v.ndim == 2 else pa.array(v) for n, v in columns.items()})


def _video_columns(camera: str, places: VideoPlaces, position: int, num_frames: int, fps: int) -> dict[str, Any]:
    key, file = f"videos/{camera}", FileNumber.of(places.file_E[position], places.chunks_size)
    first_frame = int(places.first_frame_E[position])
    return {
        f"{key}/chunk_index": file.chunk,
        f"{key}/file_index": file.file,
        f"{key}/from_timestamp": frame_time_s(first_frame, fps),
        f"{key}/to_timestamp": frame_time_s(first_frame + num_frames, fps),
    }


def _episode_row(episode: Episode, number: FileNumber, videos: dict[str, Any],
                 statistics: dict[str, dict[str, list]]) -> dict[str, Any]:  # fmt: skip
    return {
        "episode_index": episode.index,
        "tasks": [episode.task],
        "length": episode.num_frames,
        "data/chunk_index": number.chunk,
        "data/file_index": number.file,
        "dataset_from_index": episode.first_index,
        "dataset_to_index": episode.first_index + episode.num_frames,
        **videos,
        **{f"stats/{name}/{stat}": v for name, metrics in statistics.items() for stat, v in metrics.items()},
        "meta/episodes/chunk_index": number.chunk,
        "meta/episodes/file_index": number.file,
    }


def _episode_schema(row: dict[str, Any], spec: DatasetSpec) -> pa.Schema:
    images = tuple(f"stats/{camera}/" for camera in spec.camera_names)

    def kind(name: str) -> pa.DataType:
        if name == "tasks":
            return pa.list_(pa.string())
        if name.endswith("_timestamp"):
            return pa.float64()
        if not name.startswith("stats/"):
            return pa.int64()
        if name.endswith("/count"):
            return pa.list_(pa.int64())
        is_image = name.startswith(images)
        return pa.list_(pa.list_(pa.list_(pa.float64()))) if is_image else pa.list_(pa.float64())

    return pa.schema([(name, kind(name)) for name in row])


def _info(episodes: Episodes, spec: DatasetSpec, limits: FileLimits) -> dict[str, Any]:
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
        "total_frames": episodes.num_frames,
        "total_tasks": len(episodes.tasks),
        "chunks_size": limits.chunks_size,
        # Readers want whole numbers here, also where a file was kept smaller than one.
        "data_files_size_in_mb": max(1, round(limits.data_mb)),
        "video_files_size_in_mb": max(1, round(limits.video_mb)),
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "robot_type": spec.robot_type,
        "splits": {"train": f"0:{len(episodes)}"},
    }
