"""What the demonstrations' actions and states look like in motion: the reference that labels are compared with.

Axes: T frames, A action, S state, F features of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dreamgen.data.action_range import LABEL_ERRORS
from dreamgen.data.trajectory import Trajectory, read_trajectory
from dreamgen.run.files import visible_files

RIDGE = 1e-3  # of each feature's mean square: dimensions that depend on each other have no unique weights
LEAST_ROWS = 4  # that a jerk needs


@dataclass(frozen=True)
class DemonstrationMotion:
    """Largest changes of actions, and how states follow from them.

    Args:
        speed_A: Largest change of each action dimension from one frame to the next.
        jerk_A: Largest third difference.
        weights_FS: From `step_features` to the change of the state; None without states.
        residual_S: Root mean square of what the weights leave unexplained; None without states.
    """

    speed_A: np.ndarray
    jerk_A: np.ndarray
    weights_FS: np.ndarray | None
    residual_S: np.ndarray | None


def demonstration_motion(train: Path) -> DemonstrationMotion | None:
    """Read the trajectories of a training set, once for each process.

    Returns:
        None for a training set without actions, and without a training set.
    """
    folder = train / "trajectories"
    return _read(folder, folder.stat().st_mtime_ns) if folder.is_dir() else None


def change_over_demonstrations(
    action_TA: np.ndarray | None, motion: DemonstrationMotion | None, order: int, error_A: np.ndarray | float = 0.0
) -> float | None:
    """Return the largest ratio of an action's difference to the largest one of its dimension in the demonstrations.

    The largest one counts as no less than `LABEL_ERRORS` times what independent errors of labels add to a difference:
    their mean absolute error times the root of the sum of squares of the binomial coefficients.

    Args:
        action_TA: In the robot's units; None for a clip without labels.
        motion: Of the demonstrations; dimensions that never change there and whose labels have no error are left out.
        order: 1 for changes from frame to frame, 3 for third differences.
        error_A: Mean absolute error of labels; 0 for recorded actions.

    Returns:
        The ratio; None without labels, or without demonstrated actions of as many dimensions.
    """
    if motion is None or action_TA is None or action_TA.shape[1] != len(motion.speed_A):
        return None
    noise_A = np.asarray(error_A) * math.sqrt(math.comb(2 * order, order))
    largest_A = np.maximum({1: motion.speed_A, 3: motion.jerk_A}[order], LABEL_ERRORS * noise_A)
    found_A = np.abs(np.diff(action_TA.astype(np.float64), n=order, axis=0)).max(axis=0, initial=0.0)
    moving = largest_A > 0
    return float((found_A[moving] / largest_A[moving]).max(initial=0.0))


def step_features(state_TS: np.ndarray, action_TA: np.ndarray) -> np.ndarray:
    """Return features_TF of each step but the last: state, action and 1."""
    return np.column_stack([state_TS[:-1], action_TA[:-1], np.ones(len(state_TS) - 1)])


@lru_cache(maxsize=4)
def _read(folder: Path, _: int) -> DemonstrationMotion | None:
    trajectories = [read_trajectory(path) for path in visible_files(folder, "*.parquet")]
    usable = [t for t in trajectories if t.action_TA is not None and t.num_rows >= LEAST_ROWS]
    if not usable:
        return None
    actions = [t.action_TA.astype(np.float64) for t in usable if t.action_TA is not None]
    return DemonstrationMotion(_largest(actions, 1), _largest(actions, 3), *_fit(usable))


def _largest(actions: list[np.ndarray], order: int) -> np.ndarray:
    return np.max([np.abs(np.diff(action_TA, n=order, axis=0)).max(axis=0) for action_TA in actions], axis=0)


def _fit(trajectories: list[Trajectory]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Fit the change of the state by ridge regression."""
    pairs = [(t.state_TS.astype(np.float64), t.action_TA.astype(np.float64)) for t in trajectories
             if t.state_TS is not None and t.action_TA is not None]  # fmt: skip
    if not pairs:
        return None, None
    features_NF = np.concatenate([step_features(*pair) for pair in pairs])
    change_NS = np.concatenate([np.diff(state_TS, axis=0) for state_TS, _ in pairs])
    square_FF = features_NF.T @ features_NF
    square_FF += np.diag(np.diag(square_FF)) * RIDGE + np.eye(len(square_FF)) * 1e-9
    weights_FS = np.linalg.solve(square_FF, features_NF.T @ change_NS)
    residual_NS = change_NS - features_NF @ weights_FS
    return weights_FS, np.sqrt((residual_NS**2).mean(axis=0))
