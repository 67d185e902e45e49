"""Metrics that compare clips with recorded ones: in pixels, and by what a state read-out sees in them.

Axes: N clips, T frames, H height, W width, C channels, V values of the read-out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from metaworld_clips import Clips, pixels_of
from state_readout import HAND, OBJECT, SECOND, recorded_values

MOVING_LEVELS = 20  # of 255; a pixel moves where it differs that much from the first frame in the recording
CROP_PX = 32  # around an object, of a picture of 128 pixels
MIN_TOLERANCE_M = 0.015


def pixel_metrics(video_NTHWC: torch.Tensor, real: Clips, with_flow: bool = False) -> dict[str, np.ndarray]:
    """Compare all frames but the first, which is given, with the recording's.

    Returns:
        One value for each clip, NaN where it has none: `psnr`, `psnr_moving` and `psnr_object` in dB, `ssim`, and
        `flow_px`, the mean error of the optical flow in pixels, if it is asked for.
    """
    clips = zip(video_NTHWC.cpu(), real.video_NTHWC, real.environment_NTE, strict=True)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        rows = list(threads.map(lambda clip: _clip_metrics(*clip, with_flow=with_flow), clips))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _clip_metrics(
    one_THWC: torch.Tensor, real_THWC: torch.Tensor, positions_TE: np.ndarray, with_flow: bool
) -> dict[str, float]:
    error_THW = (one_THWC[1:].float() - real_THWC[1:].float()).square().mean(-1)
    moving_THW = (real_THWC[1:].int() - real_THWC[:1].int()).abs().amax(-1) > MOVING_LEVELS
    row = {
        "psnr": _psnr(error_THW),
        "psnr_moving": _psnr(error_THW[moving_THW]),
        "psnr_object": _psnr(error_THW[_object_crops(positions_TE[1:], real_THWC.shape[1])]),
        "ssim": _ssim(one_THWC[1:], real_THWC[1:]),
    }
    if with_flow:
        row["flow_px"] = float(np.abs(_flow(one_THWC.numpy()) - _flow(real_THWC.numpy())).sum(-1).mean())
    return row


def clip_psnr(one_NTHWC: torch.Tensor, other_NTHWC: torch.Tensor) -> list[float]:
    """Return the PSNR of each clip in dB, over all frames but the first, which is given."""
    error_N = (one_NTHWC[:, 1:].float() - other_NTHWC[:, 1:].float()).square().flatten(1).mean(1).clamp(min=1e-3)
    return [round(float(value), 3) for value in 10 * torch.log10(255**2 / error_N)]


def _psnr(error: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / error.mean().clamp(min=1e-3))) if error.numel() else float("nan")


def _object_crops(positions_TE: np.ndarray, size_px: int) -> torch.Tensor:
    """Return which pixels lie in a square around the object or the second object, THW."""
    chosen_THW = torch.zeros(len(positions_TE), size_px, size_px, dtype=torch.bool)
    half = CROP_PX * size_px // 256
    for first in (0, 3):
        if np.abs(positions_TE[:, first : first + 3]).max() < 1e-6:
            continue  # there is no second object
        centers_T2 = np.rint(pixels_of(positions_TE[:, first : first + 3], size_px)).astype(int)
        for frame, (column, row) in enumerate(centers_T2.clip(0, size_px - 1)):
            chosen_THW[frame, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = True
    return chosen_THW


def _ssim(one_THWC: torch.Tensor, other_THWC: torch.Tensor) -> float:
    """Return the structural similarity of gray pictures, Gaussian window of 11 pixels (Wang et al. 2004)."""
    one, other = (x.float().mean(-1, keepdim=True).permute(0, 3, 1, 2) / 255 for x in (one_THWC, other_THWC))
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    means = [F.conv2d(x, window) for x in (one, other, one * one, other * other, one * other)]
    mean_1, mean_2, square_1, square_2, product = means
    variance_1, variance_2, covariance = square_1 - mean_1**2, square_2 - mean_2**2, product - mean_1 * mean_2
    top = (2 * mean_1 * mean_2 + 0.01**2) * (2 * covariance + 0.03**2)
    return float((top / ((mean_1**2 + mean_2**2 + 0.01**2) * (variance_1 + variance_2 + 0.03**2))).mean())


def _flow(video_THWC: np.ndarray) -> np.ndarray:
    """Return the optical flow between neighboring frames (Farnebäck 2003), pixels."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video_THWC]
    nothing = np.zeros((*gray[0].shape, 2), np.float32)
    return np.stack([cv2.calcOpticalFlowFarneback(a, b, nothing.copy(), 0.5, 3, 11, 3, 5, 1.1, 0)
                     for a, b in pairwise(gray)])  # fmt: skip


def state_metrics(values_NTV: np.ndarray, real: Clips) -> dict[str, np.ndarray]:
    """Compare what a read-out sees in clips with what was recorded.

    Returns:
        One value for each clip, in centimeters: `hand_cm` over all frames but the first, `hand_end_cm` and
        `object_end_cm` in the last frame (of the object that moves more, where there are two).
    """
    error_NTV = values_NTV - recorded_values(real)
    hand_NT = np.linalg.norm(error_NTV[..., HAND], axis=-1) * 100
    ends_N2 = np.stack([np.linalg.norm(error_NTV[:, -1, part], axis=-1) * 100 for part in (OBJECT, SECOND)], axis=1)
    travels_N2 = np.stack([np.linalg.norm(np.ptp(real.environment_NTE[..., part], axis=1), axis=-1)
                           for part in (slice(0, 3), slice(3, 6))], axis=1)  # fmt: skip
    object_N = ends_N2[np.arange(len(ends_N2)), travels_N2.argmax(1)]
    return {"hand_cm": hand_NT[:, 1:].mean(1), "hand_end_cm": hand_NT[:, -1], "object_end_cm": object_N}


@dataclass(frozen=True)
class Criterion:
    """When a task counts as done.

    Args:
        part: Which of the read-out's values end at the goal.
        offset_m: Where that is, from the goal, in successful recordings.
        tolerance_m: How far from there it may be.
    """

    part: slice
    offset_m: np.ndarray
    tolerance_m: float


def success_criteria(recorded: Clips) -> dict[str, Criterion]:
    """Learn from successful recordings where hand or object end, relative to the goal.

    Of hand, object and second object, the one is chosen whose way is longest for the spread of its end. The tolerance
    covers 95 % of the successes with half as much again, but at most half of the way.
    """
    criteria = {}
    for task in np.unique(recorded.task_N):
        clips = recorded[(recorded.task_N == task) & recorded.success_N]
        if len(clips) < 3:
            continue
        values_NTV, goal_N3 = recorded_values(clips), clips.environment_NTE[:, 0, 6:9]
        choices = []
        for part in (HAND, OBJECT, SECOND):
            start_N3, end_N3 = values_NTV[:, 0, part] - goal_N3, values_NTV[:, -1, part] - goal_N3
            offset_m = np.median(end_N3, axis=0)
            spread_m = float(np.quantile(np.linalg.norm(end_N3 - offset_m, axis=1), 0.95))
            way_m = float(np.quantile(np.linalg.norm(start_N3 - offset_m, axis=1), 0.2))
            tolerance_m = max(min(1.5 * spread_m, 0.5 * way_m), MIN_TOLERANCE_M)
            choices.append((way_m / (spread_m + 0.005), Criterion(part, offset_m, tolerance_m)))
        # The object decides where it can: a hand at its usual end does not mean that the object is at the goal.
        objects = [choice for choice in choices[1:] if choice[0] > 3]
        criteria[str(task)] = max(objects or choices, key=lambda choice: choice[0])[1]
    return criteria


def successes(values_NTV: np.ndarray, real: Clips, criteria: dict[str, Criterion]) -> np.ndarray:
    """Judge whether each clip ends with its task done, float; NaN for a task without a criterion."""
    judged = np.full(len(real), np.nan)
    for number, task in enumerate(real.task_N):
        if rule := criteria.get(str(task)):
            offset_m = values_NTV[number, -1, rule.part] - real.environment_NTE[number, 0, 6:9]
            judged[number] = np.linalg.norm(offset_m - rule.offset_m) < rule.tolerance_m
    return judged


def nearest_clips(first_NHWC: torch.Tensor, among: Clips) -> np.ndarray:
    """Return for each first frame the clip whose first frame is nearest to it, in mean squared error."""
    references_MD = among.video_NTHWC[:, 0].float().flatten(1)
    squares_M = references_MD.square().sum(1)
    nearest = []
    for frames_ND in first_NHWC.float().flatten(1).split(16):
        nearest.append((squares_M - 2 * frames_ND @ references_MD.T).argmin(1))
    return torch.cat(nearest).numpy()


def picture_grid(groups: Sequence[Sequence[np.ndarray]], num_columns: int = 7) -> np.ndarray:
    """Draw rows of frames, each recording above the clips that belong to it. Returns grid_HWC, uint8."""
    rows = []
    for videos in groups:
        columns = np.linspace(0, len(videos[0]) - 1, num_columns).round().astype(int)
        group = np.concatenate([np.concatenate(list(video_THWC[columns]), axis=1) for video_THWC in videos])
        rows.append(np.pad(group, ((0, 6), (0, 0), (0, 0)), constant_values=255))
    return np.concatenate(rows)
