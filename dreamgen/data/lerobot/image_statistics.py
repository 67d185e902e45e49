"""Statistics of images from 256-bin histograms of sampled frames: exact over the sample, and they add up.

Axes: H height, W width, C channels (RGB), L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dreamgen.data.lerobot.statistics import QUANTILES, Statistics

LEVELS = 256
MIN_SAMPLED = 16


@dataclass(frozen=True)
class ImageHistogram:
    """How often each 8-bit value occurs in the sampled pixels.

    Args:
        counts_CL: int64, channels (RGB) x 256 levels.
        num_frames: Frames that it represents; LeRobot weighs episodes by this number when it merges them.
    """

    counts_CL: np.ndarray
    num_frames: int

    @classmethod
    def empty(cls) -> ImageHistogram:
        """Return the histogram of no frames."""
        return cls(np.zeros((3, LEVELS), np.int64), 0)

    def __add__(self, other: ImageHistogram) -> ImageHistogram:
        return ImageHistogram(self.counts_CL + other.counts_CL, self.num_frames + other.num_frames)

    def with_frame(self, frame_HWC: np.ndarray) -> ImageHistogram:
        """Return the histogram with one more frame, uint8, RGB, downsampled as LeRobot does."""
        small_HWC = downsampled(frame_HWC)
        # float32, which counts exactly up to 2 ** 24 pixels; np.bincount takes four times longer.
        counts_CL1 = [cv2.calcHist([small_HWC], [c], None, [LEVELS], [0, LEVELS]) for c in range(3)]
        return self + ImageHistogram(np.stack([counts.reshape(-1) for counts in counts_CL1]).astype(np.int64), 1)

    def scaled_to(self, num_frames: int) -> ImageHistogram:
        """Scale the counts of a sample up to the number of frames that the sample represents."""
        assert num_frames >= self.num_frames, f"{self.num_frames} sampled frames cannot represent {num_frames}"
        return ImageHistogram(np.rint(self.counts_CL * (num_frames / self.num_frames)).astype(np.int64), num_frames)

    def metrics(self) -> Statistics:
        """Return statistics in [0, 1], float64 of shape (3, 1, 1), and `count` (frames), int64 of shape (1,)."""
        levels_L = np.arange(LEVELS) / (LEVELS - 1)
        share_CL = self.counts_CL / self.counts_CL.sum(axis=1, keepdims=True)
        mean_C = share_CL @ levels_L
        variance_C = (share_CL * (levels_L - mean_C[:, None]) ** 2).sum(axis=1)
        below_CL = np.cumsum(self.counts_CL, axis=1)
        total_C1 = below_CL[:, -1:]
        metrics = {
            "min": levels_L[(self.counts_CL > 0).argmax(axis=1)],
            "max": levels_L[LEVELS - 1 - (self.counts_CL[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean_C,
            "std": np.sqrt(variance_C),
            # The smallest level that at least this share of the pixels does not exceed.
            **{name: levels_L[(below_CL >= q * total_C1).argmax(axis=1)] for name, q in QUANTILES.items()},
        }
        shaped = {name: values_C.reshape(-1, 1, 1) for name, values_C in metrics.items()}
        return {**shaped, "count": np.array([self.num_frames], np.int64)}


def sampled_frames(num_frames: int) -> np.ndarray:
    """Choose evenly spread frames as LeRobot 0.6 does: all up to 100, then n ** 0.75, at most 10,000."""
    return _evenly_spread(num_frames, max(min(100, num_frames), min(int(num_frames**0.75), 10_000)))


def few_frames(num_frames: int) -> np.ndarray:
    """Choose evenly spread frames, including both ends: all up to 16, then a quarter of LeRobot's sample.

    Neighboring frames are nearly alike, and decoding one costs as much as copying a hundred.
    """
    return _evenly_spread(num_frames, max(min(MIN_SAMPLED, num_frames), min(int(num_frames**0.75) // 4, 2_500)))


def _evenly_spread(num_frames: int, num_samples: int) -> np.ndarray:
    return np.round(np.linspace(0, num_frames - 1, num_samples)).astype(np.int64)


def downsampled(frame_HWC: np.ndarray) -> np.ndarray:
    """Take every k-th pixel of an image of 300 pixels or more, as LeRobot 0.6 does: about 150 on the long side."""
    height, width = frame_HWC.shape[:2]
    if max(height, width) < 300:
        return frame_HWC
    step = max(height, width) // 150
    return frame_HWC[::step, ::step]
