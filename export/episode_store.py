"""Episodes on disk: a hundred thousand of them are a few megabytes of integers in RAM and rows in small files.

Axes: E episodes, V videos of an episode (one a camera), T frames, D dimensions of a vector, A action, S state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.image_statistics import LEVELS, ImageHistogram
from dreamgen.data.lerobot.statistics import Range
from dreamgen.data.trajectory import read_columns
from dreamgen.data.video import VideoInfo
from dreamgen.run.files import atomic_file
from export.clip_video import ClipVideo
from export.clips import Clip
from export.episodes import ExportEpisode

VECTORS = ("action", "state")
_LIGHT = {
    "error": pa.string(), "clip_id": pa.string(), "instruction": pa.string(), "kind": pa.string(),
    "num_frames": pa.int64(), "num_bytes": pa.list_(pa.int64()), "encoding": pa.list_(pa.string()),
    "height": pa.int32(), "width": pa.int32(), "fps": pa.int32(), "codec": pa.string(), "pix_fmt": pa.string(),
    "label": pa.string(),
    **{f"{vector}_{what}": pa.list_(pa.float32()) for vector in VECTORS for what in ("low", "high")},
}  # fmt: skip
_HEAVY = {"clip": pa.string(), "video_fps": pa.string(), "num_images": pa.list_(pa.int64()),
          "image": pa.list_(pa.list_(pa.int64(), 3 * LEVELS)), **dict.fromkeys(VECTORS, pa.binary())}  # fmt: skip
SCHEMA = pa.schema(_LIGHT | _HEAVY)
LIGHT_COLUMNS = list(_LIGHT)


def accepted_row(
    clip: Clip, videos: Sequence[ClipVideo], action_TA: np.ndarray, state_TS: np.ndarray | None
) -> dict[str, Any]:
    """Return the stored row of a clip that may become an episode; its videos have the same shape."""
    info, row = videos[0].info, {}
    for name, matrix_TD in zip(VECTORS, (action_TA, state_TS), strict=True):
        if matrix_TD is not None:
            row |= {
                name: matrix_TD.tobytes(),
                f"{name}_low": matrix_TD.min(axis=0),
                f"{name}_high": matrix_TD.max(axis=0),
            }
    return {
        "clip_id": clip.clip_id, "instruction": clip.instruction, "kind": clip.kind, "label": clip.label.name,
        "num_frames": info.num_frames,
        "num_bytes": [video.num_bytes for video in videos], "encoding": [video.encoding for video in videos],
        "height": info.height, "width": info.width, "fps": clip.fps, "codec": info.codec, "pix_fmt": info.pix_fmt,
        "clip": clip.to_json(), "video_fps": str(info.fps),
        "num_images": [video.image.num_frames for video in videos],
        "image": [video.image.counts_CL.ravel() for video in videos], **row,
    }  # fmt: skip


def error_row(clip: Clip, reason: str) -> dict[str, Any]:
    """Return the stored row of a clip that cannot become an episode."""
    return {"clip_id": clip.clip_id, "error": reason}


def write_part(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a few clips atomically."""
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), temporary, compression="zstd")


@dataclass(frozen=True)
class EpisodeStore(Sequence[ExportEpisode]):
    """The episodes of a dataset, read from disk one small file at a time; a slice keeps the episodes' numbers.

    Args:
        parts: Files with the rows.
        start: Number of the first episode.
        part_E: Index of each one's file.
        row_E: Its row in that file.
        first_index_E: Number of its first frame in the dataset.
        num_frames_E: Frames.
        num_bytes_EV: Sizes of its mp4s.
        task_E: Index into `tasks`.
        encoding_EV: Equal for mp4s that can share a file.
        real_E: Whether it is a real episode, bool.
        tasks: Distinct tasks as LeRobot formats hold them, in the order in which they first occur.
        ranges: Smallest and largest values by vector: action and, where there are states, state.
    """

    parts: tuple[Path, ...]
    start: int
    part_E: np.ndarray
    row_E: np.ndarray
    first_index_E: np.ndarray
    num_frames_E: np.ndarray
    num_bytes_EV: np.ndarray
    task_E: np.ndarray
    encoding_EV: np.ndarray
    real_E: np.ndarray
    tasks: tuple[str, ...]
    ranges: dict[str, Range]

    @property
    def num_frames(self) -> int:
        """Frames of all of them."""
        return int(self.num_frames_E.sum())

    def __len__(self) -> int:
        return len(self.part_E)

    @overload
    def __getitem__(self, which: int) -> ExportEpisode: ...
    @overload
    def __getitem__(self, which: slice) -> EpisodeStore: ...
    def __getitem__(self, which: int | slice) -> ExportEpisode | EpisodeStore:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            assert step == 1, "episodes of a slice are neighbors"
            arrays = {name: value[start:stop] for name, value in vars(self).items() if name.endswith(("_E", "_EV"))}
            first, last = (int(arrays["part_E"][0]), int(arrays["part_E"][-1])) if stop > start else (0, 0)
            arrays["part_E"] = arrays["part_E"] - first
            return replace(self, parts=self.parts[first : last + 1], start=self.start + start, **arrays)
        index = range(len(self))[which]
        return next(iter(self[index : index + 1]))

    def image_histograms(self) -> tuple[ImageHistogram, ...]:
        """Return the histogram of all episodes' images, one a camera."""
        images = [ImageHistogram.empty()] * self.num_bytes_EV.shape[1]
        for _, row in self._rows(["image", "num_images"]):
            images = [image + own for image, own in zip(images, _images(row), strict=True)]
        return tuple(images)

    def clips(self) -> Iterator[tuple[int, int, Clip]]:
        """Yield each episode's number, frames and clip, without its rows."""
        for number, row in self._rows(["clip"]):
            yield self.start + number, int(self.num_frames_E[number]), Clip.from_json(row["clip"][0].as_py())

    def __iter__(self) -> Iterator[ExportEpisode]:
        return (self._episode(number, row) for number, row in self._rows())

    def _rows(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield the position and the stored row of each episode; each file is read once."""
        bounds = np.searchsorted(self.part_E, np.arange(len(self.parts) + 1)).tolist()
        for path, (start, stop) in zip(self.parts, itertools.pairwise(bounds), strict=True):
            if start < stop:
                table = read_columns(path, columns)
                for number in range(start, stop):
                    yield number, table.slice(self.row_E[number], 1)

    def _episode(self, number: int, row: pa.Table) -> ExportEpisode:
        def cell(name: str) -> Any:
            return row.column(name)[0].as_py()

        num_frames, clip = cell("num_frames"), Clip.from_json(cell("clip"))
        action, state = (cell(name) for name in VECTORS)
        action_TA = np.frombuffer(action, np.float32).reshape(num_frames, -1)
        state_TS = None if state is None else np.frombuffer(state, np.float32).reshape(num_frames, -1)
        shape = (cell("codec"), cell("pix_fmt"), cell("height"), cell("width"), Fraction(cell("video_fps")), num_frames)
        return ExportEpisode(
            self.start + number, int(self.first_index_E[number]), int(self.task_E[number]),
            self.tasks[self.task_E[number]], clip, tuple(VideoInfo(path, *shape) for path in clip.videos), action_TA,
            state_TS, _images(row),
        )  # fmt: skip


def _images(row: pa.Table) -> tuple[ImageHistogram, ...]:
    counts_VCL = row["image"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, 3, LEVELS)
    return tuple(map(ImageHistogram, counts_VCL, row["num_images"][0].as_py()))
