"""The loss of a reconstruction, and its PSNR.

Axes: B batch, C channels, T frames, H height, W width. Video is -1 to 1 in losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dreamgen.config.settings import FinetuneVaeSettings

EPSILON = 1e-3  # of the Charbonnier loss sqrt(d^2 + eps^2), which is smooth at 0
MOVES_FROM, FULLY_MOVES = 0.04, 0.2  # difference to the clip's mean picture, of 2
STANDS_OUT_FROM, FULLY_STANDS_OUT = 0.05, 0.5  # difference to the neighborhood's mean color, of 2
NEIGHBORHOOD_SHARE = 8  # of the height: things smaller than this stand out
MAX_ERROR = 8.0  # times the mean error: no pixel counts more


def pixel_weights(video_BCTHW: torch.Tensor, tune: FinetuneVaeSettings) -> torch.Tensor:
    """Return weight_B1THW of each pixel, 1 on average: more for what moves and for what is small.

    In a plain mean the background outweighs everything else. With more weight on motion alone, small things that stand
    still vanish, such as a goal marker or a handle.

    Args:
        video_BCTHW: The original.
        tune: The weights.
    """
    weight_B1THW = 1 + tune.moving_weight * motion(video_BCTHW) + tune.detail_weight * detail(video_BCTHW)
    return weight_B1THW / weight_B1THW.mean()


def motion(video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return how much each pixel differs from the mean of its clip, 0 to 1; motion_B1THW."""
    return _between(video_BCTHW - video_BCTHW.mean(2, keepdim=True), MOVES_FROM, FULLY_MOVES)


def detail(video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return how much each pixel differs from its neighborhood, 0 to 1; detail_B1THW."""
    size = max(3, video_BCTHW.shape[3] // NEIGHBORHOOD_SHARE) // 2 * 2 + 1
    frames = video_BCTHW.transpose(1, 2).flatten(0, 1)
    around = frames
    for kernel, padding in (((size, 1), (size // 2, 0)), ((1, size), (0, size // 2))):  # one square kernel is slow
        around = F.avg_pool2d(around, kernel, stride=1, padding=padding, count_include_pad=False)
    around_BCTHW = around.unflatten(0, video_BCTHW.shape[:1] + video_BCTHW.shape[2:3]).transpose(1, 2)
    return _between(video_BCTHW - around_BCTHW, STANDS_OUT_FROM, FULLY_STANDS_OUT)


def reconstruction_loss(
    decoded_BCTHW: torch.Tensor, video_BCTHW: torch.Tensor, tune: FinetuneVaeSettings
) -> torch.Tensor:
    """Return the weighted loss of pixels and of their differences to neighbors in space and time, a scalar.

    Args:
        decoded_BCTHW: The reconstruction, float32.
        video_BCTHW: The original.
        tune: The weights.
    """
    with torch.no_grad():
        weight_B1THW = pixel_weights(video_BCTHW, tune)
    error_BCTHW = decoded_BCTHW - video_BCTHW
    charbonnier_BCTHW = (error_BCTHW.square() + EPSILON**2).sqrt()
    with torch.no_grad():
        size_B1THW = charbonnier_BCTHW.mean(1, keepdim=True)
        above_B1THW = (size_B1THW / size_B1THW.mean()).clamp_max(MAX_ERROR)
        weight_B1THW = weight_B1THW * (1 + tune.error_weight * above_B1THW)
    loss = (weight_B1THW * charbonnier_BCTHW).mean()
    for axis in (2, 3, 4):
        if error_BCTHW.shape[axis] > 1 and tune.gradient_weight:
            weights = weight_B1THW.narrow(axis, 1, weight_B1THW.shape[axis] - 1)
            loss = loss + tune.gradient_weight / 3 * (weights * error_BCTHW.diff(dim=axis).abs()).mean()
    return loss


def kl_divergence(mean_BCTHW: torch.Tensor, logvar_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of the posterior to a standard normal, averaged over the latents."""
    return 0.5 * (mean_BCTHW.square() + logvar_BCTHW.exp() - 1 - logvar_BCTHW).mean()


def psnr_db(decoded_BCTHW: torch.Tensor, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return each clip's PSNR: of all pixels, of those that move, and of small things.

    Args:
        decoded_BCTHW: The reconstruction.
        video_BCTHW: The original.

    Returns:
        psnr_B3; nan for a clip without such pixels.
    """
    squared_BTHW = ((decoded_BCTHW.clamp(-1, 1) - video_BCTHW) / 2).square().mean(1)
    masks = (torch.ones_like(squared_BTHW), motion(video_BCTHW)[:, 0] > 0.5, detail(video_BCTHW)[:, 0] > 0.5)
    means = [(squared_BTHW * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)) for mask in masks]
    return -10 * torch.stack(means, dim=1).clamp_min(1e-10).log10()


def _between(difference_BCTHW: torch.Tensor, low: float, high: float) -> torch.Tensor:
    size_B1THW = difference_BCTHW.abs().amax(1, keepdim=True)
    return ((size_B1THW - low) / (high - low)).clamp(0, 1)
