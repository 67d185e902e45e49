"""A LeRobot dataset of any version as a source: its episodes, what else is known of them, and what is odd.

Axes: N episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.errors import Problems
from export.convert.episode_lines import (
    FOREIGN_PREFIXES,
    KNOWN_OF_EPISODE,
    EpisodeLines,
    lines_of_jsonl,
    lines_of_parquet,
)


@dataclass(frozen=True)
class SourceDataset:
    """What all parts of the conversion ask for; nothing of it grows with the episodes but columns of numbers.

    Args:
        root: The folder.
        version: v2.0, v2.1 or v3.0.
        info: info.json as it stands.
        features: Those that have data: a camera without any file is left out.
        fps: Frames a second.
        episodes: Sorted by number, from 0 without a gap.
        tasks: Row task_index is the task in words.
        notes: What is odd, one sentence each.
        extras: Lines with what the metadata say of each episode besides, such as a success mark.
        statistics: Lines with each episode's statistics, of which those of pictures are used.
        counted: Likewise, of videos of which the metadata have none.
    """

    root: Path
    version: str
    info: dict[str, Any]
    features: dict[str, dict[str, Any]]
    fps: Fraction
    episodes: Episodes
    tasks: tuple[str, ...]
    notes: tuple[str, ...]
    extras: EpisodeLines
    statistics: EpisodeLines
    counted: EpisodeLines

    @property
    def cameras(self) -> list[str]:
        """Features that are video."""
        return [name for name, feature in self.features.items() if feature.get("dtype") == "video"]

    @property
    def pictures(self) -> list[str]:
        """Features that are video or images."""
        return [name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image")]

    @property
    def vectors(self) -> list[str]:
        """Features whose statistics are those of numbers."""
        numbers = ("float", "int", "uint", "bool")
        return [name for name, feature in self.features.items() if str(feature.get("dtype")).startswith(numbers)]

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.episodes.length_N.sum())

    @property
    def num_bytes(self) -> int:
        """Size of its tables and videos."""
        files = [self.episodes.data_files(), *map(self.episodes.video_files, self.cameras)]
        return sum(path.stat().st_size for own in files for path in own)

    def first_index_N(self) -> np.ndarray:
        """Return the number of each episode's first frame in the dataset."""
        return np.cumsum(self.episodes.length_N) - self.episodes.length_N

    def part(self, start: int, stop: int) -> SourceDataset:
        """Return the dataset with some of its episodes only: what another process has to be told."""
        which = slice(start, stop)
        return replace(
            self, episodes=self.episodes[which], extras=self.extras[which], statistics=self.statistics[which],
            counted=self.counted[which],
        )  # fmt: skip

    def episode_extras(self) -> Iterator[dict[str, Any]]:
        """Yield what the metadata say of each episode besides."""
        for row in self.extras.rows():
            yield {n: v for n, v in row.items() if n not in KNOWN_OF_EPISODE and not n.startswith(FOREIGN_PREFIXES)}

    def picture_statistics(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield each episode's statistics of its pictures by feature, where they are known."""
        pictures = set(self.pictures)
        for recorded, counted in zip(self.statistics.rows(), self.counted.rows(), strict=True):
            given = recorded.get("stats") if isinstance(recorded.get("stats"), dict) else {}
            yield {n: metrics for n, metrics in given.items() if n in pictures} | counted


def open_source(root: Path) -> SourceDataset:
    """Read the metadata and make sure that every file is there.

    Raises:
        UserError: naming all that is missing.
    """
    meta = read_meta(root)
    episodes = meta.episodes[np.argsort(meta.episodes.index_N, kind="stable")]
    problems, notes = Problems(), []
    if not np.array_equal(episodes.index_N, np.arange(len(episodes))):
        problems.add(f"{root}: episodes are not numbered from 0 without a gap", next_step=f"dreamgen check {root}")
    features = dict(meta.info["features"])
    for camera in [name for name, feature in features.items() if feature.get("dtype") == "video"]:
        missing = [e.index for e in episodes if camera not in e.videos or not e.videos[camera].is_file()]
        if len(missing) == len(episodes):
            notes.append(f"info.json names the camera {camera}, but no episode has a file of it: left out")
            del features[camera]
        elif missing:
            problems.add(f"{camera} has no file for episodes {some(missing)}", next_step="copy the dataset again")
    absent = [episode.index for episode in episodes if not episode.data_file.is_file()]
    if absent:
        problems.add(f"{root}: no table for episodes {some(absent)}", next_step="copy the dataset again")
    problems.raise_if_any(f"{root} cannot be converted")
    notes += _odd_totals(meta, len(episodes))
    nothing = EpisodeLines.none_of(len(episodes))
    return SourceDataset(root, meta.version, meta.info, features, meta.fps, episodes, _task_rows(meta, notes),
                         tuple(notes), nothing, nothing, nothing)  # fmt: skip


def with_episode_lines(dataset: SourceDataset, folder: Path) -> SourceDataset:
    """Return the dataset with what its metadata say of each episode.

    Args:
        dataset: As `open_source` gives it.
        folder: Where lines go that have to be written.
    """
    index_N, meta = dataset.episodes.index_N, dataset.root / "meta"
    if dataset.version == "v3.0":
        extras, statistics = lines_of_parquet(dataset.root, index_N, dataset.pictures, folder)
    else:
        extras = lines_of_jsonl(meta / "episodes.jsonl", index_N)
        statistics = lines_of_jsonl(meta / "episodes_stats.jsonl", index_N)
    return replace(dataset, extras=extras, statistics=statistics)


def _odd_totals(meta: LeRobotMeta, num_episodes: int) -> Iterator[str]:
    counted = {
        "total_episodes": num_episodes,
        "total_frames": int(meta.episodes.length_N.sum()),
        "total_tasks": len(meta.tasks),
    }
    for key, value in counted.items():
        if key in meta.info and meta.info[key] != value:
            yield f"info.json says {key} {meta.info[key]}; counted, and written: {value}"
    splits = meta.info.get("splits")
    if isinstance(splits, dict) and list(splits.values()) != [f"0:{num_episodes}"]:
        yield f"info.json says splits {splits}; written: train 0:{num_episodes}"


def _task_rows(meta: LeRobotMeta, notes: list[str]) -> tuple[str, ...]:
    """Put tasks in the order of their numbers: v3.0 finds a task by its row."""
    size = max(meta.tasks, default=-1) + 1
    gaps = [index for index in range(size) if index not in meta.tasks]
    if gaps:
        notes.append(f"no task has the number {some(gaps)}: a placeholder keeps the others' numbers")
    return tuple(meta.tasks.get(index, f"(no task {index})") for index in range(size))


def some(numbers: list[int]) -> str:
    """Return the first ten numbers as text, and how many more there are."""
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
