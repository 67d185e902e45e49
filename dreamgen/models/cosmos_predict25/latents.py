"""Pixels to latents and back.

Axes: B batch, C channels, T frames (latent frames in latents), H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline

from dreamgen.models.cosmos_predict25 import whole_clip
from dreamgen.models.cosmos_predict25.spec import STRIDE_PX


@torch.no_grad()
def vae_means(vae: AutoencoderKLWan, video_BTHWC: torch.Tensor) -> torch.Tensor:
    """Encode clips to the means of the VAE's posterior.

    Args:
        vae: Frozen.
        video_BTHWC: uint8, 0-255, RGB, on the VAE's device; T is 4k + 1.

    Returns:
        mean_BCTHW in the VAE's dtype, not normalized.
    """
    num_frames, height, width = video_BTHWC.shape[1:4]
    at_once = whole_clip.clips_at_once(vae, num_frames, height, width)
    if vae.device.type == "cpu":
        at_once = min(at_once, 1)  # no slower, and the values do not depend on how clips are batched
    means = []
    for some_BTHWC in video_BTHWC.split(max(at_once, 1)):
        some_BCTHW = (some_BTHWC.permute(0, 4, 1, 2, 3).float() / 255.0 * 2.0 - 1.0).to(vae.dtype)
        if at_once:
            means.append(whole_clip.encode_moments(vae, some_BCTHW).chunk(2, dim=1)[0].contiguous())
        else:
            means.append(vae.encode(some_BCTHW, return_dict=False)[0].mode())
    return torch.cat(means)


class LatentScale:
    """Normalizes the VAE's means to clean latents, as the pipeline does with conditioning frames.

    The latent is (mean - channel mean) / channel std with the VAE's own constants; see `prepare_latents` in diffusers'
    pipeline_cosmos2_5_predict.py (where `latents_std` holds 1 / std).

    Args:
        mean, std: Of each channel, from the VAE's configuration.
        device: Device of the latents.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        self._mean_1C111 = torch.tensor(mean).view(1, -1, 1, 1, 1).float().to(device)
        self._scale_1C111 = (1.0 / torch.tensor(std).view(1, -1, 1, 1, 1).float()).to(device)

    def __call__(self, mean_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return clean_BCTHW, float32."""
        return (mean_BCTHW.float() - self._mean_1C111) * self._scale_1C111


@torch.no_grad()
def encode_conditioning(pipe: Cosmos2_5_PredictBasePipeline, frames_THWC: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Encode the frames that a clip begins with.

    The VAE is causal in time: the first latent frame depends on the first frame alone, the second on the four after
    it. So these equal the latents that the pipeline computes from a whole padded clip, at a fraction of the cost.

    Args:
        pipe: Its VAE is used.
        frames_THWC: uint8, RGB; 1 or 5 frames.

    Returns:
        clean_BCTHW, float32, normalized, on the VAE's device: one latent frame for 1 frame, two for 5.
    """
    vae = pipe.vae
    mean_BCTHW = vae_means(vae, torch.as_tensor(frames_THWC).to(vae.device)[None]).float()
    # `latents_std` holds 1 / std.
    return (mean_BCTHW - pipe.latents_mean.to(mean_BCTHW)) * pipe.latents_std.to(mean_BCTHW)


@torch.no_grad()
def decode(pipe: Cosmos2_5_PredictBasePipeline, latents_BCTHW: torch.Tensor) -> torch.Tensor:
    """Decode sampled latents to pixels.

    Args:
        pipe: Its VAE is used.
        latents_BCTHW: One clip, normalized as the transformer reads it.

    Returns:
        video_THWC, uint8, RGB, on the VAE's device: the pipeline's `output_type="np"` times 255, rounded.
    """
    mean = pipe.latents_mean.to(latents_BCTHW)
    inverse_std = pipe.latents_std.to(latents_BCTHW)  # despite its name
    latents_BCTHW = latents_BCTHW / inverse_std + mean
    video_BCTHW = decode_video(pipe.vae, latents_BCTHW.to(pipe.vae.dtype))
    video_CTHW = (video_BCTHW[0].float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return video_CTHW.permute(1, 2, 3, 0).contiguous()


@torch.no_grad()
def decode_video(vae: AutoencoderKLWan, latents_BCTHW: torch.Tensor) -> torch.Tensor:
    """Decode latents that are not normalized: all frames at once where they fit, else as diffusers does.

    Args:
        vae: Frozen.
        latents_BCTHW: In the VAE's dtype, on its device.

    Returns:
        video_BCTHW, -1 to 1.
    """
    num_frames, height, width = 4 * latents_BCTHW.shape[2] - 3, *(STRIDE_PX * n for n in latents_BCTHW.shape[3:])
    if not whole_clip.clips_at_once(vae, num_frames, height, width):
        return vae.decode(latents_BCTHW, return_dict=False)[0]
    videos = [whole_clip.decode_latents(vae, one_CTHW[None]) for one_CTHW in latents_BCTHW]
    return torch.cat(videos).clamp(-1, 1)


def use_channels_last(vae: AutoencoderKLWan) -> None:
    """Store the VAE's convolution weights channels-last: the same sums, computed faster."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]  # missing in torch's overloads
