"""A LeRobot dataset as v3.0: many episodes in each table and mp4, and their places in meta/episodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.core.errors import UserError
from dreamgen.core.files import atomic_file, write_json
from dreamgen.core.progress import Progress
from dreamgen.core.timeline import frame_time_s
from export.convert.rows import read_episode, target_features
from export.convert.source import SourceDataset
from export.convert.statistics import StatsSum
from export.convert.videos import Clip, copy_spans
from export.lerobot_v30 import DATA_PATH, EPISODES_PATH, MB, VIDEO_PATH, FileLimits
from export.numbered_files import FileNumber
from export.workers import Workers

MAX_EPISODES_PER_FILE = 1000
OF_V2 = ("total_videos", "total_chunks")


@dataclass(frozen=True)
class VideoFile:
    """One mp4 of a camera: which episodes, by place, are in it."""

    number: FileNumber
    places: tuple[int, ...]


def write_v30(
    root: Path, dataset: SourceDataset, clips: dict[str, list[Clip]], workers: Workers,
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
    spots = _spots(dataset, clips, videos)
    first_index_E = np.cumsum([0, *(episode.length for episode in dataset.episodes)])
    extras = pa.Table.from_pylist(list(dataset.extras.values())).schema
    tasks = [partial(write_rows, root, dataset.part(start, stop), FileNumber.of(number, limits.chunks_size),
                     int(first_index_E[start]), spots[start:stop], extras)
             for number, (start, stop) in enumerate(row_files(dataset, limits))]  # fmt: skip
    joins = [partial(copy_spans, root / VIDEO_PATH.format(video_key=camera, **file.number.indices()),
                     [clips[camera][place].span for place in file.places], dataset.fps)
             for camera, files in videos.items() for file in files]  # fmt: skip
    total, notes = StatsSum(), []
    with Progress("convert: v3.0", len(tasks) + len(joins), "files") as progress:
        for found in workers.run(tasks):
            for index, figures, own in found:
                total.add(figures, dataset.pictures)
                notes += [(index, note) for note in own]
            progress.add()
        for _ in workers.run(joins):
            progress.add()
    _write_tasks(root / "meta" / "tasks.parquet", dataset.tasks)
    write_json(root / "meta" / "info.json", _info(dataset, limits))
    return total, notes


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


def video_files(clips: list[Clip], limits: FileLimits) -> list[VideoFile]:
    """Share a camera's episodes out to mp4s: a new one begins at the size limit or where the encoding differs."""
    groups: list[list[int]] = []
    size, encoding = 0, None
    for place, clip in enumerate(clips):
        if clip.look.encoding != encoding or size + clip.look.num_bytes > limits.video_mb * MB:
            groups.append([])
            size, encoding = 0, clip.look.encoding
        groups[-1].append(place)
        size += clip.look.num_bytes
    return [VideoFile(FileNumber.of(n, limits.chunks_size), tuple(places)) for n, places in enumerate(groups)]


def write_rows(
    root: Path, dataset: SourceDataset, number: FileNumber, first_index: int, spots: list[dict[str, Any]],
    extras: pa.Schema,
) -> list[tuple[int, dict[str, Any], tuple[str, ...]]]:  # fmt: skip
    """Write one table of rows and the one of the same number with their episodes' metadata.

    Args:
        root: Folder of the dataset.
        dataset: The source, with the episodes of this file.
        number: Of both files.
        first_index: Number of the first frame in the dataset.
        spots: Of each episode, the columns that say where its frames lie.
        extras: Columns that the source's metadata has besides.

    Returns:
        Of each episode, its number, its statistics and what had to be changed.
    """
    done, lines, writer = [], [], None
    with atomic_file(root / DATA_PATH.format(**number.indices())) as temporary:
        for episode, spot in zip(dataset.episodes, spots, strict=True):
            rows = read_episode(dataset, episode, first_index, as_lists=False)
            writer = writer or pq.ParquetWriter(temporary, rows.table.schema, compression="snappy")
            writer.write_table(rows.table)  # a row group an episode, as lerobot does
            lines.append(
                {
                    "episode_index": episode.index, "tasks": list(episode.tasks), "length": episode.length,
                    "data/chunk_index": number.chunk, "data/file_index": number.file,
                    "dataset_from_index": first_index, "dataset_to_index": first_index + episode.length,
                    **spot, **dataset.extras[episode.index],
                    **{f"stats/{n}/{stat}": v for n, own in rows.figures.items() for stat, v in own.items()},
                    "meta/episodes/chunk_index": number.chunk, "meta/episodes/file_index": number.file,
                }
            )  # fmt: skip
            first_index += episode.length
            done.append((episode.index, rows.figures, rows.notes))
        writer.close()
    with atomic_file(root / EPISODES_PATH.format(**number.indices())) as temporary:
        schema = _schema(dict.fromkeys(name for line in lines for name in line), dataset.pictures, extras)
        pq.write_table(pa.Table.from_pylist(lines, schema=schema), temporary)
    return done


def _spots(
    dataset: SourceDataset, clips: dict[str, list[Clip]], videos: dict[str, list[VideoFile]]
) -> list[dict[str, Any]]:
    spots: list[dict[str, Any]] = [{} for _ in dataset.episodes]
    for camera, files in videos.items():
        key = f"videos/{camera}"
        for file in files:
            first = 0
            for place in file.places:
                end = first + clips[camera][place].span.num_frames
                spots[place] |= {
                    f"{key}/chunk_index": file.number.chunk, f"{key}/file_index": file.number.file,
                    f"{key}/from_timestamp": frame_time_s(first, dataset.fps),
                    f"{key}/to_timestamp": frame_time_s(end, dataset.fps),
                }  # fmt: skip
                first = end
    return spots


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
        "total_frames": sum(episode.length for episode in dataset.episodes),
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
