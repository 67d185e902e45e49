"""Which of the statistics that a source records are kept: complete ones that agree with the rows.

A trainer normalizes with them, and quantiles are not one number: LeRobot estimates those of an episode from a histogram
and averages them over the episodes, where the exact ones of all rows may be far away. A policy that was trained with
the source's has to find the same in the converted dataset.

Axes: N rows, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamgen.data.lerobot.files import read_json_object
from dreamgen.data.lerobot.findings import FatalFindings
from dreamgen.data.lerobot.schema import STATS
from dreamgen.data.lerobot.statistics import QUANTILES, Statistics
from export.convert.source import SourceDataset

MOMENTS = ("min", "max", "mean", "std")
NEEDED = {*MOMENTS, "count"}
# How far they may be from the rows: `check` takes no more for a difference.
OF_SPAN, OF_VALUE, SMALLEST = 1e-3, 1e-5, 1e-9


def is_usable(recorded: Mapping[str, Any], needed: set[str] = NEEDED) -> bool:
    """Return whether recorded statistics of a feature are complete and numbers; others are computed again."""
    if not set(recorded) >= needed:
        return False
    try:
        arrays = as_arrays(recorded)
    except (ValueError, TypeError, OverflowError):
        return False
    shapes = {values.shape for stat, values in arrays.items() if stat != "count"}
    is_counted = "count" not in arrays or arrays["count"].shape == (1,)
    return len(shapes) == 1 and is_counted and all(np.isfinite(values).all() for values in arrays.values())


def as_arrays(recorded: Mapping[str, Any]) -> Statistics:
    """Return the statistics of a feature as arrays: `count` int64, the others float64."""
    arrays = {stat: np.array(values, np.float64) for stat, values in recorded.items()}
    return arrays | {stat: np.rint(arrays[stat]).astype(np.int64) for stat in ("count",) if stat in arrays}


def agrees(recorded: Statistics, rows_ND: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether usable statistics can be those of rows of a feature.

    Args:
        recorded: One value for each entry of the last axis.
        rows_ND: At least one row, float64.
        shape: Of the feature.
    """
    last_axis = shape[-1] if math.prod(shape) == rows_ND.shape[1] else rows_ND.shape[1]
    flat_ND = rows_ND.reshape(-1, last_axis)
    moments = {"min": flat_ND.min(axis=0), "max": flat_ND.max(axis=0), "mean": flat_ND.mean(axis=0),
               "std": flat_ND.std(axis=0), "count": np.array([len(rows_ND)])}  # fmt: skip
    return _agree(recorded, moments)


def read_whole(dataset: SourceDataset) -> dict[str, Statistics]:
    """Return what the source records of all of its rows, by numeric feature: nothing where its file is damaged."""
    ignored = FatalFindings(dataset.root)  # they are never raised
    recorded = read_json_object(dataset.root, STATS, ignored) or {}
    found = {name: recorded.get(name) for name in dataset.vectors}
    return {
        name: as_arrays(own)
        for name, own in found.items()
        if isinstance(own, dict) and is_usable(own, set(MOMENTS))  # GR00T's have no count
    }


def whole_statistics(computed: Statistics, merged: Statistics, recorded: Statistics) -> Statistics:
    """Choose the statistics of a column of the whole dataset.

    Args:
        computed: Of all rows; quantiles are exact.
        merged: Kept ones of the episodes, merged as LeRobot does; empty, or of some episodes only, if not all have any.
        recorded: Of the whole dataset in the source; empty if it has none.

    Returns:
        `recorded` where it agrees with the rows. What it lacks is `merged`, if that has the quantiles that it has, and
        else `computed`.
    """
    recorded = recorded if _agree(recorded, computed) else {}
    is_merged = _agree(merged, computed) and set(merged) >= set(QUANTILES)
    both = set(QUANTILES).intersection(merged, recorded)
    if is_merged and all(np.allclose(merged[stat], recorded[stat], rtol=1e-6) for stat in both):
        computed = computed | merged
    return computed | {stat: values for stat, values in recorded.items() if stat in computed}


def _agree(recorded: Statistics, computed: Statistics) -> bool:
    if not set(recorded) >= set(MOMENTS) or recorded["min"].shape != computed["min"].shape:
        return False
    if "count" in recorded and recorded["count"].item() != computed["count"].item():
        return False
    span_D = computed["max"] - computed["min"]
    off = [np.abs(recorded[stat] - computed[stat]) > OF_SPAN * span_D + OF_VALUE * np.abs(computed[stat]) + SMALLEST
           for stat in MOMENTS]  # fmt: skip
    ordered = np.stack([recorded[stat] for stat in ("min", *QUANTILES, "max") if stat in recorded])
    return not np.any(off) and bool(np.all(np.diff(ordered, axis=0) >= -OF_SPAN * span_D - SMALLEST))
