"""Figures of features over all rows, gathered block by block and process by process.

Axes: D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Range:
    """Lowest, highest and sum of each dimension, float64, over `count` rows."""

    low_D: np.ndarray
    high_D: np.ndarray
    sum_D: np.ndarray
    count: int

    def joined(self, other: Range) -> Range:
        """Return the figures of both groups of rows."""
        return Range(
            np.minimum(self.low_D, other.low_D), np.maximum(self.high_D, other.high_D), self.sum_D + other.sum_D,
            self.count + other.count,
        )  # fmt: skip


@dataclass
class Ranges:
    """Feature -> figures; those of rows with other lengths are left out, as a finding says."""

    by_feature: dict[str, Range] = field(default_factory=dict)

    def add(self, name: str, found: Range) -> None:
        """Take in rows of a feature."""
        before = self.by_feature.get(name)
        if before is None or before.low_D.shape == found.low_D.shape:
            self.by_feature[name] = found if before is None else before.joined(found)

    def merge(self, other: Ranges) -> None:
        """Take in what another process found."""
        for name, found in other.by_feature.items():
            self.add(name, found)
