"""How unsteady the brightness of the whole picture is.

Unit: percent. Cost: 3 ms for 93 frames.

Axes: T frames, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

DARK = 8.0  # of 255, added to all values: the ratio of two dark pixels says nothing


def flicker(gray_THW: np.ndarray) -> float:
    """Measure how the gain between frames changes: the gain is the median over pixels of log(next / present).

    The median ignores what moves. A steady change of exposure has one gain throughout and does not count.

    Args:
        gray_THW: Small frames, 0-255.

    Returns:
        Mean absolute difference of consecutive gains, in percent; 0 for fewer than three frames.
    """
    import numpy as np

    if len(gray_THW) < 3:
        return 0.0
    logs_THW = np.log(gray_THW + DARK)
    gain_T = np.median(np.diff(logs_THW, axis=0), axis=(1, 2))
    return float(np.abs(np.diff(gain_T)).mean() * 100)


SCORE = Score(
    name="flicker",
    unit="%",
    summary="mean change of the brightness gain from frame to frame",
    threshold=Threshold(
        setting="max_flicker", default=1.0, low=0.0,
        help="mean change of the brightness gain from frame to frame, in percent, above which a clip is rejected",
    ),
    rejection="flicker: {value:.2f} % > {limit:g} %",
    measure=lambda clip: flicker(clip.gray_THW),
)  # fmt: skip
