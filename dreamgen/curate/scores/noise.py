"""How noisy the noisiest frame is: clips of untrained models, and samples that did not converge.

Unit: gray levels (standard deviation, 0-255). Cost: 15 ms for 12 frames at 432 x 768, while decoding.
"""

from __future__ import annotations

from dreamgen.extensions.score import Score, Threshold

SCORE = Score(
    name="noise",
    summary="standard deviation of the noise of the noisiest frame, in gray levels",
    threshold=Threshold(
        setting="max_noise", default=4.0, low=0.0,
        help="standard deviation of the noise of the noisiest frame, in gray levels, above which a clip is rejected",
    ),
    rejection="noise: {value:.1f} gray levels > {limit:g}",
    measure=lambda clip: float(clip.features.noise_N.max()),
)  # fmt: skip
