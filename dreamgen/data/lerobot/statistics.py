"""Statistics that trainers normalize with, counted in any order by any number of workers, and merged.

Of a feature with several axes, LeRobot keeps one value for each entry of the last axis, over all rows and the other
axes: 4 of a 4 x 4 matrix.

Axes: N rows, D dimensions (in a dataset, those of all columns side by side), L levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.run.files import atomic_file

type Statistics = dict[str, np.ndarray]  # of one feature: "mean" -> values, and so on

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NUM_LEVELS = 5001  # LeRobot counts in 5,000 bins
EPISODES_PER_COUNT = 50
# GR00T slices every statistic that it finds by the modality, so `count`, of length 1, must not be among them.
GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


def vector_statistics(rows_ND: np.ndarray, last_axis: int | None = None) -> Statistics:
    """Compute exact statistics of a few rows.

    Args:
        rows_ND: At least one row; shape (N,) means one dimension.
        last_axis: Length of the feature's last axis, where it has several; D if None.

    Returns:
        min, max, mean, std and `QUANTILES`, float64 of shape (D,) or (last_axis,), and count, the number of rows, int64
        of shape (1,).
    """
    num_rows = len(rows_ND)
    rows_ND = rows_ND.reshape(num_rows, -1).astype(np.float64)
    rows_ND = rows_ND.reshape(-1, last_axis or rows_ND.shape[1])
    return {
        "min": rows_ND.min(axis=0),
        "max": rows_ND.max(axis=0),
        "mean": rows_ND.mean(axis=0),
        "std": rows_ND.std(axis=0),
        "count": np.array([num_rows], np.int64),
        **dict(zip(QUANTILES, np.quantile(rows_ND, list(QUANTILES.values()), axis=0), strict=True)),
    }


def over_last_axis(stat: str, values: np.ndarray, last_axis: int) -> np.ndarray:
    """Reduce min, max or mean of every number of a feature (..., D) to those of its last axis (..., last_axis)."""
    grouped = values.reshape(*values.shape[:-1], -1, last_axis)
    return {"min": np.min, "max": np.max, "mean": np.mean}[stat](grouped, axis=-2)


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of each dimension, known before rows are counted into levels."""

    low_D: np.ndarray
    high_D: np.ndarray

    def __or__(self, other: Range) -> Range:
        return Range(np.minimum(self.low_D, other.low_D), np.maximum(self.high_D, other.high_D))

    def levels_DL(self) -> np.ndarray:
        """Return the values that rows are rounded to: `NUM_LEVELS`, evenly spaced, including both ends."""
        share_L = np.arange(NUM_LEVELS) / (NUM_LEVELS - 1)
        return self.low_D[:, None] * (1 - share_L) + self.high_D[:, None] * share_L

    def shared(self, last_axis: int) -> Range:
        """Return the range with which all dimensions of an entry of the last axis are counted into the same levels."""
        times = len(self.low_D) // last_axis
        low, high = (over_last_axis(*of, last_axis) for of in (("min", self.low_D), ("max", self.high_D)))
        return Range(np.tile(low, times), np.tile(high, times))

    def __getitem__(self, which: slice) -> Range:
        return Range(self.low_D[which], self.high_D[which])


@dataclass(frozen=True)
class VectorCounts:
    """Moments of rows, and how many rows fall on each level of a given range.

    Counts of the same range add up. They are whole numbers, so the quantiles do not depend on how the rows were split
    or in which order the parts are added.

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

    def __getitem__(self, which: slice) -> VectorCounts:
        return VectorCounts(self.num_rows, self.mean_D[which], self.squares_D[which], self.counts_DL[which])

    def metrics(self, within: Range) -> Statistics:
        """Return statistics as `vector_statistics` does; quantiles are levels, so off by half a level at most."""
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


@dataclass(frozen=True)
class Columns:
    """The numeric columns of a dataset, side by side.

    Args:
        widths: Column -> its number of dimensions, in the order of the rows.
        within: Range of each dimension over the whole dataset.
        last_axes: Column -> length of its last axis, of those that have several axes.
    """

    widths: dict[str, int]
    within: Range
    last_axes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ranges: Mapping[str, Range], shapes: Mapping[str, Sequence[int]] | None = None) -> Columns:
        """Put the ranges of columns side by side; `shapes` has those of columns with several axes, among others."""
        shapes = shapes or {}
        last_axes = {name: shapes[name][-1] for name in ranges if len(shapes.get(name, ())) > 1}
        ranges = {name: own.shared(last_axes[name]) if name in last_axes else own for name, own in ranges.items()}
        low_D, high_D = (np.concatenate([getattr(own, end) for own in ranges.values()]) for end in ("low_D", "high_D"))
        return cls({name: len(own.low_D) for name, own in ranges.items()}, Range(low_D, high_D), last_axes)

    def statistics(self, rows_ND: np.ndarray) -> dict[str, Statistics]:
        """Return exact statistics of a few rows by column."""
        flat = self._split(vector_statistics(rows_ND))
        return flat | {
            name: vector_statistics(rows_ND[:, self._slices[name]], last) for name, last in self.last_axes.items()
        }

    def metrics(self, counts: VectorCounts) -> dict[str, Statistics]:
        """Return the statistics of rows that were counted, by column."""
        found = self._split(counts.metrics(self.within))
        for name, last in self.last_axes.items():
            own, within = counts[self._slices[name]], self.within[self._slices[name]]
            parts = [own[start : start + last] for start in range(0, self.widths[name], last)]
            total = reduce(VectorCounts.__add__, parts)
            found[name] = total.metrics(within[:last]) | {"count": found[name]["count"]}
        return found

    @cached_property
    def _slices(self) -> dict[str, slice]:
        bounds = np.cumsum([0, *self.widths.values()]).tolist()
        return dict(zip(self.widths, map(slice, bounds[:-1], bounds[1:]), strict=True))

    def _split(self, statistics: Statistics) -> dict[str, Statistics]:
        return {
            name: {stat: v if stat == "count" else v[which] for stat, v in statistics.items()}
            for name, which in self._slices.items()
        }


class PartStatistics:
    """Counts the rows of a few episodes while they are written."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._rows: list[np.ndarray] = []
        self._counts: VectorCounts | None = None

    def add(self, rows_ND: np.ndarray) -> dict[str, Statistics]:
        """Count an episode's rows, all columns side by side, and return the episode's own statistics by column."""
        self._rows.append(rows_ND)
        if len(self._rows) == EPISODES_PER_COUNT:
            self._count()
        return self._columns.statistics(rows_ND)

    def save(self, path: Path) -> None:
        """Write the counts atomically; at least one episode was added."""
        self._count()
        assert self._counts is not None, "no episode was added"
        with atomic_file(path) as temporary:
            np.savez(
                temporary, num_rows=self._counts.num_rows, mean_D=self._counts.mean_D, squares_D=self._counts.squares_D,
                counts_DL=self._counts.counts_DL.astype(np.uint32),
            )  # fmt: skip

    def _count(self) -> None:
        if self._rows:
            counts = VectorCounts.of(np.concatenate(self._rows), self._columns.within)
            self._counts = counts if self._counts is None else self._counts + counts
            self._rows = []


def merge_parts(parts: Iterable[Path], columns: Columns) -> dict[str, Statistics]:
    """Merge what `PartStatistics.save` wrote into the statistics of the whole dataset by column.

    Args:
        parts: At least one, in the order of the episodes.
        columns: Of the whole dataset.
    """
    total: VectorCounts | None = None
    for path in parts:
        with np.load(path) as part:
            counts_DL = part["counts_DL"].astype(np.int64)
            counts = VectorCounts(int(part["num_rows"]), part["mean_D"], part["squares_D"], counts_DL)
        total = counts if total is None else total + counts
    assert total is not None, "no part was written"
    return columns.metrics(total)


def merge_statistics(one: Statistics, two: Statistics) -> Statistics:
    """Merge the recorded statistics of two groups of rows or images as LeRobot does.

    Args:
        one: At least min, max, mean, std and count (shape (1,)).
        two: The same. A quantile that only one of them has is dropped.

    Returns:
        Exact statistics, except for quantiles, which are means weighted by the counts.
    """
    total = one["count"] + two["count"]
    share = float((two["count"] / total).item())
    delta = two["mean"] - one["mean"]
    variance = one["std"] ** 2 * (1 - share) + two["std"] ** 2 * share + delta**2 * share * (1 - share)
    averaged = {stat: values + (two[stat] - values) * share for stat, values in one.items() if stat in two}
    return averaged | {
        "min": np.minimum(one["min"], two["min"]),
        "max": np.maximum(one["max"], two["max"]),
        "std": np.sqrt(variance),
        "count": total,
    }


def as_lists(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, list[Any]]]:
    """Return statistics by feature as JSON holds them."""
    return {name: {stat: values.tolist() for stat, values in own.items()} for name, own in statistics.items()}
