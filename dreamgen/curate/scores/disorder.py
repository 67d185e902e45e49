"""Whether movement goes forward and back from frame to frame, as in shuffled frames, flicker and changing noise.

Unit: ratio. Cost: 2 ms for 93 frames.

Axes: T frames, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

WINDOW = 6  # triples of frames that are averaged: single ones are noisy
STILL_CHANGE = 0.3  # of 255: a mean change below this is an encoder's


def disorder(gray_THW: np.ndarray) -> float:
    """Compare the way over each frame with the direct way: (|b - a| + |c - b|) / |c - a|, for consecutive a, b, c.

    Steady movement gives about 1, frames without order 2. The largest mean over `WINDOW` consecutive triples counts.

    Args:
        gray_THW: Small frames, 0-255.

    Returns:
        A ratio; 0 for fewer than three frames.
    """
    import numpy as np

    if len(gray_THW) < 3:
        return 0.0
    changes_T = np.abs(np.diff(gray_THW, axis=0)).mean((1, 2))
    way_T, direct_T = changes_T[:-1] + changes_T[1:], np.abs(gray_THW[2:] - gray_THW[:-2]).mean((1, 2))
    kernel = np.ones(min(WINDOW, len(way_T))) / min(WINDOW, len(way_T))
    way_T, direct_T = np.convolve(way_T, kernel, "valid"), np.convolve(direct_T, kernel, "valid")
    return float((way_T / np.maximum(direct_T, STILL_CHANGE)).max())


SCORE = Score(
    name="disorder",
    summary="way from frame to frame over the direct way: 1 for steady movement, 2 for shuffled frames",
    threshold=Threshold(
        setting="max_disorder", default=1.45,
        help="way from frame to frame over the direct way, above which the frames have no order",
    ),
    rejection="no order in time: disorder {value:.2f} > {limit:g}",
    measure=lambda clip: disorder(clip.gray_THW),
)  # fmt: skip
