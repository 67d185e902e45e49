"""Frame indices and seconds, in exact arithmetic: the only place where one becomes the other."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dreamgen.errors import UserError

REGULAR = 0.1  # of a frame: how far from i / fps the times of a constant rate may be; containers round them
SAME_TIME = 1e-6  # of a unit of time
MAX_FRAMES_APART = 2  # rows and frames of one episode; a recorder that stops between the two loses one or two


def frame_time_s(frame_index: int, fps: int | Fraction) -> float:
    """Return when a frame is shown, in seconds from the first."""
    return float(Fraction(frame_index) / Fraction(fps))


def frame_index_at(time_s: float | Fraction, fps: int | Fraction) -> int:
    """Return the frame that is shown nearest to a time, in seconds from the first."""
    return round(Fraction(time_s) * Fraction(fps))


def frame_times_s(num_frames: int, fps: int | Fraction) -> np.ndarray:
    """Return when each frame is shown, float64 seconds from the first: `frame_time_s` of 0 .. num_frames - 1."""
    rate = Fraction(fps)
    # One rounding, in the division: both factors are whole numbers, exact in float64.
    return np.arange(num_frames, dtype=np.int64) * rate.denominator / rate.numerator


def resampled_indices(num_frames: int, source_fps: int | Fraction, target_fps: int | Fraction) -> np.ndarray:
    """Choose, for each frame at the target rate, the source frame that is nearest in time.

    Actions and states are taken at the same indices, so they stay with their video frames.

    Args:
        num_frames: Frames of the source.
        source_fps: Its rate.
        target_fps: The wanted rate; equal rates give every frame once.

    Returns:
        int64 indices into the source, shape (frames at the target rate,).
    """
    ratio = Fraction(source_fps) / Fraction(target_fps)
    num_target = int((num_frames - 1) / ratio) + 1 if num_frames else 0
    # floor(x + 1/2) in integers: numpy's rounding to even would take one frame twice and skip its neighbor.
    numerator, denominator = ratio.numerator, ratio.denominator
    steps = np.arange(num_target, dtype=np.int64)
    return np.minimum((2 * steps * numerator + denominator) // (2 * denominator), num_frames - 1)


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """When the frames of a video are shown; a frame's number is its place in this order.

    Args:
        pts_T: int64, ascending, in units of `unit_s`.
        unit_s: Seconds; the time base of the stream.
    """

    pts_T: np.ndarray
    unit_s: Fraction

    @classmethod
    def regular(cls, num_frames: int, fps: int | Fraction) -> FrameTimes:
        """Return the times of a constant rate, from 0."""
        return cls(np.arange(num_frames, dtype=np.int64), 1 / Fraction(fps))

    def __len__(self) -> int:
        return len(self.pts_T)

    def at_s(self, number: int) -> float:
        """Return when a frame is shown, in seconds."""
        return float(int(self.pts_T[number]) * self.unit_s)

    def first_from(self, time_s: float) -> int:
        """Return the number of the first frame that is shown at a time or later; their count if none is.

        Episodes share a video of many frames, so the times of all of them are not computed for each.
        """
        unit_s = float(self.unit_s)
        return bisect_left(self.pts_T, time_s, key=lambda pts: pts * unit_s)

    def is_regular(self, fps: int | Fraction) -> bool:
        """Return whether frame i is shown at i / fps from the first, as nearly as containers round."""
        steps_T = (self.pts_T - self.pts_T[:1]) * float(self.unit_s * Fraction(fps))
        return bool(np.all(np.abs(steps_T - np.arange(len(steps_T))) <= REGULAR))

    def nearest(self, time_s_N: np.ndarray) -> np.ndarray:
        """Return the number of the frame nearest to each time; of two equally near ones the earlier."""
        wanted_N, pts_T = np.asarray(time_s_N, np.float64) / float(self.unit_s), self.pts_T
        after_N = np.clip(np.searchsorted(pts_T, wanted_N), 1, max(1, len(pts_T) - 1))
        before_N = after_N - 1
        after_N = np.minimum(after_N, len(pts_T) - 1)
        is_after_N = np.abs(pts_T[after_N] - wanted_N) < np.abs(pts_T[before_N] - wanted_N) - SAME_TIME
        return np.where(is_after_N, after_N, before_N)

    def at_rate(self, fps: int | Fraction) -> np.ndarray:
        """Return the number of the frame nearest to each time of a rate, from the first frame to the last."""
        first_s, last_s = self.at_s(0), self.at_s(-1)
        return self.nearest(first_s + frame_times_s(int((last_s - first_s) * float(fps) + REGULAR) + 1, fps))


def resampled_frames(times: FrameTimes, source_fps: int | Fraction, target_fps: int | Fraction) -> np.ndarray:
    """Choose the nearest frame of a video for each time of another rate, from the first frame to the last.

    Args:
        times: Of the video.
        source_fps: Its average rate.
        target_fps: The wanted rate.

    Returns:
        Frame numbers, int64.
    """
    if times.is_regular(source_fps):
        return resampled_indices(len(times), source_fps, target_fps)
    return times.at_rate(target_fps)


def row_frames(
    times: FrameTimes, fps: int | Fraction, span_s: tuple[float, float] | None = None, num_rows: int | None = None,
    reach: float = 0.5,
) -> np.ndarray:  # fmt: skip
    """Find the frame of each row of an episode, by time: row i is shown i / fps after the episode begins.

    A video of its own that has another constant rate than the rows, and a frame for each, states a wrong rate: its
    frames and the rows are paired in their order.

    Args:
        times: Of the video.
        fps: Rate of the rows.
        span_s: Where the episode begins and ends in a video that several share; None for a video of its own.
        num_rows: Rows of the episode; what is missing after them does not matter. None where there are no rows.
        reach: How far from its row a frame may be, in intervals of the rate. Above 0.5, a row without a frame of its
            own gets the nearest.

    Returns:
        Frame numbers, int64; fewer than there are rows where the video ends before them, and more where it goes on.

    Raises:
        UserError: naming the first row without a frame, if there are frames after it.
    """
    if states_wrong_rate(times, fps, span_s, num_rows):
        return np.arange(len(times))
    step_s, begin_s = float(1 / Fraction(fps)), episode_begin_s(times, fps, span_s, num_rows)
    end_s = span_s[1] if span_s else np.inf
    first, end = (times.first_from(time_s - step_s / 2) for time_s in (begin_s, end_s))
    if end <= first:
        return np.zeros(0, np.int64)
    own = FrameTimes(times.pts_T[first:end], times.unit_s)
    num_shown = max(0, math.ceil((own.at_s(-1) - begin_s) / step_s - 0.5) + 1)
    row_s_N = begin_s + frame_times_s(num_shown, fps)
    number_N = own.nearest(row_s_N)
    apart_s_N = np.abs(own.pts_T[number_N] * float(own.unit_s) - row_s_N)
    is_far_N = apart_s_N > reach * (1 + REGULAR / 100) * step_s
    if reach <= 0.5:
        is_far_N |= np.diff(number_N, prepend=-1) <= 0  # two rows would share a frame
    if is_far_N[:num_rows].any():
        row = int(np.argmax(is_far_N))
        raise UserError(
            f"its video has no frame for row {row}, at {row_s_N[row]:.4f} s",
            actual=f"the nearest is at {own.at_s(int(number_N[row])):.4f} s", allowed=f"a frame each {step_s:.4f} s",
            next_step="record the episode again, or take it out: its recorder dropped frames",
        )  # fmt: skip
    return first + number_N


def episode_begin_s(
    times: FrameTimes, fps: int | Fraction, span_s: tuple[float, float] | None = None, num_rows: int | None = None
) -> float:
    """Return when row 0 of an episode is shown; the arguments are those of `row_frames`.

    A video of its own may begin late, if no frame is missing.

    Raises:
        UserError: if the metadata does not say where in its video the episode is.
    """
    if span_s is None:
        is_late = abs(times.at_s(0)) > float(1 / Fraction(fps)) / 2 and (num_rows is None or len(times) >= num_rows)
        return times.at_s(0) if is_late else 0.0
    if not np.isfinite(span_s).all():
        raise UserError(
            "the metadata does not say where in its video the episode is", actual=f"from {span_s[0]} to {span_s[1]} s",
            allowed="two times", next_step="dreamgen check lists the entries",
        )  # fmt: skip
    return span_s[0]


def states_wrong_rate(
    times: FrameTimes, fps: int | Fraction, span_s: tuple[float, float] | None, num_rows: int | None
) -> bool:
    """Return whether an episode's own video has a frame a row, but at a constant rate that is not the rows'."""
    if span_s is not None or num_rows is None or abs(len(times) - num_rows) > MAX_FRAMES_APART or len(times) < 2:
        return False
    length_s = times.at_s(-1) - times.at_s(0)
    own_fps = (len(times) - 1) / length_s if length_s > 0 else 0.0
    return abs(own_fps / float(fps) - 1) > 0.01 and own_fps > 0 and times.is_regular(Fraction(own_fps))


def num_latent_frames(num_frames: int) -> int:
    """Return the VAE's frames for `num_frames` = 4k + 1: the first alone, then groups of four."""
    return (num_frames - 1) // 4 + 1
