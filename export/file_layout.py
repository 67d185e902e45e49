"""Which of LeRobot v3.0's numbered files each episode goes to, from whole numbers known before a byte is written.

Axes: E episodes, V videos of an episode (one a camera).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.episode_store import Episodes
from export.lerobot_statistics import Columns

MAX_EPISODES_PER_FILE = 2500  # a file of rows is one worker's task
BYTES_OF_NUMBERS = 4 + 4 * 8  # timestamp and four indices of a row
BYTES_OF_EPISODE = 2000  # its places and the statistics of its pictures
FIGURES = 9  # of each dimension: min, max, mean, std and five quantiles


@dataclass(frozen=True)
class FileNumber:
    """A file's place: `file-FFF` in the folder `chunk-CCC`."""

    chunk: int
    file: int

    @classmethod
    def of(cls, ordinal: int, chunks_size: int) -> FileNumber:
        """Return the number of the file with so many before it, with `chunks_size` files in a chunk."""
        return cls(*divmod(int(ordinal), chunks_size))

    def indices(self) -> dict[str, int]:
        """Return what a path template asks for."""
        return {"chunk_index": self.chunk, "file_index": self.file}


@dataclass(frozen=True)
class RowFile:
    """A file of rows, and the one of the same number with its episodes' metadata.

    Args:
        number: Of both.
        span: Which episodes are in it.
    """

    number: FileNumber
    span: slice


def row_files(episodes: Episodes, columns: Columns, limit_bytes: int, chunks_size: int) -> list[RowFile]:
    """Share episodes out to files of rows: a file ends before its data or its metadata would exceed the limit.

    Sizes are those in memory; parquet's are smaller, so the limit holds, unless a single episode exceeds it.
    """
    num_dims = sum(columns.widths.values())
    bytes_of_row = 4 * num_dims + BYTES_OF_NUMBERS
    bytes_of_meta = 8 * FIGURES * num_dims + BYTES_OF_EPISODE
    most = max(1, min(MAX_EPISODES_PER_FILE, limit_bytes // bytes_of_meta))
    files, first, size = [], 0, 0
    for index, num_frames in enumerate(episodes.num_frames_E.tolist()):
        if index > first and (size + num_frames * bytes_of_row > limit_bytes or index - first >= most):
            files.append(RowFile(FileNumber.of(len(files), chunks_size), slice(first, index)))
            first, size = index, 0
        size += num_frames * bytes_of_row
    return [*files, RowFile(FileNumber.of(len(files), chunks_size), slice(first, len(episodes)))]


@dataclass(frozen=True)
class VideoPlaces:
    """Where each episode's frames lie.

    Args:
        file_E: Which file, counted from 0.
        first_frame_E: Number of its first frame within the file.
        chunks_size: Files in a chunk's folder.
    """

    file_E: np.ndarray
    first_frame_E: np.ndarray
    chunks_size: int

    def __getitem__(self, span: slice) -> VideoPlaces:
        return VideoPlaces(self.file_E[span], self.first_frame_E[span], self.chunks_size)

    def files(self) -> list[RowFile]:
        """Return each file's number and which episodes are in it."""
        starts = np.flatnonzero(np.diff(self.file_E, prepend=-1)).tolist()
        ends = [*starts[1:], len(self.file_E)]
        return [
            RowFile(FileNumber.of(ordinal, self.chunks_size), slice(start, end))
            for ordinal, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]


def video_places(episodes: Episodes, camera: int, limit_bytes: int, chunks_size: int) -> VideoPlaces:
    """Share a camera's episodes out to mp4 files: a new one begins at the size limit, or where the encoding differs."""
    file_E, first_frame_E = np.zeros((2, len(episodes)), np.int64)
    ordinal, size, num_frames, encoding = -1, 0, 0, None
    columns = (episodes.num_bytes_EV[:, camera], episodes.num_frames_E, episodes.encoding_EV[:, camera])
    for index, (num_bytes, length, own) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if own != encoding or size + num_bytes > limit_bytes:
            ordinal, size, num_frames, encoding = ordinal + 1, 0, 0, own
        file_E[index], first_frame_E[index] = ordinal, num_frames
        size, num_frames = size + num_bytes, num_frames + length
    return VideoPlaces(file_E, first_frame_E, chunks_size)
