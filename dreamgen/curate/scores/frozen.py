"""The longest part of a clip in which the picture stands still, as a share of the clip.

Unit: share, 0 to 1. Cost: 4 ms for 93 frames.

Axes: T frames, H height, W width, K cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

STILL_CHANGE = 2.5  # of 255, of the cells that change most: what an encoder makes of equal frames stays below
CELL_PX = 2
NUM_CELLS = 8  # that change most: small enough for a gripper


def frozen_share(gray_THW: np.ndarray) -> float:
    """Find the longest run of frames that all equal its first one.

    A robot that pauses still moves a little over the run, and comparing with the run's first frame adds that up, where
    comparing neighbors would not.

    Args:
        gray_THW: Small frames, 0-255.

    Returns:
        Changes within the longest run over all changes; 0 for a single frame.
    """
    import numpy as np

    from dreamgen.data.frame_features import averaged_cells

    num = len(gray_THW)
    cells_TK = averaged_cells(gray_THW, CELL_PX)
    longest, begin = 0, 0
    while begin + longest + 1 < num:
        # A longer run must contain the frame that is `longest` + 1 later, so begins that cannot are skipped cheaply.
        if _change(cells_TK[begin : begin + 1], cells_TK[begin + longest + 1])[0] < STILL_CHANGE:
            changes = _change(cells_TK[begin + 1 :], cells_TK[begin])
            moving = np.flatnonzero(changes >= STILL_CHANGE)
            longest = max(longest, int(moving[0]) if len(moving) else len(changes))
        begin += 1
    return longest / max(num - 1, 1)


def _change(cells_TK: np.ndarray, to_K: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.partition(np.abs(cells_TK - to_K), -NUM_CELLS, axis=1)[:, -NUM_CELLS:].mean(1)


SCORE = Score(
    name="frozen",
    summary="longest part in which the picture stands still, as a share of the clip",
    threshold=Threshold(
        setting="max_frozen", default=0.25, low=0.0, high=1.0,
        help="longest still part, as a share of the clip (0-1), above which a clip is rejected",
    ),
    rejection="frozen: {value:.0%} of the clip stands still > {limit:.0%}",
    measure=lambda clip: frozen_share(clip.gray_THW),
)  # fmt: skip
