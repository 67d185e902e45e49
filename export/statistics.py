"""The figures that trainers normalise with: min, max, mean, std, count and quantiles of vectors and of pictures.

Axes: N rows, D dimensions, H height, W width, C channels. Image figures come from 256-bin histograms of uint8 values,
so they are exact over the sampled pixels and add up over episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamgen.core.video import iter_frames

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LEVELS = 256
MAX_ROWS_FOR_QUANTILES = 1_000_000


class VectorStatistics:
    """Gathers rows of vectors: moments of all of them, quantiles of all up to a million and of every k-th beyond."""

    def __init__(self, max_rows: int = MAX_ROWS_FOR_QUANTILES) -> None:
        self._count = 0
        self._stride, self._max_rows = 1, max_rows
        self._kept: list[np.ndarray] = []
        self._num_kept = 0

    def add(self, rows_ND: np.ndarray) -> None:
        """Take in rows; they are copied."""
        rows_ND = rows_ND.astype(np.float64)
        low_D, high_D, mean_D = rows_ND.min(axis=0), rows_ND.max(axis=0), rows_ND.mean(axis=0)
        squares_D = ((rows_ND - mean_D) ** 2).sum(axis=0)
        before, now = self._count, len(rows_ND)
        self._count += now
        if before == 0:
            self._min_D, self._max_D, self._mean_D, self._squares_D = low_D, high_D, mean_D, squares_D
        else:
            # Chan, Golub and LeVeque 1983: combining means and sums of squared deviations of two groups.
            delta_D = mean_D - self._mean_D
            self._mean_D = self._mean_D + delta_D * (now / self._count)
            self._squares_D = self._squares_D + squares_D + delta_D**2 * (before * now / self._count)
            self._min_D, self._max_D = np.minimum(self._min_D, low_D), np.maximum(self._max_D, high_D)
        self._keep(rows_ND, before)

    def figures(self) -> dict[str, np.ndarray]:
        """Return each figure, float64 of shape (D,), and `count`, int64 of shape (1,)."""
        rows_ND = np.concatenate(self._kept)
        quantiles_QD = np.quantile(rows_ND, list(QUANTILES.values()), axis=0)
        return {
            "min": self._min_D,
            "max": self._max_D,
            "mean": self._mean_D,
            "std": np.sqrt(self._squares_D / self._count),
            "count": np.array([self._count], np.int64),
            **dict(zip(QUANTILES, quantiles_QD, strict=True)),
        }

    def _keep(self, rows_ND: np.ndarray, first_row: int) -> None:
        kept_ND = rows_ND[-first_row % self._stride :: self._stride]
        self._kept.append(kept_ND)
        self._num_kept += len(kept_ND)
        while self._num_kept > self._max_rows:
            self._stride *= 2
            self._kept = [np.concatenate(self._kept)[::2]]
            self._num_kept = len(self._kept[0])


def vector_figures(rows_ND: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of one episode's rows, shape (N, D) or (N,)."""
    statistics = VectorStatistics()
    statistics.add(rows_ND.reshape(len(rows_ND), -1))
    return statistics.figures()


@dataclass(frozen=True)
class ImageHistogram:
    """How often each 8-bit value occurs in the sampled pixels.

    Args:
        counts_CL: int64, channels (RGB) x 256 levels.
        num_sampled: Frames that were looked at.
        num_frames: Frames that were decoded.
    """

    counts_CL: np.ndarray
    num_sampled: int
    num_frames: int

    def __add__(self, other: ImageHistogram) -> ImageHistogram:
        return ImageHistogram(
            self.counts_CL + other.counts_CL, self.num_sampled + other.num_sampled, self.num_frames + other.num_frames
        )

    def figures(self) -> dict[str, np.ndarray]:
        """Return each figure in [0, 1], float64 of shape (3, 1, 1), and `count` (frames), int64 of shape (1,)."""
        levels_L = np.arange(LEVELS) / (LEVELS - 1)
        share_CL = self.counts_CL / self.counts_CL.sum(axis=1, keepdims=True)
        mean_C = share_CL @ levels_L
        variance_C = (share_CL * (levels_L - mean_C[:, None]) ** 2).sum(axis=1)
        below_CL = np.cumsum(self.counts_CL, axis=1)
        total_C1 = below_CL[:, -1:]
        figures = {
            "min": levels_L[(self.counts_CL > 0).argmax(axis=1)],
            "max": levels_L[LEVELS - 1 - (self.counts_CL[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean_C,
            "std": np.sqrt(variance_C),
            # The smallest level that at least this share of the pixels does not exceed.
            **{name: levels_L[(below_CL >= q * total_C1).argmax(axis=1)] for name, q in QUANTILES.items()},
        }
        shaped = {name: values_C.reshape(-1, 1, 1) for name, values_C in figures.items()}
        return {**shaped, "count": np.array([self.num_sampled], np.int64)}


def image_histogram(video: Path, num_frames: int) -> ImageHistogram:
    """Decode a whole clip and count the levels of a sample of its frames.

    Args:
        video: The mp4.
        num_frames: Frames that it should have; they decide which are sampled.

    Returns:
        The histogram, with the number of frames that were really decoded.

    Raises:
        UserError: if the video cannot be decoded.
    """
    wanted = set(sampled_frames(num_frames).tolist())
    counts_CL = np.zeros((3, LEVELS), np.int64)
    num_decoded = num_sampled = 0
    for index, frame_HWC in enumerate(iter_frames(video)):
        num_decoded += 1
        if index in wanted:
            num_sampled += 1
            small_HWC = thinned(frame_HWC)
            for channel in range(3):
                counts_CL[channel] += np.bincount(small_HWC[..., channel].ravel(), minlength=LEVELS)
    return ImageHistogram(counts_CL, num_sampled, num_decoded)


def sampled_frames(num_frames: int) -> np.ndarray:
    """Choose frames as LeRobot 0.6 does: all up to 100, then n ** 0.75 of them evenly spread, at most 10,000."""
    num_samples = max(min(100, num_frames), min(int(num_frames**0.75), 10_000))
    return np.round(np.linspace(0, num_frames - 1, num_samples)).astype(np.int64)


def thinned(frame_HWC: np.ndarray) -> np.ndarray:
    """Take every k-th pixel of a picture of 300 pixels or more, as LeRobot 0.6 does: about 150 on the long side."""
    height, width = frame_HWC.shape[:2]
    if max(height, width) < 300:
        return frame_HWC
    step = max(height, width) // 150
    return frame_HWC[::step, ::step]
