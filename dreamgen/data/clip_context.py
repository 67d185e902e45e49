"""One generated clip with the data that scores and judges need, each part read or computed once.

Axes: T frames, H height, W width, C channels, A action, S state. A `video_THWC` or `frame_HWC` is uint8, 0-255, RGB;
a `gray_THW` is a small float32 copy, 0-255, in which pixel noise is averaged away.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from dreamgen.data.demonstration_motion import DemonstrationMotion, demonstration_motion
from dreamgen.data.flow import FlowSamples, sampled_flow
from dreamgen.data.frame_features import FrameFeatures, frame_features, recording
from dreamgen.data.video import decode_frames, probe, read_image
from dreamgen.errors import UserError
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.run_folder import RunFolder

GRAY_PX = 32


class ClipContext:
    """A clip that is decoded at most once, however many stages, scores and judges use it.

    Args:
        run: The run folder.
        job: The clip's job, with its size, frame count, instruction and seed.
        previous: What curate measured of it before; None if nothing.
    """

    def __init__(self, run: RunFolder, job: Job, previous: JournalRecord | None = None) -> None:
        self.run, self.job, self.previous = run, job, previous
        self._features: FrameFeatures | None = None

    @property
    def file(self) -> Path:
        """Return the clip's mp4."""
        return self.run.clip_file(self.job.clip_id)

    @cached_property
    def video_THWC(self) -> np.ndarray:
        """Return all frames; scores that do without them are ten times as fast.

        Raises:
            UserError: if the file is missing, damaged, or has no frames.
        """
        frames: list[np.ndarray] = []
        features = self._decode(frames)
        self._features = self._features or features
        return np.stack(frames)

    @property
    def features(self) -> FrameFeatures:
        """Return small frames, and measures of fine detail; all frames are decoded, but not kept.

        Raises:
            UserError: as `video_THWC` does.
        """
        if self._features is None:
            self._features = self._decode(None)
        return self._features

    @property
    def num_frames(self) -> int:
        """Return the number of frames that were decoded."""
        return len(self.features.small_THWC)

    @cached_property
    def gray_THW(self) -> np.ndarray:
        """Return all frames as `SMALL_PX` squared gray pixels."""
        return np.stack([cv2.cvtColor(f.astype(np.float32), cv2.COLOR_RGB2GRAY) for f in self.features.small_THWC])

    @cached_property
    def small_gray_THW(self) -> np.ndarray:
        """Return all frames as `GRAY_PX` squared gray pixels."""
        return small_gray(self.features.small_THWC)

    @cached_property
    def flow(self) -> FlowSamples:
        """Return the optical flow of a few pairs of frames."""
        return sampled_flow(self.gray_THW)

    @cached_property
    def first_frame_HWC(self) -> np.ndarray | None:
        """Return the first of the conditioning frames; None for a clip from text alone.

        Raises:
            UserError: if its file is missing or not an image.
        """
        if self.job.first_frame_sha256 is None:
            return None
        stacked_HWC = read_image(self.run.need(self.run.first_frame_file(self.job.first_frame_sha256), "plan"))
        return stacked_HWC[: self.job.height]

    @cached_property
    def action_TA(self) -> np.ndarray | None:
        """Return the labeled actions, float32, in the robot's units; None for a clip without labels."""
        return self._label("action")

    @cached_property
    def state_TS(self) -> np.ndarray | None:
        """Return the labeled states, float32, in the robot's units; None for a clip without them."""
        return self._label("observation.state")

    @cached_property
    def demonstration_motion(self) -> DemonstrationMotion | None:
        """Return how the demonstrations' actions and states move; None where they have no actions."""
        return demonstration_motion(self.run.train)

    def check_is_whole(self) -> None:
        """Check the number of frames without decoding them: a truncated file may decode without an error.

        Raises:
            UserError: if the file is missing, or has fewer frames than its header states.
        """
        probe(self.file)

    def _decode(self, frames: list[np.ndarray] | None) -> FrameFeatures:
        """Decode the clip, and append all frames to a list, if there is one."""
        decoded = decode_frames(self.file)
        features = frame_features(decoded if frames is None else recording(decoded, frames), self.job.num_frames)
        if features is None:
            raise UserError(f"{self.file} has 0 frames", allowed="a video with at least one frame")
        return features

    def _label(self, column: str) -> np.ndarray | None:
        import pyarrow.parquet as pq

        path = self.run.label_file(self.job.clip_id)
        if not path.is_file():
            return None
        table = pq.read_table(path)
        return np.array(table[column].to_pylist(), np.float32) if column in table.column_names else None


def small_gray(video_THWC: np.ndarray) -> np.ndarray:
    """Return a gray_THW of `GRAY_PX` squared pixels a frame; area averaging removes noise and keeps movement."""
    frames = [cv2.resize(f, (GRAY_PX, GRAY_PX), interpolation=cv2.INTER_AREA).astype(np.float32) for f in video_THWC]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
