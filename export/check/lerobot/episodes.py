"""A LeRobot dataset as its metadata describes it: episodes as columns, about a hundred bytes each, however many.

Axes: N episodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from export.check.files import fill_template

INFO = "meta/info.json"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
NO_FILE = -1


@dataclass(frozen=True)
class Episode:
    """One episode as the metadata describes it, made when it is looked at."""

    position: int
    index: int
    length: int
    first_row: int
    named_by: str
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """How findings call it."""
        return f"episode {self.index}"


@dataclass(frozen=True)
class VideoColumns:
    """Where the frames of one camera lie, v3.0; a file of -1 is an entry that could not be read."""

    chunk_N: np.ndarray
    file_N: np.ndarray
    from_s_N: np.ndarray
    to_s_N: np.ndarray


@dataclass(frozen=True)
class EpisodeTable:
    """Episodes by number.

    Args:
        index_N: episode_index.
        length_N: Rows that it should have.
        first_row_N: Number of its first row in the dataset.
        chunk_N: v3.0: of its data file; v2: of both its files.
        file_N: v3.0: of its data file.
        source_N: Which of `sources` describes it.
        source_row_N: v3.0: its row in that file.
        videos: Camera -> places, v3.0 only.
        task_ids: Places in `task_words`, for all episodes one after another.
        task_starts: Where each episode's begin, and one end more.
    """

    index_N: np.ndarray
    length_N: np.ndarray
    first_row_N: np.ndarray
    chunk_N: np.ndarray
    file_N: np.ndarray
    source_N: np.ndarray
    source_row_N: np.ndarray
    videos: dict[str, VideoColumns]
    task_ids: np.ndarray
    task_starts: np.ndarray
    task_words: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index_N)

    def __iter__(self) -> Iterator[Episode]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Episode:
        return Episode(
            position, int(self.index_N[position]), int(self.length_N[position]), int(self.first_row_N[position]),
            self.sources[self.source_N[position]], self.tasks(position),
        )  # fmt: skip

    def tasks(self, position: int) -> tuple[str, ...]:
        """Return the tasks that an episode lists."""
        begin, end = self.task_starts[position], self.task_starts[position + 1]
        return tuple(self.task_words[i] for i in self.task_ids[begin:end])


class EpisodeRows:
    """Gathers episodes one at a time into columns, in the order in which their files hold them."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self._whole = {name: array("q") for name in ("index", "length", "first", "chunk", "file", "source", "row")}
        self._videos = {camera: (array("q"), array("q"), array("d"), array("d")) for camera in cameras}
        self._task_ids, self._task_starts = array("q"), array("q", [0])
        self._words: dict[str, int] = {}

    def add(self, tasks: list[str], videos: dict[str, tuple[int, int, float, float]], **whole: int) -> None:
        """Take in one episode."""
        for name, column in self._whole.items():
            column.append(whole[name])
        for camera, columns in self._videos.items():
            place = videos.get(camera, (NO_FILE, NO_FILE, np.nan, np.nan))
            for column, value in zip(columns, place, strict=True):
                column.append(value)
        self._task_ids.extend(self._words.setdefault(task, len(self._words)) for task in tasks)
        self._task_starts.append(len(self._task_ids))

    def table(self, sources: tuple[str, ...], has_spans: bool) -> EpisodeTable:
        """Return the episodes sorted by number, each number once."""
        whole = {name: np.array(column, np.int64) for name, column in self._whole.items()}
        _, order = np.unique(whole["index"], return_index=True)
        starts, ids = np.array(self._task_starts, np.int64), np.array(self._task_ids, np.int64)
        counts = np.diff(starts)[order]
        sorted_starts = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(sorted_starts[-1]) + np.repeat(starts[:-1][order] - sorted_starts[:-1], counts)
        columns = {name: column[order] for name, column in whole.items()}
        first = columns["first"] if has_spans else np.concatenate([[0], np.cumsum(columns["length"])[:-1]])
        return EpisodeTable(
            columns["index"], columns["length"], first.astype(np.int64), columns["chunk"], columns["file"],
            columns["source"], columns["row"],
            {camera: VideoColumns(*(np.array(column)[order] for column in place))
             for camera, place in self._videos.items()} if has_spans else {},
            ids[places], sorted_starts, tuple(self._words), sources,
        )  # fmt: skip

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """Yield (number, how often) of episodes that were added more than once."""
        numbers, counts = np.unique(np.array(self._whole["index"], np.int64), return_counts=True)
        yield from zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)


@dataclass(frozen=True)
class LeRobotEntry:
    """A LeRobot dataset as its metadata describes it.

    Args:
        version: "v2.0", "v2.1" or "v3.0".
        features: Those of info.json that are well formed.
        tasks: task_index -> task.
        modality: GR00T's modality.json, or None.
        statistics_lines: v2.1: (byte offset, size) of each episode's line in episodes_stats.jsonl; 0 where it has none.
    """

    root: Path
    version: str
    info: dict[str, Any]
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: EpisodeTable
    tasks: dict[int, str]
    modality: dict[str, Any] | None
    statistics_lines: np.ndarray | None

    @property
    def is_v3(self) -> bool:
        """Whether episodes share files."""
        return self.version == "v3.0"

    @property
    def exact_fps(self) -> Fraction:
        """The rate as the fraction that the number in info.json is meant to be."""
        return Fraction(self.fps).limit_denominator(1001)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are videos."""
        return tuple(name for name, feature in self.features.items() if feature["dtype"] == "video")

    def data_file(self, position: int) -> str:
        """Return the relative path of an episode's rows."""
        return data_file(self.info, self.is_v3, self._place(position))

    def video_file(self, camera: str, position: int) -> str:
        """Return the relative path of an episode's frames."""
        place = self._place(position)
        if self.is_v3:
            columns = self.episodes.videos[camera]
            place = {"chunk_index": int(columns.chunk_N[position]), "file_index": int(columns.file_N[position])}
        template = self.info.get("video_path") or (V3_VIDEO if self.is_v3 else V2_VIDEO)
        return fill_template(template, {**place, "video_key": camera})

    def _place(self, position: int) -> dict[str, int]:
        episodes = self.episodes
        if self.is_v3:
            return {"chunk_index": int(episodes.chunk_N[position]), "file_index": int(episodes.file_N[position])}
        return {"episode_index": int(episodes.index_N[position]), "episode_chunk": int(episodes.chunk_N[position])}


def data_file(info: dict[str, Any], is_v3: bool, place: dict[str, int]) -> str:
    """Return the relative path of a data file."""
    return fill_template(info.get("data_path") or (V3_DATA if is_v3 else V2_DATA), place)
