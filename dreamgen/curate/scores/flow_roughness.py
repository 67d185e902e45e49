"""How much the optical flow changes from one pair of frames to the next.

Unit: ratio. Cost: 20 ms for the flow, shared with `flow_speed`.

Axes: N samples, H height, W width, 2 x and y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    from dreamgen.data.flow import FlowSamples

STILL_FLOW_PX = 0.02  # mean flow of small frames that stand still


def flow_roughness(flow: FlowSamples) -> float | None:
    """Compare the change of the flow with the flow: mean |v(t + 1) - v(t)| / mean |v(t)|.

    Returns:
        A ratio, about 2 for flow that has nothing in common from frame to frame; None for fewer than three frames.
    """
    import numpy as np

    if not len(flow.first_NHW2):
        return None
    change = np.linalg.norm(flow.second_NHW2 - flow.first_NHW2, axis=3).mean()
    both = (np.linalg.norm(flow.first_NHW2, axis=3).mean() + np.linalg.norm(flow.second_NHW2, axis=3).mean()) / 2
    return float(change / max(both, STILL_FLOW_PX))


SCORE = Score(
    name="flow_roughness",
    summary="change of the optical flow from frame to frame, over the flow",
    threshold=Threshold(
        setting="max_flow_roughness", default=None, low=0.0,
        help="change of the optical flow over the flow, above which movement is not smooth",
    ),
    rejection="movement is not smooth: flow roughness {value:.2f} > {limit:g}",
    measure=lambda clip: flow_roughness(clip.flow),
    is_calibrated=False,  # it finds nothing that `disorder` does not, and gave half of the false alarms
)  # fmt: skip
