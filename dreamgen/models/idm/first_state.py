"""What the known state of a clip's first frame says about its actions.

Axes: N training frames, T frames of a clip, S state, A action, X state and one, B binary outputs of the network.
"""

from __future__ import annotations

import numpy as np

from dreamgen.models.idm.vector_stats import VectorStats

RIDGE, NEWTON_STEPS = 1.0, 20
MIN_FOLLOWED = 0.5  # share of an action's variance that the state of the same name must explain
MAX_LOGIT, MAX_VOTE_LOGIT = 4.0, 4.0  # of the state's and of the frames' vote, so that neither can overrule any other
MIN_STD = 1e-9


def followed_names(
    actions: VectorStats, states: VectorStats, action_NA: np.ndarray, state_NS: np.ndarray
) -> tuple[str, ...]:
    """Return the names of actions that are targets for the state of the same name, and not changes of it.

    Args:
        actions: Statistics of the actions.
        states: Statistics of the states.
        action_NA: Actions of all demonstrations.
        state_NS: States at the same frames.
    """
    found = []
    for a, name in enumerate(actions.names):
        if name in states.names and actions.kinds[a] == states.kinds[states.names.index(name)] == "varied":
            action_N = action_NA[:, a].astype(np.float64)
            gap_N = action_N - state_NS[:, states.names.index(name)]
            if gap_N.var() <= (1 - MIN_FOLLOWED) * action_N.var():
                found.append(name)
    return tuple(found)


def fit_votes(states: VectorStats, state_NS: np.ndarray, vote_NB: np.ndarray) -> np.ndarray:
    """Fit how a state changes the log-odds of binary actions, a linear function, by logistic regression.

    Args:
        states: Statistics of the states.
        state_NS: States of all demonstrations.
        vote_NB: 0 or 1, the binary actions at the same frames.

    Returns:
        logit_XB: `[state, 1] @ logit_XB` is added to log-odds that know no state. Those of the mean are not in it, as
            they would count twice.
    """
    mean_S, std_S = np.asarray(states.mean), np.asarray(states.std)
    scale_S = np.where(std_S > MIN_STD, std_S, np.inf)  # what never changed says nothing
    input_NX = np.concatenate([(state_NS - mean_S) / scale_S, np.ones((len(state_NS), 1))], axis=1)
    weight_XB = np.zeros((input_NX.shape[1], vote_NB.shape[1]))
    penalty = RIDGE * np.eye(input_NX.shape[1])
    for b in range(vote_NB.shape[1]):
        for _ in range(NEWTON_STEPS):
            share_N = 1 / (1 + np.exp(-(input_NX @ weight_XB[:, b]).clip(-30, 30)))
            curvature = (input_NX * (share_N * (1 - share_N))[:, None]).T @ input_NX + penalty
            slope = input_NX.T @ (share_N - vote_NB[:, b]) + penalty @ weight_XB[:, b]
            weight_XB[:, b] -= np.linalg.solve(curvature, slope)
    mean_B = vote_NB.mean(axis=0).clip(1e-3, 1 - 1e-3)
    weight_XB[-1] -= np.log(mean_B / (1 - mean_B))
    weight_XB[:-1] /= scale_S[:, None]
    weight_XB[-1] -= mean_S @ weight_XB[:-1]
    return weight_XB


def voted(share_TB: np.ndarray, logit_XB: np.ndarray, first_S: np.ndarray, left_T1: np.ndarray) -> np.ndarray:
    """Return probabilities of a clip's binary actions that also know its first state: their log-odds add up.

    Args:
        share_TB: Probabilities from the frames.
        logit_XB: From `fit_votes`.
        first_S: The state of the first frame.
        left_T1: How much the first state still counts at each frame, 0 to 1.
    """
    edge = 1 / (1 + np.exp(MAX_VOTE_LOGIT))
    share_TB = share_TB.clip(edge, 1 - edge)
    known_B = (np.concatenate([first_S, [1.0]]) @ logit_XB).clip(-MAX_LOGIT, MAX_LOGIT)
    return 1 / (1 + (1 - share_TB) / share_TB * np.exp(-left_T1 * known_B))
