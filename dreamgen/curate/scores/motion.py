"""How much a clip moves, to find static ones.

Axes: T frames, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np


def motion(gray_THW: np.ndarray) -> float:
    """Measure how much a clip moves: mean |frame[t + lag] - frame[t]|, for a lag of half a clip.

    Movement adds up over the lag and noise does not, which separates a slow robot from a still picture with noise;
    neighboring frames do not separate them. The lag of a third finds movement that returns after half a clip.

    Args:
        gray_THW: From `small_gray`.

    Returns:
        Mean absolute difference, 0-255; 0 for a single frame.
    """
    import numpy as np

    lags = {lag for lag in (len(gray_THW) // 2, len(gray_THW) // 3) if lag}
    return max((float(np.abs(gray_THW[lag:] - gray_THW[:-lag]).mean()) for lag in lags), default=0.0)


SCORE = Score(
    name="motion",
    summary="mean change of gray values (0-255) between frames half a clip apart",
    threshold=Threshold(
        setting="min_motion",
        default=0.5,
        low=0.0,
        help="mean change between frames half a clip apart (0-255) below which a clip is static",
    ),
    rejection="static: motion {value:.2f} < {limit:g}",
    measure=lambda clip: motion(clip.small_gray_THW),
)
