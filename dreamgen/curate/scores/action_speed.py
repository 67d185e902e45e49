"""How the labeled actions' changes from frame to frame compare with the largest in the demonstrations.

The demonstrations' value counts as no less than three times what errors of labels add to it, so that dimensions in
which they hardly move do not decide.

Unit: ratio. Cost: under 1 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    from dreamgen.data.clip_context import ClipContext


def _measure(clip: ClipContext) -> float | None:
    from dreamgen.data.demonstration_motion import change_over_demonstrations

    return change_over_demonstrations(clip.action_TA, clip.demonstration_motion, 1, clip.action_error_A)


SCORE = Score(
    name="action_speed",
    summary="largest change of an action over the largest in the demonstrations",
    threshold=Threshold(
        setting="max_action_speed", default=None, low=0.0,
        help="largest change of an action over the largest in the demonstrations, above which it is rejected",
    ),
    rejection="actions are faster than any demonstration: {value:.1f} times > {limit:g}",
    measure=_measure,
    reads_demonstrations=True,
    version=2,
)  # fmt: skip
