"""How far a clip's end is from the ends of demonstrations that begin like it, beyond how far their beginnings differ.

For each demonstration, the mean absolute difference of RGB values, averaged over 16 x 16 squares, is taken between
the last frames and between the first frames, and the second is subtracted from the first. What counts is the least
such excess over the demonstrations of the clip's instruction, or over all where it has fewer than five. It is divided
by the largest excess that one of these demonstrations has against the others: 1 is a clip that ends as unlike the
demonstrations as the most unlike of them, and a clip that does another task lies above. A demonstration longer than
the clip is compared at the time of the clip's end.

There is no value for a clip with an instruction that no demonstration has, as it may be another task; for one that
begins like no demonstration, as in a new scene; and where fewer than five demonstrations begin like another one.
Unit: a ratio. Cost: under 1 ms; five frames of each demonstration are decoded once in each process.

Axes: N demonstrations, H height, W width, C channels, K values of cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.curate.demonstration_pictures import DemonstrationPictures
    from dreamgen.data.clip_context import ClipContext

MAX_BEGIN = 6.0  # gray levels: beginnings that differ by more show another scene
MIN_SAME = 5  # demonstrations of an instruction, to be compared with these alone
MIN_KNOWN = 5  # demonstrations that begin like another one, to know what is usual
LEAST_USUAL = 1.5  # gray levels: what exposure, a VAE and an encoder may change


def end_excess(begin_K: np.ndarray, end_K: np.ndarray, begin_NK: np.ndarray, end_NK: np.ndarray) -> float | None:
    """Return by how much the ends differ more than the beginnings, in gray levels, from the most alike demonstration.

    Args:
        begin_K: Cells of the first frame, 0-255.
        end_K: Those of the last frame.
        begin_NK: Those of the demonstrations' first frames.
        end_NK: Those of the demonstrations' last frames.

    Returns:
        None if no demonstration begins alike; a value of at least 0 otherwise.
    """
    import numpy as np

    begins_N = np.abs(begin_NK - begin_K).mean(1)
    alike_N = begins_N <= MAX_BEGIN
    if not alike_N.any():
        return None
    ends_N = np.abs(end_NK[alike_N] - end_K).mean(1)
    return max(0.0, float((ends_N - begins_N[alike_N]).min()))


def usual_excess(begin_NK: np.ndarray, end_NK: np.ndarray) -> float | None:
    """Return the largest `end_excess` of a demonstration against all others; None where too few begin alike."""
    import numpy as np

    excesses = []
    for number in range(len(begin_NK)):
        others = np.arange(len(begin_NK)) != number
        excesses.append(end_excess(begin_NK[number], end_NK[number], begin_NK[others], end_NK[others]))
    known = [excess for excess in excesses if excess is not None]
    return max(LEAST_USUAL, *known) if len(known) >= MIN_KNOWN else None


def _measure(clip: ClipContext) -> float | None:
    from dreamgen.curate.demonstration_pictures import color_cells, demonstration_pictures

    known = demonstration_pictures(clip.run.train, clip.job.num_frames)
    if known is None or clip.job.instruction not in known.instruction_N:
        return None
    begin_NK, end_NK, usual = _compared_with(known, clip.job.instruction)
    begin_K, end_K = color_cells(clip.features.small_THWC[[0, -1]])
    excess = end_excess(begin_K, end_K, begin_NK, end_NK)
    return None if usual is None or excess is None else excess / usual


def _compared_with(known: DemonstrationPictures, instruction: str) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Return the cells of the demonstrations that clips of an instruction are compared with, and their usual excess."""
    from dreamgen.curate.demonstration_pictures import color_cells

    key = instruction if known.num_of[instruction] >= MIN_SAME else None
    if key not in known.compared:
        chosen = slice(None) if key is None else known.instruction_N == key
        begin_NK, end_NK = color_cells(known.begin_NHWC[chosen]), color_cells(known.then_NHWC[chosen])
        known.compared[key] = begin_NK, end_NK, usual_excess(begin_NK, end_NK)
    return known.compared[key]


SCORE = Score(
    name="end_deviation",
    summary="how far the end is from the demonstrations' ends, over how far theirs are from each other",
    threshold=Threshold(
        setting="max_end_deviation", default=2.0, low=0.0,
        help="how far the last frame is from those of demonstrations that begin alike, over the largest such distance "
        "among the demonstrations, above which a clip is rejected",
    ),
    rejection="ends unlike the demonstrations that begin like it: {value:.1f} times as far off as the most unlike of "
    "them > {limit:g}",
    measure=_measure,
    reads_demonstrations=True,
    is_calibrated=False,  # a demonstration ends like itself
)  # fmt: skip
