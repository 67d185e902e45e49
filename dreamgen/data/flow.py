"""Optical flow of a few pairs of a clip's small frames, computed once for all scores that use it.

Axes: T frames, N samples, H height, W width, 2 x and y.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

NUM_SAMPLES = 12  # places in the clip; at each, the flow of two consecutive pairs of frames


@dataclass(frozen=True)
class FlowSamples:
    """Flow at evenly spaced places of a clip.

    Args:
        first_NHW2: From a frame to the next one, in pixels of the small frame.
        second_NHW2: From that one to the one after it.
    """

    first_NHW2: np.ndarray
    second_NHW2: np.ndarray


def sampled_flow(gray_THW: np.ndarray) -> FlowSamples:
    """Compute dense inverse search flow (Kroeger et al., 2016; OpenCV's ultrafast preset).

    Args:
        gray_THW: Small frames, 0-255.

    Returns:
        The samples; none for fewer than three frames.
    """
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    frames = np.clip(np.rint(gray_THW), 0, 255).astype(np.uint8)
    starts = np.unique(np.linspace(0, len(frames) - 3, NUM_SAMPLES).astype(int)) if len(frames) > 2 else []

    def flow(start: int) -> np.ndarray:
        out_HW2 = np.zeros((*frames.shape[1:], 2), np.float32)
        return method.calc(frames[start], frames[start + 1], out_HW2)

    shape = (0, *frames.shape[1:], 2)
    first, second = [flow(start) for start in starts], [flow(start + 1) for start in starts]
    return FlowSamples(np.array(first).reshape(-1, *shape[1:]), np.array(second).reshape(-1, *shape[1:]))
