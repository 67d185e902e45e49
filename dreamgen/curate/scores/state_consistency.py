"""Whether the labeled states follow from the labeled actions as they do in the demonstrations.

Unit: ratio. Cost: under 1 ms.

Axes: T frames, A action, S state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.data.clip_context import ClipContext
    from dreamgen.data.demonstration_motion import DemonstrationMotion


def state_consistency(
    state_TS: np.ndarray, action_TA: np.ndarray, motion: DemonstrationMotion, error_S: np.ndarray | float = 0.0
) -> float | None:
    """Predict each change of the state from state and action, linearly as fitted on the demonstrations.

    The fit needs to know neither units nor whether actions are absolute or relative. The demonstrations' error counts
    as no less than that of labels: a dimension that hardly moves in them is predicted far better than it is labeled.

    Args:
        state_TS: In the robot's units.
        action_TA: Of the same frames.
        motion: Of the demonstrations.
        error_S: Mean absolute error of labeled states; 0 for recorded ones.

    Returns:
        Root mean square error over that of the demonstrations, the median over dimensions; None without states there.
    """
    import numpy as np

    from dreamgen.data.demonstration_motion import step_features

    if motion.weights_FS is None or motion.residual_S is None or len(state_TS) < 2:
        return None
    state_TS, action_TA = state_TS.astype(np.float64), action_TA.astype(np.float64)
    error_TS = np.diff(state_TS, axis=0) - step_features(state_TS, action_TA) @ motion.weights_FS
    usual_S = np.maximum(motion.residual_S, error_S)
    moving = usual_S > 0
    ratio_S = np.sqrt((error_TS**2).mean(axis=0))[moving] / usual_S[moving]
    return float(np.median(ratio_S)) if len(ratio_S) else None


def _measure(clip: ClipContext) -> float | None:
    motion, action_TA, state_TS = clip.demonstration_motion, clip.action_TA, clip.state_TS
    if motion is None or action_TA is None or state_TS is None or motion.weights_FS is None:
        return None
    if action_TA.shape[1] + state_TS.shape[1] + 1 != len(motion.weights_FS):
        return None
    return state_consistency(state_TS, action_TA, motion, clip.state_error_S)


SCORE = Score(
    name="state_consistency",
    summary="error of states predicted from the actions, over that in the demonstrations",
    threshold=Threshold(
        setting="max_state_consistency", default=None, low=0.0,
        help="error of states predicted from the actions, over that in the demonstrations, above which it is rejected",
    ),
    rejection="states do not follow from the actions: error {value:.1f} times that of the demonstrations > {limit:g}",
    measure=_measure,
    reads_demonstrations=True,
    version=2,
)  # fmt: skip
