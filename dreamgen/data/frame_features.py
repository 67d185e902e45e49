"""Small frames and measures of fine detail, computed while a clip is decoded: what scores share.

Axes: T frames, N sampled frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from dreamgen.data.display import UPRIGHT, Orientation
from dreamgen.data.video import DecodedFrame

SMALL_PX = 64
LUMA_PX = 256
NUM_SAMPLED = 12  # frames whose fine detail is measured, evenly spaced
PLAIN_FORMATS = ("yuv420p", "yuv422p", "yuv444p", "nv12")  # their first plane is luma, 8 bit
BT601_OR_UNSTATED = (2, 5, 6)  # matrix coefficients that swscale assumes
# Differences of second differences cancel edges and slopes; what remains of an image is noise (Immerkaer, "Fast noise
# variance estimation", 1996).
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
MEDIAN_TO_SIGMA = 0.6745  # median of |x| of a normal distribution with standard deviation 1


@dataclass(frozen=True)
class FrameFeatures:
    """What a pass over a clip's frames keeps.

    Args:
        small_THWC: Every frame, averaged down to `SMALL_PX` squared; uint8, 0-255, RGB.
        first_HWC: The first frame at its own size.
        sharpness_N: Mean absolute Laplacian of the luma of the sampled frames, in gray levels.
        noise_N: Standard deviation of the noise of the sampled frames, in gray levels.
        luma_NHW: Luma of the sampled frames, averaged down to about `LUMA_PX` wide; uint8, 0-255.
    """

    small_THWC: np.ndarray
    first_HWC: np.ndarray
    sharpness_N: np.ndarray
    noise_N: np.ndarray
    luma_NHW: np.ndarray


def frame_features(frames: Iterable[DecodedFrame], num_frames: int) -> FrameFeatures | None:
    """Compute the features of a clip in one pass.

    Args:
        frames: In order.
        num_frames: How many are expected; it decides which ones are sampled.

    Returns:
        The features; None without frames.
    """
    every = max(1, num_frames // NUM_SAMPLED)
    small, details, lumas, first_HWC = [], [], [], None
    for number, frame in enumerate(frames):
        small.append(small_frame(frame))
        if number == 0:
            first_HWC = frame.rgb()
        if number % every == 0:
            luma_HW = _luma(frame)
            details.append(detail_of(luma_HW))
            lumas.append(_narrowed(luma_HW))
    if first_HWC is None:
        return None
    sharpness_N, noise_N = np.array(details).T
    return FrameFeatures(np.stack(small), first_HWC, sharpness_N, noise_N, np.stack(lumas))


def detail_of(luma_HW: np.ndarray) -> tuple[float, float]:
    """Return sharpness and noise of a picture, as `FrameFeatures` describes them.

    Args:
        luma_HW: uint8, 0-255.
    """
    sharpness = cv2.norm(cv2.Laplacian(luma_HW, cv2.CV_16S), cv2.NORM_L1) / luma_HW.size
    residual = np.abs(cv2.filter2D(luma_HW, cv2.CV_16S, NOISE_KERNEL)[1:-1, 1:-1])
    return sharpness, float(np.median(residual[::2, ::2])) / (6 * MEDIAN_TO_SIGMA)


def averaged_cells(gray_THW: np.ndarray, cell_px: int) -> np.ndarray:
    """Average small frames over square cells, which cancels an encoder's noise.

    Args:
        gray_THW: Height and width are multiples of `cell_px`.
        cell_px: Side of a cell.

    Returns:
        cells_TK, one row a frame.
    """
    num, height, width = gray_THW.shape
    cells = gray_THW.reshape(num, height // cell_px, cell_px, width // cell_px, cell_px).mean((2, 4))
    return cells.reshape(num, -1)


def shown_to(observe: Callable[[DecodedFrame], None], frames: Iterable[DecodedFrame]) -> Iterator[DecodedFrame]:
    """Yield frames, and call a function with each of them on the way."""
    for frame in frames:
        observe(frame)
        yield frame


def _is_plain(frame: DecodedFrame) -> bool:
    """Return whether the stored frame can be scaled as it is, without the care that `rgb` takes."""
    stored = frame.frame
    return (
        frame.pixel_aspect == 1 and stored.format.name in PLAIN_FORMATS and int(stored.colorspace) in BT601_OR_UNSTATED
        and int(stored.color_range) != 2 and Orientation.of(stored) == UPRIGHT
    )  # fmt: skip


def small_frame(frame: DecodedFrame, px: int = SMALL_PX) -> np.ndarray:
    """Return a frame averaged down to `px` squared, uint8, RGB; it is computed once for all who ask."""
    if px not in frame.small:
        if _is_plain(frame):  # the whole frame is never converted to RGB
            small_HWC = frame.frame.to_ndarray(width=px, height=px, format="rgb24", interpolation="AREA")
        else:
            small_HWC = cv2.resize(frame.rgb(), (px, px), interpolation=cv2.INTER_AREA)
        frame.small[px] = small_HWC
    return frame.small[px]


def _luma(frame: DecodedFrame) -> np.ndarray:
    if not _is_plain(frame):
        return cv2.cvtColor(frame.rgb(), cv2.COLOR_RGB2GRAY)
    plane = frame.frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _narrowed(luma_HW: np.ndarray) -> np.ndarray:
    factor = round(luma_HW.shape[1] / LUMA_PX)  # a whole number: OpenCV averages ten times as fast
    if factor < 2:
        return luma_HW.copy()  # the frame's memory is the decoder's
    height, width = (size // factor for size in luma_HW.shape)
    return cv2.resize(luma_HW[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
