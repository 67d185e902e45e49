"""An episode as the writers of all formats get it, and the labels that its rows come from.

Axes: T frames, A action, S state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamgen.data.lerobot.image_statistics import ImageHistogram
from dreamgen.data.trajectory import read_trajectory
from dreamgen.data.video import VideoInfo
from dreamgen.errors import UserError, quoted, reason_of
from export.clips import Clip


@dataclass(frozen=True)
class ExportEpisode:
    """One clip as an episode of a dataset: about 35 kB for 93 frames of 44 dimensions, without its pixels.

    Args:
        index: Its number in the dataset.
        first_index: Number of its first frame in the dataset.
        task_index: Number of its task.
        task: The instruction as LeRobot formats hold it, with the prefix of generated clips if one is configured.
        clip: The clip, with its instruction and provenance.
        videos: Its mp4s, one a camera; `num_frames` is counted.
        action_TA: float32, one row a frame.
        state_TS: float32, one row a frame, or None.
        images: Histogram of sampled frames of each mp4.
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
        """The first camera's mp4; all have the same size and encoding."""
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


def read_label(path: Path, include_state: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a clip's labels.

    Returns:
        action_TA and state_TS (None if the file has none or `include_state` is False), float32, one row a frame.

    Raises:
        UserError: if the file is missing or damaged, rows differ in length, or a value is not finite.
    """
    try:
        rows = read_trajectory(path, include_state=include_state)
    except UserError as error:
        raise UserError(f"{path} cannot be read", actual=reason_of(error), next_step=label_again(path)) from None
    if rows.action_TA is None:
        raise UserError(f"{path} has no column action", next_step=label_again(path))
    return rows.action_TA, rows.state_TS


def label_again(label: Path) -> str:
    """Return the command that makes a clip's labels again."""
    command = f"dreamgen label --out {quoted(label.parents[2])} --resume"  # the run of labels/AB/ABCD.parquet
    return f"remove {label}, then {command}" if label.exists() else command
