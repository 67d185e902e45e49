"""Which of LeRobot v3.0's numbered files each episode goes to, from whole numbers known before a byte is written.

Axes: N episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamgen.data.lerobot.schema import DEFAULT_CHUNKS_SIZE


@dataclass(frozen=True)
class FileLimits:
    """Sizes of v3.0 files; the defaults are LeRobot's own, which its info.json repeats."""

    data_mb: float = 100
    video_mb: float = 200
    chunks_size: int = DEFAULT_CHUNKS_SIZE
    max_episodes: int = 2500  # a file of rows is one worker's task

    @property
    def data_bytes(self) -> int:
        """Largest size of a file of rows."""
        return int(self.data_mb * 1024 * 1024)

    @property
    def video_bytes(self) -> int:
        """Largest size of an mp4."""
        return int(self.video_mb * 1024 * 1024)


@dataclass(frozen=True)
class VideoPlaces:
    """Where each episode's frames of one camera are.

    Args:
        file_N: Which file, counted from 0, int64.
        first_frame_N: Number of its first frame within the file, int64.
    """

    file_N: np.ndarray
    first_frame_N: np.ndarray

    def __getitem__(self, which: slice) -> VideoPlaces:
        return VideoPlaces(self.file_N[which], self.first_frame_N[which])


def plan_files(
    num_bytes_N: np.ndarray, limit_bytes: int, max_episodes: int | None = None, encoding_N: np.ndarray | None = None
) -> list[slice]:
    """Group consecutive episodes into files.

    A file ends before it would exceed the size or the number of episodes, and where the encoding changes.
    """
    most = max_episodes or len(num_bytes_N)
    codes_N = np.zeros(len(num_bytes_N)) if encoding_N is None else encoding_N
    changes_N = np.diff(codes_N, prepend=codes_N[0]) != 0
    files, first, size = [], 0, 0
    for index, (num_bytes, is_new) in enumerate(zip(num_bytes_N.tolist(), changes_N.tolist(), strict=True)):
        if index > first and (is_new or size + num_bytes > limit_bytes or index - first >= most):
            files.append(slice(first, index))
            first, size = index, 0
        size += num_bytes
    return [*files, slice(first, len(num_bytes_N))]


def video_places(files: list[slice], num_frames_N: np.ndarray) -> VideoPlaces:
    """Return where each episode's frames are in the planned files of one camera."""
    lengths, starts = [file.stop - file.start for file in files], [file.start for file in files]
    before_N = np.cumsum(num_frames_N) - num_frames_N
    return VideoPlaces(np.repeat(np.arange(len(files)), lengths), before_N - np.repeat(before_N[starts], lengths))
