"""How closely a clip begins with its conditioning frame.

Axes: H height, W width, C channels; uint8, 0-255, RGB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.data.clip_context import ClipContext

MAX_PSNR_DB = 100.0  # equal images have an infinite PSNR, which JSON cannot hold


def psnr_db(frame_HWC: np.ndarray, reference_HWC: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio of 8-bit images, 10 log10(255^2 / mean squared error).

    Source of the formula: ITU-T J.340 (2010), without its alignment.

    Returns:
        Decibels, at most `MAX_PSNR_DB`; None for images of different sizes.
    """
    import cv2
    import numpy as np

    if frame_HWC.shape != reference_HWC.shape:
        return None
    error = cv2.norm(frame_HWC, reference_HWC, cv2.NORM_L2SQR) / frame_HWC.size  # the sum is exact
    return MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, float(10 * np.log10(255**2 / error)))


def _measure(clip: ClipContext) -> float | None:
    reference_HWC = clip.first_frame_HWC
    return None if reference_HWC is None else psnr_db(clip.features.first_HWC, reference_HWC)


SCORE = Score(
    name="first_frame_psnr_db",
    unit="dB",
    summary="PSNR of the clip's first frame against the planned one",
    threshold=Threshold(
        setting="min_first_frame_psnr_db",
        default=20.0,
        help="PSNR of the clip's first frame against the planned one, below which it is rejected",
    ),
    rejection="first frame differs: PSNR {value:.1f} dB < {limit:g} dB",
    missing="first frame differs: its size is not that of the planned one",
    measure=_measure,
    applies=lambda job: job.num_conditioning_frames > 0,
)
