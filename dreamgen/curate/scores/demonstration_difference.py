"""How far a clip is from the nearest demonstration: a copy of one adds nothing to a training set.

The mean absolute difference of four frames at 8 x 8 gray pixels, as `min_difference` compares clips with each other,
between the clip and the first frames of a demonstration, as many as the clip has.

Unit: gray levels, 0-255. Cost: under 1 ms; five frames of each demonstration are decoded once in each process.

Axes: N demonstrations, K pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    from dreamgen.data.clip_context import ClipContext


def _measure(clip: ClipContext) -> float | None:
    import numpy as np

    from dreamgen.curate.demonstration_pictures import demonstration_pictures
    from dreamgen.curate.selection import signature_of

    known = demonstration_pictures(clip.run.train, clip.job.num_frames)
    if known is None:
        return None
    signature_K = np.frombuffer(bytes.fromhex(signature_of(clip.gray_THW)), np.uint8).astype(np.int16)
    return float(np.abs(known.signature_NK.astype(np.int16) - signature_K).mean(1).min())


SCORE = Score(
    name="demonstration_difference",
    summary="difference from the nearest demonstration, four frames at 8 x 8 pixels, in gray levels",
    threshold=Threshold(
        setting="min_demonstration_difference", default=None, low=0.0, high=255.0,
        help="difference from the nearest demonstration, in gray levels, below which a clip repeats it",
    ),
    rejection="repeats a demonstration: difference {value:.2f} gray levels < {limit:g}",
    better="low",  # of clips that are no copies, those like the demonstrations succeed most often (docs/proof.md)
    measure=_measure,
    reads_demonstrations=True,
    is_calibrated=False,  # a demonstration repeats itself
)  # fmt: skip
