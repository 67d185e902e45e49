"""Accepted clips -> episodes: what every writer is given, after each clip was decoded, counted and compared.

Axes: T frames, A action, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.core.errors import UserError
from dreamgen.core.progress import Progress
from dreamgen.core.records import AcceptedClip, RobotFeatures
from dreamgen.core.video import VideoInfo, probe
from export.statistics import ImageHistogram, image_histogram
from export.video_files import uncopyable


@dataclass(frozen=True)
class Episode:
    """One clip as an episode of a dataset; about 35 kB for 93 frames of 44 dimensions, without its pixels.

    Args:
        index: Its number in the dataset.
        clip: The accepted clip; its job tells the instruction and where it came from.
        video: Its mp4, probed; `num_frames` is counted.
        action_TA: float32, one row a frame.
        state_TS: float32, one row a frame, or None.
        image: Histogram of the decoded frames.
    """

    index: int
    clip: AcceptedClip
    video: VideoInfo
    action_TA: np.ndarray
    state_TS: np.ndarray | None
    image: ImageHistogram

    @property
    def num_frames(self) -> int:
        """Frames of the video, which are the rows of action and state."""
        return self.video.num_frames

    @property
    def fps(self) -> int:
        """Frames a second."""
        return self.clip.job.fps

    @property
    def instruction(self) -> str:
        """The task in words."""
        return self.clip.job.instruction


def admit_clips(
    clips: Sequence[AcceptedClip], features: RobotFeatures, include_state: bool
) -> tuple[list[Episode], list[str]]:
    """Turn clips into episodes and refuse those whose frames, rows or shapes disagree; the others go on.

    Args:
        clips: Accepted clips in planned order.
        features: Names of the robot's dimensions; empty names take any number of dimensions, the same for all.
        include_state: Whether states are wanted where the labels have them.

    Returns:
        The episodes, numbered from 0, and one sentence for each refused clip.
    """
    episodes: list[Episode] = []
    refused: list[str] = []
    with Progress("export: decode and count", len(clips)) as progress:
        for clip in clips:
            try:
                episode = _admit(clip, len(episodes), include_state)
                _must_match(episode, episodes[0] if episodes else None, features)
                episodes.append(episode)
                progress.add()
            except UserError as error:
                refused.append(f"{clip.job.clip_id} is left out: {error}")
                progress.add(failed=1)
    return episodes, refused


def _admit(clip: AcceptedClip, index: int, include_state: bool) -> Episode:
    action_TA, state_TS = read_label(clip.label, include_state)
    info = probe(clip.video)
    image = image_histogram(clip.video, info.num_frames)
    counts = {
        "frames decoded": image.num_frames,
        "frames in the mp4": info.num_frames,
        "frames in the journal": clip.num_frames,
        "label rows": len(action_TA),
    }
    if len(set(counts.values())) != 1:
        raise UserError(
            f"{clip.video.name}: frames and label rows differ",
            actual=", ".join(f"{count} {what}" for what, count in counts.items()),
            next_step=_label_again(clip.label),
        )
    if problem := uncopyable(clip.video, clip.job.fps):
        raise UserError(f"{clip.video.name} cannot be copied without encoding it again", actual=problem)
    return Episode(index, clip, info, action_TA, state_TS, image)


def read_label(path: Path, include_state: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a clip's labels.

    Returns:
        action_TA and state_TS (None where there is none or none is wanted), float32.

    Raises:
        UserError: if the file is missing or damaged, rows differ in length, or a value is not finite.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read", actual=str(error), next_step=_label_again(path)) from None
    if "action" not in table.column_names:
        raise UserError(f"{path} has no column action", actual=", ".join(table.column_names))
    action_TA = _matrix(table, "action", path)
    wanted = include_state and "observation.state" in table.column_names
    return action_TA, _matrix(table, "observation.state", path) if wanted else None


def _label_again(label: Path) -> str:
    command = f"dreamgen label --out {label.parents[2]} --resume"  # the run of labels/AB/ABCD.parquet
    return f"remove {label}, then {command}" if label.exists() else command


def _matrix(table: pa.Table, name: str, path: Path) -> np.ndarray:
    rows = table.column(name).to_pylist()
    try:
        matrix_TD = np.array(rows, np.float32)
    except (TypeError, ValueError):
        matrix_TD = np.empty(0, np.float32)
    if matrix_TD.ndim != 2 or matrix_TD.shape[1] == 0:
        raise UserError(f"{path}: rows of {name} are not vectors of one length")
    if not np.isfinite(matrix_TD).all():
        row = int(np.argmin(np.isfinite(matrix_TD).all(axis=1)))
        raise UserError(f"{path}: {name} is not finite", actual=f"row {row}: {matrix_TD[row].tolist()}")
    return matrix_TD


def _must_match(episode: Episode, first: Episode | None, features: RobotFeatures) -> None:
    shape = _shape(episode)
    if first is not None and shape != (expected := _shape(first)):
        different = [name for name in shape if shape[name] != expected[name]]
        raise UserError(
            f"it differs from clip {first.clip.job.clip_id}, and a dataset has one shape",
            actual=", ".join(f"{name} {shape[name]}" for name in different),
            allowed=", ".join(f"{name} {expected[name]}" for name in different),
        )
    for name, names in (("action", features.action_names), ("state", features.state_names)):
        dims = shape[f"{name} dimensions"]
        if names and dims and dims != len(names):
            raise UserError(
                f"{episode.clip.label.name}: {name} does not fit train/features.json",
                actual=f"{dims} dimensions",
                allowed=f"{len(names)}",
            )


def _shape(episode: Episode) -> dict[str, object]:
    return {
        "action dimensions": episode.action_TA.shape[1],
        "state dimensions": None if episode.state_TS is None else episode.state_TS.shape[1],
        "height": episode.video.height,
        "width": episode.video.width,
        "fps": episode.fps,
        "codec": episode.video.codec,
        "pix_fmt": episode.video.pix_fmt,
    }
