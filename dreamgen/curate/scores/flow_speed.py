"""How fast the fastest things move.

Unit: percent of the picture's size a frame. Cost: 20 ms for the flow, shared with `flow_roughness`.

Axes: N samples, H height, W width, 2 x and y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    from dreamgen.data.flow import FlowSamples

FASTEST_SHARE = 0.05  # of a frame's pixels
HIGH_QUANTILE = 80  # percent of the samples


def flow_speed(flow: FlowSamples) -> float | None:
    """Measure the speed of the fastest pixels: the mean of the fastest 5 % of a frame, at the 80th percentile in time.

    Returns:
        Percent of the picture's size a frame; None for fewer than three frames.
    """
    import numpy as np

    if not len(flow.first_NHW2):
        return None
    speed_NK = np.linalg.norm(flow.first_NHW2, axis=3).reshape(len(flow.first_NHW2), -1)
    num = int(speed_NK.shape[1] * FASTEST_SHARE)
    fastest_N = np.partition(speed_NK, -num, axis=1)[:, -num:].mean(1)
    return float(np.percentile(fastest_N, HIGH_QUANTILE)) / flow.first_NHW2.shape[2] * 100


SCORE = Score(
    name="flow_speed",
    unit="%",
    summary="speed of the fastest pixels by optical flow, in percent of the picture's size a frame",
    threshold=Threshold(
        setting="max_flow_speed", default=None, low=0.0,
        help="speed of the fastest pixels, in percent of the picture's size a frame, above which a clip is rejected",
    ),
    rejection="too fast: {value:.1f} % of the picture a frame > {limit:g} %",
    measure=lambda clip: flow_speed(clip.flow),
)  # fmt: skip
