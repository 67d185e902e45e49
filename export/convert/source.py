"""A LeRobot dataset of any version as a source: its episodes, what else is known of them, and what is odd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.core.errors import Problems
from dreamgen.core.lerobot_meta import Episode, LeRobotMeta, read_jsonl, read_meta
from dreamgen.core.timeline import frame_index_at

KNOWN_OF_EPISODE = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "stats")
FOREIGN_PREFIXES = ("data/", "videos/", "stats/", "meta/")


@dataclass(frozen=True)
class SourceDataset:
    """What all parts of the conversion ask for.

    Args:
        root: The folder.
        version: v2.0, v2.1 or v3.0.
        info: info.json as it stands.
        features: Those that have data: a camera without any file is left out.
        fps: Frames a second.
        episodes: Sorted by number, from 0 without a gap.
        tasks: Row task_index is the task in words.
        extras: By episode: what its metadata says besides, such as a success mark.
        picture_stats: By episode, the statistics of its pictures by feature, where the metadata has them.
        notes: What is odd, one sentence each.
    """

    root: Path
    version: str
    info: dict[str, Any]
    features: dict[str, dict[str, Any]]
    fps: Fraction
    episodes: tuple[Episode, ...]
    tasks: tuple[str, ...]
    extras: dict[int, dict[str, Any]]
    picture_stats: dict[int, dict[str, dict[str, Any]]]
    notes: tuple[str, ...]

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
    def num_bytes(self) -> int:
        """Size of its tables and videos."""
        files = {episode.data_file for episode in self.episodes}
        files |= {episode.videos[camera] for episode in self.episodes for camera in self.cameras}
        return sum(path.stat().st_size for path in files)

    def part(self, start: int, stop: int) -> SourceDataset:
        """Return the dataset with some of its episodes only: what another process has to be told."""
        episodes = self.episodes[start:stop]
        return replace(
            self, episodes=episodes, extras={e.index: self.extras[e.index] for e in episodes},
            picture_stats={e.index: self.picture_stats[e.index] for e in episodes},
        )  # fmt: skip

    def first_frame(self, episode: Episode, camera: str) -> int:
        """Return where an episode begins in its mp4."""
        return frame_index_at(episode.spans_s[camera][0], self.fps) if camera in episode.spans_s else 0


def open_source(root: Path) -> SourceDataset:
    """Read the metadata and make sure that every file is there.

    Raises:
        UserError: naming all that is missing.
    """
    meta = read_meta(root)
    episodes = tuple(sorted(meta.episodes, key=lambda episode: episode.index))
    problems, notes = Problems(), []
    if [episode.index for episode in episodes] != list(range(len(episodes))):
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
    pictures = [name for name, feature in features.items() if feature.get("dtype") in ("video", "image")]
    extras, picture_stats = _episode_metadata(meta, pictures)
    return SourceDataset(
        root, meta.version, meta.info, features, meta.fps, episodes, _task_rows(meta, notes),
        {episode.index: extras.get(episode.index, {}) for episode in episodes},
        {episode.index: picture_stats.get(episode.index, {}) for episode in episodes}, tuple(notes),
    )  # fmt: skip


def _odd_totals(meta: LeRobotMeta, num_episodes: int) -> Iterator[str]:
    counted = {
        "total_episodes": num_episodes,
        "total_frames": sum(episode.length for episode in meta.episodes),
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


def _episode_metadata(meta: LeRobotMeta, pictures: list[str]) -> tuple[dict[int, dict], dict[int, dict]]:
    extras, stats = {}, {}
    if meta.version == "v3.0":
        for path in sorted((meta.root / "meta" / "episodes").glob("*/*.parquet")):
            names = pq.read_schema(path).names
            own = [n for n in names if n not in KNOWN_OF_EPISODE and not n.startswith(FOREIGN_PREFIXES)]
            wanted = [n for n in names if any(n.startswith(f"stats/{picture}/") for picture in pictures)]
            for row in pq.ParquetFile(path).read(["episode_index", *own, *wanted]).to_pylist():
                extras[row["episode_index"]] = {name: row[name] for name in own}
                figures = stats.setdefault(row["episode_index"], {})
                for name in wanted:
                    feature, _, figure = name.removeprefix("stats/").rpartition("/")
                    if row[name] is not None:
                        figures.setdefault(feature, {})[figure] = row[name]
        return extras, stats
    for row in read_jsonl(meta.root / "meta" / "episodes.jsonl"):
        extras[int(row["episode_index"])] = {n: v for n, v in row.items() if n not in KNOWN_OF_EPISODE}
    lines = meta.root / "meta" / "episodes_stats.jsonl"
    for row in read_jsonl(lines) if lines.is_file() else ():
        given = row.get("stats") if isinstance(row.get("stats"), dict) else {}
        stats[int(row["episode_index"])] = {n: figures for n, figures in given.items() if n in pictures}
    return extras, stats


def some(numbers: list[int]) -> str:
    """Return the first ten numbers as text, and how many more there are."""
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
