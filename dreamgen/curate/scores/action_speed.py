"""How the labeled actions' changes from frame to frame compare with the largest in the demonstrations.

Unit: ratio. Cost: under 1 ms.

Axes: T frames, A action.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.data.clip_context import ClipContext


def action_speed(action_TA: np.ndarray, largest_A: np.ndarray) -> float:
    """Return the largest ratio of a change to the largest one of its dimension in the demonstrations.

    Args:
        action_TA: In the robot's units.
        largest_A: Of the demonstrations; dimensions that never change there are left out.
    """
    import numpy as np

    found_A = np.abs(np.diff(action_TA.astype(np.float64), n=1, axis=0)).max(axis=0, initial=0.0)
    moving = largest_A > 0
    return float((found_A[moving] / largest_A[moving]).max(initial=0.0))


def _measure(clip: ClipContext) -> float | None:
    motion, action_TA = clip.demonstration_motion, clip.action_TA
    if motion is None or action_TA is None or action_TA.shape[1] != len(motion.speed_A):
        return None
    return action_speed(action_TA, motion.speed_A)


SCORE = Score(
    name="action_speed",
    summary="largest change of an action over the largest in the demonstrations",
    threshold=Threshold(
        setting="max_action_speed", default=None, low=0.0,
        help="largest change of an action over the largest in the demonstrations, above which it is rejected",
    ),
    rejection="actions are faster than any demonstration: {value:.1f} times > {limit:g}",
    measure=_measure,
)  # fmt: skip
