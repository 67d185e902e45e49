"""One generated clip with the data that scores and judges need, each part read or computed once.

Axes: T frames, H height, W width, C channels, A action, S state. A `video_THWC` or `frame_HWC` is uint8, 0-255, RGB;
a `gray_THW` is a small float32 copy, 0-255, in which pixel noise is averaged away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from dreamgen.data.demonstration_motion import DemonstrationMotion, demonstration_motion
from dreamgen.data.flow import FlowSamples, sampled_flow
from dreamgen.data.frame_features import FrameFeatures, frame_features, shown_to
from dreamgen.data.images import read_image
from dreamgen.data.trajectory import UNCERTAINTY, read_columns
from dreamgen.data.video import DecodedFrame, decode_frames
from dreamgen.errors import UserError
from dreamgen.run.idm_error import IdmError, Measured
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.run_folder import RunFolder

GRAY_PX = 32
NUM_WINDOWS, WINDOW_FRAMES = 3, 5  # of 4k + 1 frames, as VAEs of video take them
WINDOW_PX, MULTIPLE_PX = 256, 16  # the longer side at most, and what both sides are multiples of


class ClipContext:
    """A clip that is decoded at most once, however many stages, scores and judges use it.

    Args:
        run: The run folder.
        job: The clip's job, with its size, frame count, instruction and seed.
        previous: What curate measured of it before; None if nothing.
        keeps_windows: Keep `windows` whenever the clip is decoded, for a later score.
    """

    def __init__(
        self, run: RunFolder, job: Job, previous: JournalRecord | None = None, keeps_windows: bool = False
    ) -> None:
        self.run, self.job, self.previous = run, job, previous
        self.vae_trip: Callable[[np.ndarray], np.ndarray] | None = None  # video_THWC after the VAE, where one is loaded
        self._keeps_windows = keeps_windows
        self._features: FrameFeatures | None = None
        self._windows: list[np.ndarray] | None = None

    @property
    def file(self) -> Path:
        """Return the clip's mp4."""
        return self.run.clip_file(self.job.clip_id)

    @cached_property
    def video_THWC(self) -> np.ndarray:
        """Return all frames, which takes far more memory than `each_frame`.

        Raises:
            UserError: if the file is missing, damaged, ends early, or has no frames.
        """
        return np.stack(self.each_frame(lambda frame: frame.rgb()))

    def each_frame(self, function: Callable[[DecodedFrame], np.ndarray]) -> list[np.ndarray]:
        """Call a function with each frame while the clip is decoded, so that its frames are not all kept.

        Args:
            function: From a frame to an array, such as a smaller frame.

        Returns:
            What the function returned, in the order of the frames.

        Raises:
            UserError: as `video_THWC` does.
        """
        results: list[np.ndarray] = []
        features = self._decode(lambda frame: results.append(function(frame)))
        self._features = self._features or features
        return results

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
    def windows(self) -> list[np.ndarray]:
        """Return video_THWC of a few short windows, at most `WINDOW_PX` large; fewer for a clip that is short or small.

        Raises:
            UserError: as `video_THWC` does.
        """
        if self._windows is None:
            self._keeps_windows = True
            self._features = self._decode(None)
        assert self._windows is not None, "decoding keeps them"
        return self._windows

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

    @property
    def label_uncertainty(self) -> float | None:
        """Return how uncertain the label's actions are, in standard deviations of the demonstrations' actions.

        None for a clip without a label, and for one that no inverse-dynamics model of a run wrote.
        """
        table = self._label_table
        text = None if table is None else (table.schema.metadata or {}).get(UNCERTAINTY)
        return None if text is None else float(text)

    @cached_property
    def action_error_A(self) -> np.ndarray | float:
        """Return the mean absolute error of the label's actions on held-out episodes, in the robot's units.

        0 for a label that no inverse-dynamics model of a run wrote, and where the error is not known.
        """
        return self._label_error(self.action_TA, lambda error: error.action)

    @cached_property
    def state_error_S(self) -> np.ndarray | float:
        """Return the same of the label's states."""
        return self._label_error(self.state_TS, lambda error: error.state)

    @cached_property
    def demonstration_motion(self) -> DemonstrationMotion | None:
        """Return how the demonstrations' actions and states move; None where they have no actions."""
        return demonstration_motion(self.run.train)

    def _decode(self, observe: Callable[[DecodedFrame], None] | None) -> FrameFeatures:
        """Decode the clip, and show each frame to a function, if there is one."""
        decoded = decode_frames(self.file, whole=True)
        frames: dict[int, np.ndarray] = {}
        if self._keeps_windows:
            decoded = _kept_frames(decoded, self.job.num_frames, frames)
        features = frame_features(decoded if observe is None else shown_to(observe, decoded), self.job.num_frames)
        if self._keeps_windows:
            numbers = _window_frames(self.job.num_frames)
            self._windows = [np.stack([frames[n] for n in some]) for some in numbers if frames.keys() >= set(some)]
        if features is None:
            raise UserError(f"{self.file} has 0 frames", allowed="a video with at least one frame")
        return features

    def _label(self, column: str) -> np.ndarray | None:
        table = self._label_table
        if table is None or column not in table.column_names:
            return None
        return np.array(table[column].to_pylist(), np.float32)

    def _label_error(
        self, label_TD: np.ndarray | None, measured: Callable[[IdmError], Measured | None]
    ) -> np.ndarray | float:
        error = None if self.label_uncertainty is None else IdmError.of_run(self.run)
        found = None if error is None else measured(error)
        if found is None or label_TD is None or len(found.mae_per_dim) != label_TD.shape[1]:
            return 0.0
        return np.array(found.mae_per_dim)

    @cached_property
    def _label_table(self) -> pa.Table | None:
        path = self.run.label_file(self.job.clip_id)
        return read_columns(path, None) if path.is_file() else None


def _window_frames(num_frames: int) -> list[range]:
    """Return the frames of each window: the first one begins the clip, the last one ends it."""
    starts = np.linspace(0, num_frames - WINDOW_FRAMES, NUM_WINDOWS).round().astype(int).tolist()
    return [range(start, start + WINDOW_FRAMES) for start in sorted({*starts}) if start >= 0]


def _kept_frames(
    decoded: Iterable[DecodedFrame], num_frames: int, frames: dict[int, np.ndarray]
) -> Iterator[DecodedFrame]:
    """Yield frames, and keep those of windows by their number, at a reduced size; none of less than `MULTIPLE_PX`."""
    wanted = {number for some in _window_frames(num_frames) for number in some}
    for number, frame in enumerate(decoded):
        if number in wanted:
            frame_HWC = frame.rgb()
            height, width = frame_HWC.shape[:2]
            scale = min(1.0, WINDOW_PX / max(height, width))
            size = tuple(int(side * scale) // MULTIPLE_PX * MULTIPLE_PX for side in (width, height))
            if min(size):
                frames[number] = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
        yield frame


def small_gray(video_THWC: np.ndarray) -> np.ndarray:
    """Return a gray_THW of `GRAY_PX` squared pixels a frame; area averaging removes noise and keeps movement."""
    frames = [cv2.resize(f, (GRAY_PX, GRAY_PX), interpolation=cv2.INTER_AREA).astype(np.float32) for f in video_THWC]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
