"""How much of the picture changes at once in a single frame, to find cuts within one scene.

Unit: percent of the picture. Cost: 3 ms for 93 frames.

Axes: T frames, H height, W width, K cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

CELL_PX = 2
ABRUPT_CHANGE = 8.0  # of 255: by how much a cell's change exceeds those before and after it
NUM_NEIGHBORS = 4  # frame changes on each side


def jump(gray_THW: np.ndarray) -> float:
    """Measure the largest share of cells that change abruptly in one frame, beyond what is usual around that frame.

    A cell changes abruptly when its change exceeds both the one before and the one after by `ABRUPT_CHANGE`. Fast
    movement makes such cells in every frame, so the largest share within `NUM_NEIGHBORS` frames is subtracted.

    Args:
        gray_THW: Small frames, 0-255.

    Returns:
        Percent, 0 to 100; 0 for fewer than three frames.
    """
    import numpy as np

    from dreamgen.data.frame_features import averaged_cells

    num = len(gray_THW)
    if num < 3:
        return 0.0
    cells_TK = averaged_cells(gray_THW, CELL_PX)
    changes_TK = np.abs(np.diff(cells_TK, axis=0))
    before_TK = np.concatenate([changes_TK[1:2], changes_TK[:-1]])
    after_TK = np.concatenate([changes_TK[1:], changes_TK[-2:-1]])
    share_T = (changes_TK - np.maximum(before_TK, after_TK) > ABRUPT_CHANGE).mean(1) * 100
    best = 0.0
    for t, share in enumerate(share_T):
        around = np.concatenate([share_T[max(0, t - NUM_NEIGHBORS) : t], share_T[t + 1 : t + 1 + NUM_NEIGHBORS]])
        best = max(best, share - around.max())
    return float(best)


SCORE = Score(
    name="jump",
    unit="%",
    summary="part of the picture that changes abruptly in one frame, beyond what is usual around it",
    threshold=Threshold(
        setting="max_jump", default=6.0, low=0.0, high=100.0,
        help="percent of the picture that changes abruptly in one frame, above which a clip is rejected",
    ),
    rejection="jump: {value:.1f} % of the picture changes at once > {limit:g} %",
    measure=lambda clip: jump(clip.gray_THW),
)  # fmt: skip
