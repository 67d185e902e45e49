"""What the LeRobot writer takes: a description of episodes, which the export formats and convert implement.

Axes: N episodes or rows, D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from dreamgen.data.lerobot.statistics import Columns, Statistics
from dreamgen.data.lerobot.video import VideoSpan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode, ready to be written.

    Args:
        index: Its number in the dataset.
        first_index: Number of its first frame in the dataset.
        length: Frames, which are the rows of the table.
        tasks: Its tasks in words.
        table: A column a feature that is not video, in the types of the target version.
        rows_ND: The numeric columns side by side, as `EpisodeSource.columns` lists them, one row a frame.
        known_statistics: Feature -> statistics as JSON holds them: of each image or video feature, and of columns those
            that are kept and not computed from the rows.
        videos: Its frames, by camera.
        extras: Other fields of its metadata.
    """

    index: int
    first_index: int
    length: int
    tasks: tuple[str, ...]
    table: pa.Table
    rows_ND: np.ndarray
    known_statistics: dict[str, dict[str, Any]]
    videos: tuple[VideoSpan, ...]
    extras: dict[str, Any] = field(default_factory=dict)


def sliced[Source: DataclassInstance](source: Source, which: slice | np.ndarray, *others: str) -> Source:
    """Return a part of a source: of its columns, which end in _N, of `episodes`, and of the other fields named."""
    names = [name for name in vars(source) if name.endswith("_N") or name in ("episodes", *others)]
    return replace(source, **{name: getattr(source, name)[which] for name in names})


@dataclass(frozen=True)
class VideoSource(ABC):
    """The videos of one camera, in the order of the episodes; a slice is pickled and sent to a worker.

    Args:
        num_bytes_N: Size of each one's packets, int64.
        encoding_N: Equal for videos that may share a file, int64.
        delay_N: As in `SpanInfo`, int64.
    """

    num_bytes_N: np.ndarray
    encoding_N: np.ndarray
    delay_N: np.ndarray

    def __getitem__(self, which: slice | np.ndarray) -> Self:
        """Return the videos of some of the episodes."""
        return sliced(self, which)

    @abstractmethod
    def __iter__(self) -> Iterator[VideoSpan]:
        """List the videos one by one."""


@dataclass(frozen=True)
class EpisodeSource(ABC):
    """Episodes to write. A slice is pickled and sent to a worker, so it holds little but numbers and paths.

    Args:
        cameras: Video features.
        fps: Frames a second.
        tasks: Task strings; their place is their task_index.
        columns: The numeric columns of the whole dataset.
        features: The `features` of info.json, in the form of the target version.
        info: Other entries of info.json, such as robot_type.
        extras_schema: Types of `EpisodeRecord.extras`.
        num_frames_N: Frames of each episode, int64.
        data_bytes_N: About how large the rows of each episode are, int64.
    """

    cameras: tuple[str, ...]
    fps: int | Fraction
    tasks: tuple[str, ...]
    columns: Columns
    features: dict[str, dict[str, Any]]
    info: dict[str, Any]
    extras_schema: pa.Schema
    num_frames_N: np.ndarray
    data_bytes_N: np.ndarray

    def __len__(self) -> int:
        return len(self.num_frames_N)

    def __getitem__(self, which: slice) -> Self:
        """Return some of the episodes."""
        return sliced(self, which)

    @abstractmethod
    def __iter__(self) -> Iterator[EpisodeRecord]:
        """Read the episodes one by one."""

    @abstractmethod
    def videos(self, camera: str) -> VideoSource:
        """Return the videos of a camera, without reading rows."""

    @abstractmethod
    def known_statistics(self, computed: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Return statistics of the whole dataset by feature, as `EpisodeRecord` has those of an episode.

        Args:
            computed: Those of the rows, by column.
        """
