"""How far the last frame is from the last frames of the demonstrations.

The mean absolute difference of RGB values, averaged over 16 x 16 squares, to the nearest demonstration of the clip's
instruction, or of any instruction if there is none. A task that is done looks like a task that was done, as far as
scene and camera are those of the demonstrations.

Unit: gray levels, 0-255. Cost: under 1 ms; five frames of each demonstration are decoded once in each process.

Axes: N demonstrations, H height, W width, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.data.clip_context import ClipContext


def end_frame_difference(end_HWC: np.ndarray, end_NHWC: np.ndarray) -> float:
    """Return the mean absolute difference to the nearest of some frames.

    Args:
        end_HWC: Last frame of the clip, small, uint8, 0-255, RGB.
        end_NHWC: Those of the demonstrations, of the same size.
    """
    import numpy as np

    from dreamgen.curate.demonstration_pictures import color_cells

    change_NK = color_cells(end_NHWC) - color_cells(end_HWC[None])
    return float(np.abs(change_NK).mean(1).min())


def _measure(clip: ClipContext) -> float | None:
    from dreamgen.curate.demonstration_pictures import demonstration_pictures

    known = demonstration_pictures(clip.run.train, clip.job.num_frames)
    if known is None:
        return None
    same_N = known.instruction_N == clip.job.instruction
    end_NHWC = known.end_NHWC[same_N] if same_N.any() else known.end_NHWC
    return end_frame_difference(clip.features.small_THWC[-1], end_NHWC)


SCORE = Score(
    name="end_frame_difference",
    summary="difference of the last frame from the nearest last frame of a demonstration, in gray levels",
    threshold=Threshold(
        setting="max_end_frame_difference", default=None, low=0.0, high=255.0,
        help="difference of the last frame from the nearest last frame of a demonstration, in gray levels, above which "
        "a clip is rejected",
    ),
    rejection="ends unlike any demonstration: difference {value:.1f} gray levels > {limit:g}",
    measure=_measure,
    reads_demonstrations=True,
    is_calibrated=False,  # a demonstration ends like itself
)  # fmt: skip
