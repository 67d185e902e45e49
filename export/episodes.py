"""An episode as every writer is given it, and the labels that its rows come from.

Axes: T frames, A action, S state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.data.lerobot.image_statistics import ImageHistogram
from dreamgen.data.video import VideoInfo
from dreamgen.errors import UserError
from export.clips import Clip


@dataclass(frozen=True)
class Episode:
    """One clip as an episode of a dataset; about 35 kB for 93 frames of 44 dimensions, without its pixels.

    Args:
        index: Its number in the dataset.
        first_index: Number of its first frame in the dataset.
        task_index: Number of its task.
        task: The instruction as LeRobot formats hold it, with the prefix of dreams where one is asked for.
        clip: The clip; it tells the instruction and where it came from.
        videos: Its mp4s, one a camera; `num_frames` is counted.
        action_TA: float32, one row a frame.
        state_TS: float32, one row a frame, or None.
        images: Histogram of a sample of each one's frames.
    """

    index: int
    first_index: int
    task_index: int
    task: str
    clip: Clip
    videos: tuple[VideoInfo, ...]
    action_TA: np.ndarray
    state_TS: np.ndarray | None
    images: tuple[ImageHistogram, ...]

    @property
    def video(self) -> VideoInfo:
        """The first camera's mp4; all are alike in size and encoding."""
        return self.videos[0]

    @property
    def num_frames(self) -> int:
        """Frames of each video, which are the rows of action and state."""
        return self.video.num_frames

    @property
    def clip_id(self) -> str:
        """The clip's id."""
        return self.clip.clip_id

    @property
    def fps(self) -> int:
        """Frames a second."""
        return self.clip.fps

    @property
    def instruction(self) -> str:
        """The task in words."""
        return self.clip.instruction


def read_small(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a small parquet file in this thread: to wake others would cost more than the reading."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return file.read(columns, use_threads=False)


def read_label(path: Path, include_state: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a clip's labels.

    Returns:
        action_TA and state_TS (None where there is none or none is wanted), float32.

    Raises:
        UserError: if the file is missing or damaged, rows differ in length, or a value is not finite.
    """
    try:
        table = read_small(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read", actual=str(error), next_step=label_again(path)) from None
    if "action" not in table.column_names:
        raise UserError(f"{path} has no column action", actual=", ".join(table.column_names))
    action_TA = _matrix(table, "action", path)
    wanted = include_state and "observation.state" in table.column_names
    return action_TA, _matrix(table, "observation.state", path) if wanted else None


def label_again(label: Path) -> str:
    """Return the command that makes a clip's labels anew."""
    command = f"dreamgen label --out {label.parents[2]} --resume"  # the run of labels/AB/ABCD.parquet
    return f"remove {label}, then {command}" if label.exists() else command


def _matrix(table: pa.Table, name: str, path: Path) -> np.ndarray:
    column = table.column(name).combine_chunks()
    matrix_TD = np.empty(0, np.float32)
    if isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType) and not column.null_count:
        lengths = set(pc.list_value_length(column).to_pylist())
        values = column.flatten()
        is_number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
        if len(lengths) == 1 and is_number:
            flat = values.to_numpy(zero_copy_only=False).astype(np.float32)  # an empty cell becomes NaN
            matrix_TD = flat.reshape(len(column), lengths.pop())
    if matrix_TD.ndim != 2 or matrix_TD.shape[1] == 0:
        raise UserError(f"{path}: rows of {name} are not vectors of one length")
    if not np.isfinite(matrix_TD).all():
        row = int(np.argmin(np.isfinite(matrix_TD).all(axis=1)))
        raise UserError(f"{path}: {name} is not finite", actual=f"row {row}: {matrix_TD[row].tolist()}")
    return matrix_TD
