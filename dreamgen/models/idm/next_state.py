"""Where an action takes the robot: the next state as a linear function of state and action, fitted to demonstrations.

It holds for actions of any kind: targets that the robot approaches, and changes that add up.

Axes: T frames, S state, A action, X state and action and one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RIDGE = 1e-3  # of standardized inputs; joints that move together share the effect of an action


def fit_next_state(states: Sequence[np.ndarray], actions: Sequence[np.ndarray]) -> np.ndarray:
    """Fit the change of the state in one frame by ridge regression.

    Args:
        states: state_TS of each episode.
        actions: action_TA of each.

    Returns:
        change_XS: `[state, action, 1] @ change_XS` is next state - state.
    """
    pairs = list(zip(states, actions, strict=True))
    inputs_TX = np.concatenate([np.concatenate([s[:-1], a[:-1]], axis=1) for s, a in pairs]).astype(np.float64)
    change_TS = np.concatenate([np.diff(s, axis=0) for s in states]).astype(np.float64)
    mean_X, std_X = inputs_TX.mean(axis=0), inputs_TX.std(axis=0)
    std_X[std_X < 1e-9] = np.inf  # what never changed has no effect
    scaled_TX = (inputs_TX - mean_X) / std_X
    ridge = RIDGE * len(scaled_TX) * np.eye(scaled_TX.shape[1])
    weight_XS = np.linalg.solve(scaled_TX.T @ scaled_TX + ridge, scaled_TX.T @ (change_TS - change_TS.mean(axis=0)))
    weight_XS /= std_X[:, None]
    return np.concatenate([weight_XS, (change_TS.mean(axis=0) - mean_X @ weight_XS)[None]])


def integrate(change_XS: np.ndarray, first_S: np.ndarray, action_TA: np.ndarray) -> np.ndarray:
    """Return state_TS, float32: the first state, and where each action but the last takes it."""
    state_S = np.asarray(first_S, np.float64)
    states = [state_S]
    for action_A in action_TA[:-1]:
        state_S = state_S + np.concatenate([state_S, action_A, [1.0]]) @ change_XS
        states.append(state_S)
    return np.stack(states).astype(np.float32)
