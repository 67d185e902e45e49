"""The figures that trainers normalise with: min, max, mean, std, count and quantiles of vectors.

Axes: N rows, D dimensions, L levels, Q quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NUM_LEVELS = 5001  # LeRobot counts in 5,000 bins


def vector_statistics(rows_ND: np.ndarray) -> dict[str, np.ndarray]:
    """Return each figure of a few rows, exact: float64 of shape (D,), and `count`, int64 of shape (1,).

    Args:
        rows_ND: At least one row; (N,) stands for one dimension.
    """
    rows_ND = rows_ND.reshape(len(rows_ND), -1).astype(np.float64)
    return {
        "min": rows_ND.min(axis=0),
        "max": rows_ND.max(axis=0),
        "mean": rows_ND.mean(axis=0),
        "std": rows_ND.std(axis=0),
        "count": np.array([len(rows_ND)], np.int64),
        **dict(zip(QUANTILES, np.quantile(rows_ND, list(QUANTILES.values()), axis=0), strict=True)),
    }


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of each dimension, known before rows are counted into levels."""

    low_D: np.ndarray
    high_D: np.ndarray

    def __or__(self, other: Range) -> Range:
        return Range(np.minimum(self.low_D, other.low_D), np.maximum(self.high_D, other.high_D))

    def levels_DL(self) -> np.ndarray:
        """Return the values that rows are rounded to: `NUM_LEVELS`, evenly spaced, both ends among them."""
        share_L = np.arange(NUM_LEVELS) / (NUM_LEVELS - 1)
        return self.low_D[:, None] * (1 - share_L) + self.high_D[:, None] * share_L


@dataclass(frozen=True)
class VectorCounts:
    """What rows add up to: moments, and how many fall to each level of a range that is given beforehand.

    Two of them of the same range add up to that of both groups of rows; counts are whole numbers, so however the rows
    are shared out, and in which order, the quantiles are the same.

    Args:
        num_rows: Rows that were counted.
        mean_D: Their mean.
        squares_D: Sum of squared deviations from it.
        counts_DL: int64.
    """

    num_rows: int
    mean_D: np.ndarray
    squares_D: np.ndarray
    counts_DL: np.ndarray

    @classmethod
    def of(cls, rows_ND: np.ndarray, within: Range) -> VectorCounts:
        """Count rows; every value lies in the range."""
        rows_ND = rows_ND.astype(np.float64)
        num_rows, num_dims = rows_ND.shape
        width_D = within.high_D - within.low_D
        share_ND = (rows_ND - within.low_D) / np.where(width_D > 0, width_D, 1.0)
        level_ND = np.rint(share_ND * (NUM_LEVELS - 1)).astype(np.int64)
        assert level_ND.min() >= 0 and level_ND.max() < NUM_LEVELS, "a row lies outside of its range"
        flat = (level_ND + np.arange(num_dims) * NUM_LEVELS).ravel()
        counts_DL = np.bincount(flat, minlength=num_dims * NUM_LEVELS).reshape(num_dims, NUM_LEVELS)
        mean_D = rows_ND.mean(axis=0)
        return cls(num_rows, mean_D, ((rows_ND - mean_D) ** 2).sum(axis=0), counts_DL)

    def __add__(self, other: VectorCounts) -> VectorCounts:
        # Chan, Golub and LeVeque 1983: combining means and sums of squared deviations of two groups.
        total = self.num_rows + other.num_rows
        delta_D = other.mean_D - self.mean_D
        return VectorCounts(
            total,
            self.mean_D + delta_D * (other.num_rows / total),
            self.squares_D + other.squares_D + delta_D**2 * (self.num_rows * other.num_rows / total),
            self.counts_DL + other.counts_DL,
        )

    def metrics(self, within: Range) -> dict[str, np.ndarray]:
        """Return each figure, as `vector_figures` does; quantiles are levels, so off by half a level at most."""
        levels_DL, below_DL = within.levels_DL(), np.cumsum(self.counts_DL, axis=1)
        rows_D = np.arange(len(levels_DL))
        return {
            "min": within.low_D,
            "max": within.high_D,
            "mean": self.mean_D,
            "std": np.sqrt(self.squares_D / self.num_rows),
            "count": np.array([self.num_rows], np.int64),
            # The smallest level that at least this share of the rows does not exceed.
            **{n: levels_DL[rows_D, (below_DL >= q * self.num_rows).argmax(axis=1)] for n, q in QUANTILES.items()},
        }
