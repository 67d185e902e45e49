"""Frame indices and seconds, in exact arithmetic: the only place where one becomes the other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


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

    Actions and states are taken at the same indices, so they stay with the picture that they belong to.

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


def num_latent_frames(num_frames: int) -> int:
    """Return the VAE's frames for `num_frames` = 4k + 1: the first alone, then groups of four."""
    return (num_frames - 1) // 4 + 1
