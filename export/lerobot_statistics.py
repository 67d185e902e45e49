"""The statistics of a LeRobot dataset, gathered file by file in any order, and added up.

Axes: V cameras, T frames, N rows, D the dimensions of all columns side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamgen.data.timeline import frame_time_s
from dreamgen.run.files import atomic_file
from export.episode_store import Episodes
from export.episodes import Episode
from export.image_statistics import ImageHistogram
from export.statistics import Range, VectorCounts, vector_statistics

EPISODES_AT_ONCE = 50


@dataclass(frozen=True)
class Columns:
    """The columns of the rows, side by side.

    Args:
        widths: Column -> its dimensions, in the order of the rows.
        within: Smallest and largest value of each dimension in the whole dataset.
    """

    widths: dict[str, int]
    within: Range

    def split(self, values_D: np.ndarray) -> dict[str, np.ndarray]:
        """Cut what has an entry a dimension into one part a column."""
        parts, start = {}, 0
        for name, width in self.widths.items():
            parts[name] = values_D[start : start + width]
            start += width
        return parts


def columns_of(episodes: Episodes, fps: int) -> Columns:
    """Return the columns and ranges of a whole dataset; those of the numbers follow from its counts."""
    longest = int(episodes.num_frames_E.max())
    last = {
        "timestamp": frame_time_s(longest - 1, fps), "frame_index": longest - 1, "episode_index": len(episodes) - 1,
        "index": episodes.num_frames - 1, "task_index": len(episodes.tasks) - 1,
    }  # fmt: skip
    names = {"state": "observation.state", "action": "action"}
    ranges = {names[vector]: episodes.ranges[vector] for vector in names if vector in episodes.ranges}
    ranges |= {name: Range(np.zeros(1), np.array([value], np.float64)) for name, value in last.items()}
    low_D, high_D = (np.concatenate([getattr(own, end) for own in ranges.values()]) for end in ("low_D", "high_D"))
    return Columns({name: len(own.low_D) for name, own in ranges.items()}, Range(low_D, high_D))


class PartStatistics:
    """Gathers the statistics of the episodes of one file, while they are written.

    Args:
        columns: Of the whole dataset.
        cameras: Names of the video features.
    """

    def __init__(self, columns: Columns, cameras: tuple[str, ...]) -> None:
        self._columns, self._cameras = columns, cameras
        self._rows: list[np.ndarray] = []
        self._counts: VectorCounts | None = None
        self._images = [ImageHistogram.empty()] * len(cameras)

    def add(self, episode: Episode, columns: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Take in an episode and return its own statistics by feature."""
        rows_TD = np.concatenate([columns[name].reshape(episode.num_frames, -1) for name in self._columns.widths], 1)
        self._rows.append(rows_TD)
        if len(self._rows) == EPISODES_AT_ONCE:
            self._count()
        self._images = [image + own for image, own in zip(self._images, episode.images, strict=True)]
        of_images = {name: image.metrics() for name, image in zip(self._cameras, episode.images, strict=True)}
        return {**of_images, **by_column(vector_statistics(rows_TD), self._columns)}

    def save(self, path: Path) -> None:
        """Write what was gathered, whole or not at all."""
        self._count()
        with atomic_file(path) as temporary:
            np.savez(
                temporary, num_rows=self._counts.num_rows, mean_D=self._counts.mean_D, squares_D=self._counts.squares_D,
                counts_DL=self._counts.counts_DL.astype(np.uint32), 
                image_VCL=np.stack([image.counts_CL for image in self._images]),
                num_pictures_V=[image.num_frames for image in self._images],
            )  # fmt: skip

    def _count(self) -> None:
        if self._rows:
            counts = VectorCounts.of(np.concatenate(self._rows), self._columns.within)
            self._counts = counts if self._counts is None else self._counts + counts
            self._rows = []


def add_up(parts: list[Path], columns: Columns, cameras: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Return the statistics of a whole dataset by feature.

    Args:
        parts: What `PartStatistics.save` wrote, in the order of the episodes.
        columns: Of the whole dataset.
        cameras: Names of the video features.
    """
    counts, images = None, [ImageHistogram.empty()] * len(cameras)
    for path in parts:
        with np.load(path) as part:
            own = VectorCounts(
                int(part["num_rows"]), part["mean_D"], part["squares_D"], part["counts_DL"].astype(np.int64)
            )
            counts = own if counts is None else counts + own
            own = map(ImageHistogram, part["image_VCL"], part["num_pictures_V"].tolist())
            images = [image + more for image, more in zip(images, own, strict=True)]
    of_images = {name: image.metrics() for name, image in zip(cameras, images, strict=True)}
    return {**of_images, **by_column(counts.metrics(columns.within), columns)}


def by_column(metrics: dict[str, np.ndarray], columns: Columns) -> dict[str, dict[str, np.ndarray]]:
    """Turn figures of all dimensions side by side into figures of each column."""
    cut = {stat: columns.split(values_D) for stat, values_D in metrics.items() if stat != "count"}
    return {
        n: {stat: metrics["count"] if stat == "count" else cut[stat][n] for stat in metrics} for n in columns.widths
    }


def as_lists(statistics: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list]]:
    """Return statistics as JSON holds them."""
    return {name: {stat: v.tolist() for stat, v in metrics.items()} for name, metrics in statistics.items()}
