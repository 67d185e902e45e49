"""A LeRobot dataset as v3.0: many episodes in each table and mp4, and their places in meta/episodes.

Axes: N episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import batched, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.timeline import frame_time_s
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file, write_json
from export.convert.clips import Clips
from export.convert.rows import EpisodeTables, read_episode, target_features
from export.convert.source import SourceDataset
from export.convert.statistics import StatsSum
from export.convert.videos import copy_spans
from export.file_layout import FileNumber
from export.formats.lerobot_v30 import DATA_PATH, EPISODES_PATH, MB, VIDEO_PATH, FileLimits
from export.workers import Workers

MAX_EPISODES_PER_FILE = 1000
OF_V2 = ("total_videos", "total_chunks")
type Spots = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class VideoFiles:
    """The mp4s of a camera, which hold its episodes one after another.

    Args:
        bounds: Place of the first episode of each file, and the number of episodes at the end.
        first_N: Each episode's first frame within its file, int64.
    """

    bounds: tuple[int, ...]
    first_N: np.ndarray

    def file_N(self, start: int, stop: int) -> np.ndarray:
        """Return which file the episodes at some places lie in."""
        return np.searchsorted(self.bounds, np.arange(start, stop), side="right") - 1


def write_v30(
    root: Path, dataset: SourceDataset, clips: dict[str, Clips], workers: Workers,
    limits: FileLimits | None = None,
) -> tuple[StatsSum, list[tuple[int, str]]]:  # fmt: skip
    """Write tables, videos and metadata, except meta/stats.json.

    Args:
        root: A folder with nothing of the dataset in it.
        dataset: The source.
        clips: By camera, where each episode's packets lie.
        workers: Who writes the files.
        limits: Sizes of files; LeRobot's own when not given.

    Returns:
        What the episodes' statistics add up to; by episode, what had to be changed.

    Raises:
        UserError: if the frame rate is no whole number, which v3.0 asks for.
    """
    if dataset.fps.denominator != 1:
        raise UserError(f"{dataset.root}: LeRobot v3.0 asks for a whole number of frames a second",
                        actual=float(dataset.fps))  # fmt: skip
    limits = limits or FileLimits()
    videos = {camera: video_files(own, limits) for camera, own in clips.items()}
    first_index_N, extras = dataset.first_index_N(), extras_schema(dataset)
    files = row_files(dataset, limits)
    tasks = (
        partial(write_rows, root, dataset.part(start, stop), FileNumber.of(number, limits.chunks_size),
                int(first_index_N[start]), _spots(videos, start, stop), limits.chunks_size, extras)
        for number, (start, stop) in enumerate(files)
    )  # fmt: skip
    joins = (
        partial(join_clips, root, clips[camera][start:stop], FileNumber.of(n, limits.chunks_size))
        for camera, own in videos.items() for n, (start, stop) in enumerate(pairwise(own.bounds))
    )  # fmt: skip
    total, notes = StatsSum(), []
    num_files = len(files) + sum(len(own.bounds) - 1 for own in videos.values())
    with Progress("convert: v3.0", num_files, "files") as progress:
        for own_total, own_notes in workers.run(tasks):
            total.add_sum(own_total)
            notes += own_notes
            progress.add()
        for _ in workers.run(joins):
            progress.add()
    _write_tasks(root / "meta" / "tasks.parquet", dataset.tasks)
    write_json(root / "meta" / "info.json", _info(dataset, limits))
    return total, notes


def join_clips(root: Path, clips: Clips, number: FileNumber) -> None:
    """Write the mp4 of this number."""
    path = root / VIDEO_PATH.format(video_key=clips.camera, **number.indices())
    copy_spans(path, clips, clips.fps, int(clips.delay_N.max()))


def row_files(dataset: SourceDataset, limits: FileLimits) -> list[tuple[int, int]]:
    """Share episodes out to tables by the size of theirs; returns first and end of each."""
    files, start, size = [], 0, 0
    for place, episode in enumerate(dataset.episodes):
        num_bytes = episode.data_file.stat().st_size
        if place > start and (size + num_bytes > limits.data_mb * MB or place - start >= MAX_EPISODES_PER_FILE):
            files.append((start, place))
            start, size = place, 0
        size += num_bytes
    return [*files, (start, len(dataset.episodes))]


def video_files(clips: Clips, limits: FileLimits) -> VideoFiles:
    """Share a camera's episodes out to mp4s: a new one begins at the size limit or where the encoding differs."""
    bounds, size, encoding = [], 0, None
    for place, (own, num_bytes) in enumerate(zip(clips.encoding_N.tolist(), clips.num_bytes_N.tolist(), strict=True)):
        if own != encoding or size + num_bytes > limits.video_mb * MB:
            bounds.append(place)
            size, encoding = 0, own
        size += num_bytes
    length_N = clips.episodes.length_N
    before_N = np.cumsum(length_N) - length_N
    bounds = (*bounds, len(clips))
    return VideoFiles(bounds, before_N - np.repeat(before_N[list(bounds[:-1])], np.diff(bounds)))


def extras_schema(dataset: SourceDataset) -> pa.Schema:
    """Return names and types of what the metadata say of episodes besides.

    Raises:
        UserError: if one of them is of several types.
    """
    schemas = [pa.schema([])]
    try:
        for rows in batched(dataset.episode_extras(), MAX_EPISODES_PER_FILE):
            names = dict.fromkeys(name for row in rows for name in row)
            schemas.append(pa.table({name: [row.get(name) for row in rows] for name in names}).schema)
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{dataset.root}: a field of the episodes' metadata is of several types", actual=str(error),
                        next_step=f"dreamgen check {dataset.root}") from None  # fmt: skip


def write_rows(
    root: Path, dataset: SourceDataset, number: FileNumber, first_index: int, spots: Spots, chunks_size: int,
    extras: pa.Schema,
) -> tuple[StatsSum, list[tuple[int, str]]]:  # fmt: skip
    """Write one table of rows and the one of the same number with their episodes' metadata.

    Args:
        root: Folder of the dataset.
        dataset: The source, with the episodes of this file.
        number: Of both files.
        first_index: Number of the first frame in the dataset.
        spots: By camera, which file each episode's frames lie in, and the number of the first of them there.
        chunks_size: Files in a chunk.
        extras: Columns that the source's metadata has besides.

    Returns:
        What the episodes' statistics add up to; by episode, what had to be changed.
    """
    total, notes, lines, writer, tables = StatsSum(), [], [], None, EpisodeTables()
    known = zip(dataset.episodes, dataset.picture_statistics(), dataset.episode_extras(), strict=True)
    with atomic_file(root / DATA_PATH.format(**number.indices())) as temporary:
        for place, (episode, pictures, more) in enumerate(known):
            rows = read_episode(dataset, episode, pictures, tables, first_index, as_lists=False)
            writer = writer or pq.ParquetWriter(temporary, rows.table.schema, compression="snappy")
            writer.write_table(rows.table)  # a row group an episode, as lerobot does
            lines.append(
                {
                    "episode_index": episode.index, "tasks": list(episode.tasks), "length": episode.length,
                    "data/chunk_index": number.chunk, "data/file_index": number.file,
                    "dataset_from_index": first_index, "dataset_to_index": first_index + episode.length,
                    **_spot_columns(spots, place, episode.length, dataset.fps, chunks_size), **more,
                    **{f"stats/{n}/{stat}": v for n, own in rows.metrics.items() for stat, v in own.items()},
                    "meta/episodes/chunk_index": number.chunk, "meta/episodes/file_index": number.file,
                }
            )  # fmt: skip
            first_index += episode.length
            total.add(rows.metrics, dataset.pictures)
            notes += [(episode.index, note) for note in rows.notes]
        writer.close()
    with atomic_file(root / EPISODES_PATH.format(**number.indices())) as temporary:
        schema = _schema(dict.fromkeys(name for line in lines for name in line), dataset.pictures, extras)
        pq.write_table(pa.Table.from_pylist(lines, schema=schema), temporary)
    return total, notes


def _spots(videos: dict[str, VideoFiles], start: int, stop: int) -> Spots:
    return {camera: (own.file_N(start, stop), own.first_N[start:stop]) for camera, own in videos.items()}


def _spot_columns(spots: Spots, place: int, length: int, fps: Fraction, chunks_size: int) -> dict[str, Any]:
    columns = {}
    for camera, (file_N, first_N) in spots.items():
        number, first, key = FileNumber.of(int(file_N[place]), chunks_size), int(first_N[place]), f"videos/{camera}"
        columns |= {
            f"{key}/chunk_index": number.chunk, f"{key}/file_index": number.file,
            f"{key}/from_timestamp": frame_time_s(first, fps), f"{key}/to_timestamp": frame_time_s(first + length, fps),
        }  # fmt: skip
    return columns


def _schema(names: dict[str, None], pictures: list[str], extras: pa.Schema) -> pa.Schema:
    def kind(name: str) -> pa.DataType:
        if name == "tasks":
            return pa.list_(pa.string())
        if name in extras.names:
            return extras.field(name).type
        if name.endswith("_timestamp"):
            return pa.float64()
        if not name.startswith("stats/"):
            return pa.int64()
        feature, _, stat = name.removeprefix("stats/").rpartition("/")
        if stat == "count":
            return pa.list_(pa.int64())
        return pa.list_(pa.list_(pa.list_(pa.float64()))) if feature in pictures else pa.list_(pa.float64())

    return pa.schema([(name, kind(name)) for name in names])


def _write_tasks(path: Path, tasks: tuple[str, ...]) -> None:
    import pandas as pd  # a second to import, which no worker needs

    names = pd.Index(list(tasks), name="task")
    with atomic_file(path) as temporary:
        pd.DataFrame({"task_index": np.arange(len(names))}, index=names).to_parquet(temporary)


def _info(dataset: SourceDataset, limits: FileLimits) -> dict[str, Any]:
    kept = {name: value for name, value in dataset.info.items() if name not in OF_V2}
    num_episodes = len(dataset.episodes)
    return kept | {
        "codebase_version": "v3.0",
        "fps": int(dataset.fps),
        "features": {name: _v30_feature(feature) for name, feature in target_features(dataset).items()},
        "total_episodes": num_episodes,
        "total_frames": dataset.num_frames,
        "total_tasks": len(dataset.tasks),
        "chunks_size": limits.chunks_size,
        "data_files_size_in_mb": max(1, round(limits.data_mb)),
        "video_files_size_in_mb": max(1, round(limits.video_mb)),
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if dataset.cameras else None,
        "splits": {"train": f"0:{num_episodes}"},
    }


def _v30_feature(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a feature as v3.0 holds it: `names` is there, and a video's facts are called `info`."""
    feature = {"names": None, **feature}
    if "video_info" not in feature:
        return feature
    info = {**feature.pop("video_info"), **feature.get("info", {})}
    names = feature["names"]
    # GR00T's first release reads "channel" together with video_info; with info, the third axis is "channels".
    names = ["channels" if name == "channel" else name for name in names] if isinstance(names, list) else names
    return {**feature, "names": names, "info": info}
