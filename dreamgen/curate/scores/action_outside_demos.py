"""How many of a clip's actions no demonstration comes near.

The share of values, over frames and dimensions, that are beyond the demonstrations' range in their dimension by more
than a tenth of it. A label whose values leave what the robot was seen to do is a label of pixels that look like no
demonstration. Cost: the label file of the clip; the range is read once in each process.

Real clips against the range of other demonstrations of the same robot, at most: 0.15 with one demonstration, 0.07 with
two, 0.07 with four (93 frames of GR1, 44 dimensions); 0.08, 0.08 and 0.06 (25 frames of Meta-World, 4 dimensions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    from dreamgen.data.clip_context import ClipContext


def measure(clip: ClipContext) -> float | None:
    """Return the share for one clip; None without labels, or without demonstrated actions of as many dimensions."""
    from dreamgen.data.action_range import demonstrated_range, share_outside

    action_TA, known = clip.action_TA, demonstrated_range(clip.run.train)
    if action_TA is None or known is None or action_TA.shape[1] != len(known[0]):
        return None
    return share_outside(action_TA, *known)


SCORE = Score(
    name="action_outside_demos",
    summary="share of action values beyond the demonstrations' range by more than a tenth of it",
    threshold=Threshold(
        setting="max_action_outside_demos",
        default=0.2,
        help="share of action values outside the demonstrations' range above which a clip is rejected",
        low=0.0,
        high=1.0,
    ),
    rejection="actions unlike the demonstrations': {value:.0%} of the values are outside their range > {limit:.0%}",
    measure=measure,
)
