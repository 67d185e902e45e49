"""Whether the scene stays rigid while the camera moves: the Sampson error of tracked points.

Corners are tracked between sampled frames (pyramidal Lucas-Kanade; Bouguet, 2001), a fundamental matrix F is fitted by
least median of squares, and of a point x and its place x' the error is |x'^T F x| / |((F x)_1, (F x)_2, (F^T x')_1,
(F^T x')_2)| (Hartley and Zisserman, "Multiple View Geometry", 2nd ed., eq. 11.9). The median over points ignores what
moves by itself. Where the camera stands still F is not determined, so such pairs of frames do not count.

Unit: pixels of frames that are about 256 wide. Cost: 15 ms for a clip at 432 x 768.

Axes: N sampled frames, P points, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

NUM_PAIRS = 4  # pairs of consecutive sampled frames
NUM_POINTS, LEAST_POINTS = 200, 24
MOVES_PX = 1.0  # median way of the points: a camera that moves less stands still


def epipolar_error(luma_NHW: np.ndarray) -> float | None:
    """Return the mean over pairs of frames of the median Sampson error.

    Args:
        luma_NHW: From `frame_features`.

    Returns:
        Pixels; None if the camera stands still, or too few points can be tracked.
    """
    import numpy as np

    starts = np.unique(np.linspace(0, len(luma_NHW) - 2, NUM_PAIRS).astype(int)) if len(luma_NHW) > 1 else []
    errors = [_error_of(luma_NHW[start], luma_NHW[start + 1]) for start in starts]
    known = [error for error in errors if error is not None]
    return float(np.mean(known)) if known else None


def sampson_errors(first_P2: np.ndarray, second_P2: np.ndarray, fundamental_33: np.ndarray) -> np.ndarray:
    """Return error_P, in pixels, of points in two frames."""
    import numpy as np

    first_P3, second_P3 = (np.column_stack([points, np.ones(len(points))]) for points in (first_P2, second_P2))
    line_P3, back_P3 = first_P3 @ fundamental_33.T, second_P3 @ fundamental_33
    norm_P = np.linalg.norm(np.column_stack([line_P3[:, :2], back_P3[:, :2]]), axis=1)
    return np.abs((second_P3 * line_P3).sum(1)) / np.maximum(norm_P, 1e-12)


def _error_of(first_HW: np.ndarray, second_HW: np.ndarray) -> float | None:
    import cv2
    import numpy as np

    corners = cv2.goodFeaturesToTrack(first_HW, NUM_POINTS, 0.01, 5)
    if corners is None or len(corners) < LEAST_POINTS:
        return None
    moved, found, _ = cv2.calcOpticalFlowPyrLK(first_HW, second_HW, corners, np.empty_like(corners))
    is_found = found.ravel() == 1
    first_P2, second_P2 = corners.reshape(-1, 2)[is_found], moved.reshape(-1, 2)[is_found]
    if len(first_P2) < LEAST_POINTS or np.median(np.linalg.norm(second_P2 - first_P2, axis=1)) < MOVES_PX:
        return None
    fundamental_33, _ = cv2.findFundamentalMat(first_P2, second_P2, cv2.FM_LMEDS)
    if fundamental_33 is None or fundamental_33.shape != (3, 3):
        return None
    return float(np.median(sampson_errors(first_P2, second_P2, fundamental_33)))


SCORE = Score(
    name="epipolar_error",
    unit="px",
    summary="median Sampson error of points that are tracked while the camera moves, in pixels of 256 wide frames",
    threshold=Threshold(
        setting="max_epipolar_error", default=None, low=0.0,
        help="median Sampson error of tracked points, in pixels of 256 wide frames, above which the scene is not rigid",
    ),
    rejection="the scene is not rigid: Sampson error {value:.2f} px > {limit:g} px",
    measure=lambda clip: epipolar_error(clip.features.luma_NHW),
    is_calibrated=False,  # a camera that stands still gives nothing to calibrate on
)  # fmt: skip
