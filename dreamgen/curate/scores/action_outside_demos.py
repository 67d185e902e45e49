"""How many of a clip's actions no demonstration comes near.

The share of values, over frames and dimensions, that are beyond the demonstrations' range in their dimension by more
than a tenth of it, and farther from its middle than three errors of labels (the model's mean absolute error in the
dimension on held-out episodes). A label whose values leave what the robot was seen to do is a label of pixels that look
like no demonstration. Errors count because the demonstrations may hardly move in a dimension, such as a gripper that
stays closed: a model that learned from other demonstrations too labels it with an error that a tenth of nearly nothing
does not allow. Cost: the label file of the clip; range and error are read once in each process.

Recorded actions against the range of other demonstrations of the same robot, at most: 0.15 with one demonstration, 0.07
with two, 0.07 with four (93 frames of GR1, 44 dimensions); 0.12, 0.07 and 0.05 (25 frames of four tasks of Meta-World,
4 dimensions). Of labels of the Meta-World videos by models that learned from other tasks too, 0.3 % have more than 0.2
with one demonstration, 0.05 % with two, and none with four (at most 0.16) or ten (0.14). By the tenth of the range
alone it was all of them, up to 0.40, in the task whose gripper stays closed, with any number of demonstrations.
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
    return share_outside(action_TA, *known, clip.action_error_A)


SCORE = Score(
    name="action_outside_demos",
    summary="share of action values beyond the demonstrations' range by more than a tenth of it and labels' errors",
    threshold=Threshold(
        setting="max_action_outside_demos",
        default=0.2,
        help="share of action values outside the demonstrations' range above which a clip is rejected",
        low=0.0,
        high=1.0,
    ),
    rejection="actions unlike the demonstrations': {value:.0%} of the values are outside their range > {limit:.0%}",
    measure=measure,
    reads_demonstrations=True,
    version=2,
)
