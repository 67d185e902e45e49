"""How abrupt the most abrupt frame change of a clip is, to find cuts.

Axes: T frames, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

STILL_CHANGE = 1.0  # of 255: smaller changes come from codec and noise, and count as this much
NUM_NEIGHBORS = 4  # frame changes on each side that a change is compared with


def cut_score(gray_THW: np.ndarray) -> float:
    """Measure how far the most abrupt frame change stands out: change / median change of its neighbors in time.

    A cut is one large change between calm ones. Fast movement lasts several frames and noise lasts all of them, so
    both score near 1. Changes below `STILL_CHANGE` count as that, or the first movement after a pause would be a cut.

    Args:
        gray_THW: From `small_gray`.

    Returns:
        A ratio, at least 0; 0 for fewer than three frames, where no change has a neighbor.
    """
    import numpy as np

    changes_T = np.abs(np.diff(gray_THW, axis=0)).mean(axis=(1, 2), dtype=np.float64)
    if len(changes_T) < 2:
        return 0.0
    ratios = []
    for t, change in enumerate(changes_T):
        around = np.concatenate([changes_T[max(0, t - NUM_NEIGHBORS) : t], changes_T[t + 1 : t + 1 + NUM_NEIGHBORS]])
        ratios.append(change / max(float(np.median(around)), STILL_CHANGE))
    return float(max(ratios))


SCORE = Score(
    name="cut_score",
    summary="most abrupt frame change over the median of its neighbors",
    threshold=Threshold(
        setting="max_cut_score",
        default=6.0,
        help="most abrupt frame change over the median of its neighbors, above which the clip has a cut",
    ),
    rejection="cut: score {value:.1f} > {limit:g}",
    measure=lambda clip: cut_score(clip.small_gray_THW),
)
