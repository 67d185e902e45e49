"""The episodes of a source as the LeRobot writer takes them, once their ranges and image statistics are known.

Axes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.data.frames import FrameReader
from dreamgen.data.lerobot.episode_source import EpisodeRecord, EpisodeSource, sliced
from dreamgen.data.lerobot.image_statistics import ImageHistogram, sampled_frames
from dreamgen.data.lerobot.lines import EpisodeLines
from dreamgen.data.lerobot.pictures import decoded_picture
from dreamgen.data.lerobot.schema import picture_size, policy_axis_names
from dreamgen.data.lerobot.statistics import Columns, Range, Statistics, as_lists, merge_statistics
from dreamgen.data.timeline import row_frames
from dreamgen.data.video import probe_again
from dreamgen.errors import UserError, quoted
from dreamgen.progress import Progress
from export.convert.episode_metadata import extras_schema, read_extras, read_statistics, write_lines
from export.convert.recorded_statistics import agrees, as_arrays, is_usable, read_whole, whole_statistics
from export.convert.rows import as_float64, read_rows
from export.convert.source import SourceDataset
from export.convert.videos import SourceVideos
from export.workers import Workers

# Entries of info.json that only one of the versions has.
VERSION_INFO = ("total_videos", "total_chunks", "data_files_size_in_mb", "video_files_size_in_mb")


@dataclass(frozen=True)
class ConvertedEpisodes(EpisodeSource):
    """The episodes of a source in the form of another version.

    Args:
        dataset: The source.
        camera_videos: Where each episode's packets are, by camera.
        extras: Other fields of each episode's metadata.
        statistics: Statistics of each episode that are kept, and those of its images.
        merged: The same of all episodes together.
        whole: What the source records of the whole dataset.
        version: v2.1 or v3.0.
    """

    dataset: SourceDataset
    camera_videos: dict[str, SourceVideos]
    extras: EpisodeLines
    statistics: EpisodeLines
    merged: dict[str, Statistics]
    whole: dict[str, Statistics]
    version: str

    def __getitem__(self, which: slice) -> ConvertedEpisodes:
        camera_videos = {camera: own[which] for camera, own in self.camera_videos.items()}
        return replace(sliced(self, which, "dataset", "extras", "statistics"), camera_videos=camera_videos)

    def __iter__(self) -> Iterator[EpisodeRecord]:
        rows = zip(read_rows(self.dataset, self.version), self.extras.rows(), self.statistics.rows(), strict=True)
        for place, ((episode, table, _), extras, known) in enumerate(rows):
            vectors = [as_float64(table[name], episode.length) for name in self.columns.widths]
            yield EpisodeRecord(
                episode.index, int(self.dataset.first_index_N[place]), episode.length,
                episode.tasks or _tasks_of_rows(table, self.tasks), table,
                np.concatenate(vectors, axis=1), known,
                tuple(own.span(place) for own in self.camera_videos.values()), extras,
            )  # fmt: skip

    def videos(self, camera: str) -> SourceVideos:
        """Return the videos of a camera."""
        return self.camera_videos[camera]

    def known_statistics(self, computed: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Return statistics of the whole dataset by feature: of images, and of columns as the source has them."""
        images = {name: self.merged[name] for name in self.dataset.images if name in self.merged}
        columns = {
            name: whole_statistics(own, self.merged.get(name, {}), self.whole.get(name, {}))
            for name, own in computed.items()
        }
        return images | columns


@dataclass
class Measured:
    """What reading some episodes once gives.

    Args:
        ranges: Smallest and largest values by numeric feature.
        statistics: Of each episode by feature, as JSON holds them: of images, and recorded ones of columns that agree
            with the rows.
        merged: The same of all of them.
        notes: Episode and what has to be changed in its rows.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    statistics: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    merged: dict[str, Statistics] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def merge(self, ranges: dict[str, Range], statistics: dict[str, Statistics]) -> None:
        """Merge ranges and statistics of other episodes into these."""
        for name, own in ranges.items():
            self.ranges[name] = self.ranges[name] | own if name in self.ranges else own
        for name, own in statistics.items():
            self.merged[name] = merge_statistics(self.merged[name], own) if name in self.merged else own


def converted_episodes(
    dataset: SourceDataset, videos: dict[str, SourceVideos], version: str, folder: Path, episodes_per_task: int,
    workers: Workers,
) -> tuple[ConvertedEpisodes, list[tuple[int, str]]]:  # fmt: skip
    """Read the rows of a source once, for what must be known before it is written.

    Args:
        dataset: The source.
        videos: Where each episode's packets are, by camera.
        version: Of the converted dataset.
        folder: For what is kept of each episode until it is written.
        episodes_per_task: How many a worker reads at once.
        workers: Read rows, and decode videos without recorded statistics.

    Returns:
        The episodes, and by episode what has to be changed in its rows.

    Raises:
        UserError: if rows cannot be converted.
    """
    root, num_episodes, total = dataset.root, len(dataset.episodes), Measured()
    extras = write_lines(folder / "extras.jsonl", num_episodes, read_extras(dataset))
    recorded = write_lines(folder / "recorded.jsonl", num_episodes, read_statistics(dataset))
    parts = (slice(start, start + episodes_per_task) for start in range(0, num_episodes, episodes_per_task))
    tasks = (partial(measure, dataset[part], {camera: own[part] for camera, own in videos.items()}, recorded[part],
                     version) for part in parts)  # fmt: skip

    def statistics_lines() -> Iterator[tuple[int, dict[str, Any]]]:
        with Progress("convert: read", num_episodes, "episodes") as progress:
            for part in workers.run(tasks):
                total.merge(part.ranges, part.merged)
                total.notes.extend(part.notes)
                yield from part.statistics
                progress.add(len(part.statistics))

    statistics = write_lines(folder / "statistics.jsonl", num_episodes, statistics_lines())
    is_v30, episodes = version == "v3.0", dataset.episodes
    sizes = [episode.data_file.stat().st_size for episode in episodes] if is_v30 else np.zeros(num_episodes)
    return ConvertedEpisodes(
        cameras=dataset.cameras, fps=dataset.fps, tasks=dataset.tasks,
        columns=Columns.of(total.ranges, {name: dataset.features[name]["shape"] for name in dataset.vectors}),
        features={n: _v30_feature(f) if is_v30 else f for n, f in dataset.features.items()},
        info={name: value for name, value in dataset.info.items() if name not in VERSION_INFO},
        extras_schema=extras_schema(root, extras), num_frames_N=episodes.length_N,
        data_bytes_N=np.array(sizes, np.int64), dataset=dataset, camera_videos=videos, extras=extras,
        statistics=statistics, merged=total.merged, whole=read_whole(dataset), version=version,
    ), total.notes  # fmt: skip


def measure(dataset: SourceDataset, videos: dict[str, SourceVideos], recorded: EpisodeLines, version: str) -> Measured:
    """Read the rows of some episodes, and decode images that have no recorded statistics."""
    part, readers = Measured(), {camera: FrameReader() for camera in videos}
    for place, ((episode, table, notes), known) in enumerate(
        zip(read_rows(dataset, version), recorded.rows(), strict=True)
    ):
        ranges, kept = {}, {name: own for name, own in known.items() if is_usable(own)}
        for name in dataset.vectors:
            rows_ND = as_float64(table[name], episode.length)
            ranges[name] = Range(rows_ND.min(axis=0), rows_ND.max(axis=0))
            if not np.isfinite([ranges[name].low_D, ranges[name].high_D]).all():
                raise UserError(
                    f"{episode.data_file}: {name} of episode {episode.index} is not finite", allowed="finite numbers",
                    next_step=f"dreamgen check {quoted(dataset.root)}",
                )  # fmt: skip
            if name in kept and not agrees(as_arrays(kept[name]), rows_ND, dataset.features[name]["shape"]):
                del kept[name]
        for name in dataset.images:
            if name not in kept:
                frames = _sampled(videos[name], place, readers[name]) if name in videos else _decoded(table[name])
                kept |= as_lists({name: _image_statistics(frames, _num_channels(dataset.features[name]))})
        part.merge(ranges, {name: as_arrays(own) for name, own in kept.items()})
        part.statistics.append((episode.index, kept))
        part.notes.extend((episode.index, note) for note in notes)
        if not episode.tasks:
            part.notes.append((episode.index, "it lists no tasks: those of its rows were written"))
    for reader in readers.values():
        reader.close()
    return part


def _tasks_of_rows(table: pa.Table, tasks: tuple[str, ...]) -> tuple[str, ...]:
    used = pc.unique(table["task_index"]).to_pylist()
    return tuple(tasks[index] for index in used if index is not None and 0 <= index < len(tasks))


def _image_statistics(frames: Iterator[np.ndarray], num_channels: int) -> Statistics:
    """Return statistics of RGB frames; of their brightness for a feature of one channel."""
    if num_channels == 1:
        frames = (cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for f in frames)
    statistics = reduce(ImageHistogram.with_frame, frames, ImageHistogram.empty()).metrics()
    return {stat: v_C11 if stat == "count" else v_C11[:num_channels] for stat, v_C11 in statistics.items()}


def _num_channels(feature: dict[str, Any]) -> int:
    size = picture_size(feature)
    return 1 if size is not None and size[0] * size[1] == math.prod(feature["shape"]) else 3


def _sampled(videos: SourceVideos, place: int, reader: FrameReader) -> Iterator[np.ndarray]:
    """Decode the frames of a video that LeRobot samples for statistics."""
    span = videos.span(place)
    info, own_span_s = probe_again(span.path), None if videos.is_reencoded_N[place] else videos.source_span_s(place)
    numbers = row_frames(info.times, videos.fps, own_span_s, span.num_frames)
    return reader.frames(info, numbers[sampled_frames(span.num_frames)])


def _decoded(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """Decode the same frames of a column that holds images as files."""
    for index in sampled_frames(len(column)):
        yield decoded_picture(column[int(index)].as_py(), f"row {index}")


def _v30_feature(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a feature as v3.0 holds it: `names` exists, and a video's encoding is called `info`."""
    feature = {"names": None, **feature}
    if feature["dtype"] in ("video", "image"):
        feature["names"] = policy_axis_names(feature)
    if "video_info" not in feature:
        return feature
    info = {**feature.pop("video_info"), **feature.get("info", {})}
    names = feature["names"]
    # GR00T's first release reads "channel" together with video_info; with info, the third axis is "channels".
    names = ["channels" if name == "channel" else name for name in names] if isinstance(names, list) else names
    return {**feature, "names": names, "info": info}
