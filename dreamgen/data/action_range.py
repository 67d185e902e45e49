"""The range of actions in the demonstrations, and how far a label must leave it to be outside.

Axes: T frames, A action.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from dreamgen.data.trajectory import read_trajectory
from dreamgen.errors import UserError
from dreamgen.run.files import visible_files

MARGIN = 0.1  # of a dimension's range, to both sides: few demonstrations do not reach all that a robot does
LABEL_ERRORS = 3.0  # times the mean absolute error, within which 98 % of normal errors are


def share_outside(
    action_TA: np.ndarray, low_A: np.ndarray, high_A: np.ndarray, error_A: np.ndarray | float = 0.0
) -> float:
    """Return the share of values, over frames and dimensions, that are outside the range by more than a margin.

    The margin of a dimension is `MARGIN` of its range, or more where that leaves less than `LABEL_ERRORS` errors of a
    label to each side of the range's middle: where the demonstrations hardly move, or not at all, errors of labels
    alone are larger than the range.

    Args:
        action_TA: In the robot's units.
        low_A: Least value of each dimension in the demonstrations.
        high_A: Greatest value.
        error_A: Mean absolute error of labels; 0 for recorded actions.
    """
    range_A = high_A - low_A
    margin_A = np.maximum(MARGIN * range_A, LABEL_ERRORS * np.asarray(error_A) - range_A / 2) + 1e-6
    return float(((action_TA < low_A - margin_A) | (action_TA > high_A + margin_A)).mean())


def demonstrated_range(train: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the least and the greatest value of each dimension, float32; None if no demonstration has actions.

    Args:
        train: The training set.
    """
    folder = train / "trajectories"
    return _range_of(folder, folder.stat().st_mtime_ns) if folder.is_dir() else None


@lru_cache(maxsize=4)
def _range_of(folder: Path, _: int) -> tuple[np.ndarray, np.ndarray] | None:
    low_A = high_A = None
    for path in visible_files(folder, "*.parquet"):
        try:
            action_TA = read_trajectory(path, include_state=False).action_TA
        except UserError:
            continue
        if action_TA is None or not len(action_TA) or (low_A is not None and action_TA.shape[1] != len(low_A)):
            continue
        lowest_A, highest_A = action_TA.min(axis=0), action_TA.max(axis=0)
        low_A = lowest_A if low_A is None else np.minimum(low_A, lowest_A)
        high_A = highest_A if high_A is None else np.maximum(high_A, highest_A)
    return None if low_A is None or high_A is None else (low_A, high_A)
