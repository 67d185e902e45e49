"""A LeRobot dataset of any version as the source of a conversion.

Axes: N episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.data.lerobot.schema import INFO, as_stored, axis_names, picture_size
from dreamgen.data.lerobot.video import StoredAs
from dreamgen.data.lerobot.writer import INDEX_FEATURES
from dreamgen.errors import Problems, UserError, quoted

MAX_PLACEHOLDERS = 10_000  # for task numbers that no task has

# Of a video's `info`: how lerobot encoded it, which is no longer true of one that is encoded again.
ENCODER_SETTINGS = tuple(f"video.{name}" for name in ("g", "crf", "preset", "fast_decode", "extra_options"))


@dataclass(frozen=True)
class SourceDataset:
    """A dataset to convert; nothing in it grows with the episodes but columns of numbers.

    Args:
        root: The folder.
        version: v2.0, v2.1 or v3.0.
        info: info.json as it is.
        features: Those that have data, and the index features: a camera without any file is left out.
        fps: Frames a second.
        episodes: Sorted by number, from 0 without a gap.
        tasks: Task strings by task_index.
        first_index_N: Number of each episode's first frame in the dataset, int64.
    """

    root: Path
    version: str
    info: dict[str, Any]
    features: dict[str, dict[str, Any]]
    fps: Fraction
    episodes: Episodes
    tasks: tuple[str, ...]
    first_index_N: np.ndarray

    @property
    def cameras(self) -> tuple[str, ...]:
        """Video features."""
        return tuple(name for name, feature in self.features.items() if feature.get("dtype") == "video")

    @property
    def images(self) -> tuple[str, ...]:
        """Video and image features."""
        return tuple(name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image"))

    @property
    def vectors(self) -> tuple[str, ...]:
        """Numeric features."""
        numeric = ("float", "int", "uint", "bool")
        return tuple(n for n, feature in self.features.items() if str(feature.get("dtype")).startswith(numeric))

    @property
    def num_bytes(self) -> int:
        """Size of its tables and videos."""
        names = chain.from_iterable(map(self.episodes.file_names, (None, *self.cameras)))
        return sum((self.root / name).stat().st_size for name in names)

    def stored_as(self, camera: str, made: StoredAs) -> SourceDataset:
        """Return the dataset with a camera's feature as its videos are encoded now."""
        feature = dict(self.features[camera])
        for key in ("info", "video_info"):
            if isinstance(info := feature.get(key), dict):
                kept = {name: value for name, value in info.items() if name not in ENCODER_SETTINGS}
                feature[key] = kept | {
                    "video.codec": made.codec, "video.pix_fmt": made.pix_fmt, "video.height": made.height,
                    "video.width": made.width,
                }  # fmt: skip
        if picture_size(feature) not in (None, (made.height, made.width)):
            sizes = {"height": made.height, "width": made.width}
            names = [str(name) for name in axis_names(feature)]
            feature["shape"] = [sizes.get(name, size) for name, size in zip(names, feature["shape"], strict=True)]
        return replace(self, features=self.features | {camera: feature})

    def __getitem__(self, which: slice) -> SourceDataset:
        """Return the dataset with some of its episodes only, to be sent to a worker."""
        return replace(self, episodes=self.episodes[which], first_index_N=self.first_index_N[which])


def open_source(root: Path) -> tuple[SourceDataset, list[str]]:
    """Read the metadata and make sure that every file exists.

    Returns:
        The dataset, and a note for whatever will differ in the converted one.

    Raises:
        UserError: naming everything that is missing.
    """
    meta = read_meta(root)
    episodes, problems, notes = meta.episodes, Problems(), []
    if not np.array_equal(episodes.index_N, np.arange(len(episodes))):
        problems.add(
            f"{root}: episodes are not numbered from 0 without a gap", next_step=f"dreamgen check {quoted(root)}"
        )
    features = dict(meta.features)
    for name in (name for name in meta.info["features"] if name not in meta.features):
        problems.add(f"{root / INFO}: the feature {name!r} is malformed", actual=str(meta.info["features"][name])[:80],
                     allowed="an object with a dtype and a shape, which is a list of numbers")  # fmt: skip
    for name, feature in features.items():
        if feature["dtype"] in ("video", "image") and len(feature["shape"]) != 3:
            problems.add(f"{root / INFO}: {name} has a shape that lerobot cannot read", actual=feature["shape"],
                         allowed="[height, width, channels], also of gray pictures")  # fmt: skip
    with problems.collected():
        _check_is_json(root, meta.info)
    for camera in [name for name, feature in features.items() if feature.get("dtype") == "video"]:
        unplaced = [e.index for e in episodes if camera not in e.videos]
        missing = [e.index for e in episodes if camera in e.videos and not e.videos[camera].is_file()]
        is_absent = len(unplaced) == len(episodes) and not (root / "videos" / camera).exists()
        if unplaced and not is_absent:
            problems.add(f"{root}: where the video of {camera} is, is not known for episodes {first_ten(unplaced)}",
                         allowed="its file, and from_timestamp and to_timestamp as numbers",
                         next_step=f"dreamgen check {quoted(root)}")  # fmt: skip
        elif is_absent or len(missing) == len(episodes):
            notes.append(f"info.json names the camera {camera}, but no episode has a file of it: left out")
            del features[camera]
        elif missing:
            problems.add(f"{camera} has no file for episodes {first_ten(missing)}", next_step="copy the dataset again")
    absent = [episode.index for episode in episodes if not episode.data_file.is_file()]
    if absent:
        problems.add(f"{root}: no table for episodes {first_ten(absent)}", next_step="copy the dataset again")
    problems.raise_if_any(f"{root} cannot be converted")
    notes += _wrong_totals(meta, len(episodes))
    # Tasks in the order of their numbers: v3.0 finds a task by its row.
    num_tasks = max(meta.tasks, default=-1) + 1
    if num_tasks > 10 * len(meta.tasks) + MAX_PLACEHOLDERS:
        raise UserError(
            f"{root}: task_index {num_tasks - 1} is far beyond the number of tasks", actual=f"{len(meta.tasks)} tasks",
            next_step="number the tasks from 0",
        )  # fmt: skip
    if gaps := [index for index in range(num_tasks) if index not in meta.tasks]:
        notes.append(f"no task has the number {first_ten(gaps)}: a placeholder keeps the others' numbers")
    tasks = tuple(meta.tasks.get(index, f"(no task {index})") for index in range(num_tasks))
    first_index_N = np.cumsum(episodes.length_N) - episodes.length_N
    return SourceDataset(root, meta.version, meta.info, features | INDEX_FEATURES, meta.fps, episodes, tasks,
                         first_index_N), notes  # fmt: skip


def _check_is_json(root: Path, info: dict[str, Any]) -> None:
    try:
        json.dumps(info, allow_nan=False)
    except ValueError:
        raise UserError(f"{root / INFO} holds NaN or infinity, which is not JSON", allowed="finite numbers") from None


def _wrong_totals(meta: LeRobotMeta, num_episodes: int) -> Iterator[str]:
    for key, value in meta.counted_totals().items():
        if key in ("total_episodes", "total_frames", "total_tasks") and meta.info.get(key, value) != value:
            yield f"info.json has {key} {as_stored(meta.info[key])}; counted and written: {value}"
    splits = meta.info.get("splits")
    if isinstance(splits, dict) and list(splits.values()) != [f"0:{num_episodes}"]:
        yield f"info.json has splits {splits}; written: train 0:{num_episodes}"


def first_ten(numbers: Iterable[int]) -> str:
    """Return the first ten numbers as text, and how many more there are."""
    numbers = list(numbers)
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
