"""What the known state of a clip's first frame says about its actions.

Binary actions are left to the frames: the state of a first frame says too little of when a gripper closes. It was
tried; on a robot that closes its gripper early in each clip, R^2 fell from 0.89 to 0.75.

Axes: N training frames, S state, A action.
"""

from __future__ import annotations

import numpy as np

from dreamgen.models.idm.vector_stats import VectorStats

MIN_FOLLOWED = 0.5  # share of an action's variance that the state of the same name must explain


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
