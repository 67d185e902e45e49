"""How far the colors of the whole picture move away from those of the first frame.

Unit: CIELAB a*b* distance, in 8-bit steps. Cost: 30 ms for 93 frames.

Axes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np


def color_drift(small_THWC: np.ndarray) -> float:
    """Measure the largest distance of a frame's colors from the first frame's.

    The difference of a* and b* (CIE 1976) is taken pixel by pixel, and of these the median, which ignores what moves.

    Args:
        small_THWC: Small frames, uint8, 0-255, RGB.

    Returns:
        Distance in the plane of a* and b*.
    """
    import cv2
    import numpy as np

    lab = [cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 1:] for frame in small_THWC]
    medians = [np.median((colors - lab[0]).reshape(-1, 2), axis=0) for colors in lab]
    return float(np.linalg.norm(medians, axis=1).max())


SCORE = Score(
    name="color_drift",
    summary="largest distance of a frame's colors from the first frame's, in CIELAB's a*b* plane",
    threshold=Threshold(
        setting="max_color_drift", default=5.0, low=0.0,
        help="largest distance of a frame's colors from the first frame's (CIELAB a*b*), above which it is rejected",
    ),
    rejection="colors drift: {value:.1f} > {limit:g}",
    measure=lambda clip: color_drift(clip.features.small_THWC),
)  # fmt: skip
