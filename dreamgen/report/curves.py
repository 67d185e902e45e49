"""The predicted actions of a clip, small enough for ten thousand of them on a page.

The dimensions that move most are kept. Each is rounded to 255 steps of its range, and written as the differences
between neighbors, which compress well.

Axes: T frames, A action, P points of a curve, S dimensions shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.data.trajectory import ACTION, ACTION_STD, read_columns, vector_column
from dreamgen.errors import UserError

MAX_CURVES = 8
NUM_STEPS = 255
MIN_SPREAD = 1e-6  # below it, a dimension does not move
MIN_POINTS, MAX_POINTS = 32, 240
STD_EVERY = 4  # uncertainty has a quarter of the points
TOTAL_POINTS = 6_000_000  # of all curves of a page: about 6 MB for a robot's motion, 12 MB for noise


def num_points(num_clips: int) -> int:
    """Return how many points a curve of the page may have, so that the page stays small enough to open."""
    return int(np.clip(TOTAL_POINTS // (max(num_clips, 1) * MAX_CURVES), MIN_POINTS, MAX_POINTS))


def read_curves(label: Path, max_points: int) -> dict[str, Any] | None:
    """Read the curves of one clip.

    Args:
        label: Its label file.
        max_points: Points of a curve.

    Returns:
        None without a label. Otherwise: `rows` of the label; `dims`, the dimensions shown; for each of these `low` and
        `high`, its range, and `steps`, the rounded values as differences. With uncertainty also `std_high`, the largest
        standard deviation, and `std_steps`, those of fewer points in `NUM_STEPS` steps from 0.

    Raises:
        UserError: if it is not a table of actions.
    """
    if not label.exists():
        return None
    table = read_columns(label, [ACTION, ACTION_STD])
    if ACTION not in table.column_names or not len(table):
        raise UserError(f"{label} has no actions", actual=f"{len(table)} rows of {', '.join(table.column_names)}")
    action_TA = vector_column(table, ACTION, None, label)
    has_std = ACTION_STD in table.column_names
    std_TA = vector_column(table, ACTION_STD, action_TA.shape[1], label) if has_std else None
    return curves_of(action_TA, std_TA, max_points)


def curves_of(action_TA: np.ndarray, std_TA: np.ndarray | None, max_points: int) -> dict[str, Any]:
    """Return the curves of a clip, as `read_curves` does."""
    num_rows, spread_A = len(action_TA), np.ptp(action_TA, axis=0)
    moving = [dim for dim in np.argsort(-spread_A, kind="stable") if spread_A[dim] > MIN_SPREAD]
    dims = sorted(int(dim) for dim in moving[:MAX_CURVES])
    shown_PS = action_TA[_even(num_rows, max_points)][:, dims]
    low_S, high_S = action_TA[:, dims].min(axis=0), action_TA[:, dims].max(axis=0)
    steps_PS = np.round((shown_PS - low_S) / (high_S - low_S) * NUM_STEPS).astype(int)
    curves = {"rows": num_rows, "dims": dims, "low": _rounded(low_S), "high": _rounded(high_S),
              "steps": np.diff(steps_PS, axis=0, prepend=0).T.tolist()}  # fmt: skip
    if std_TA is not None and dims:
        std_PS = np.maximum(std_TA[_even(num_rows, max(max_points // STD_EVERY, 2))][:, dims], 0)
        highest_S = np.maximum(std_PS.max(axis=0), 1e-12)
        std_steps_PS = np.round(std_PS / highest_S * NUM_STEPS).astype(int)
        curves |= {"std_high": _rounded(highest_S), "std_steps": std_steps_PS.T.tolist()}
    return curves


def _even(num_rows: int, max_points: int) -> np.ndarray:
    """Return rows that are evenly spread over all, the first and the last among them."""
    return np.round(np.linspace(0, num_rows - 1, min(num_rows, max_points))).astype(np.int64)


def _rounded(values_S: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values_S.tolist()]
