"""Pixels to latents and back, for generation: only the given frames are encoded, and clips leave the GPU as uint8.

Axes: B batch, C channels, T frames (latent frames in latents), H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline


@torch.no_grad()
def encode_conditioning(pipe: Cosmos2_5_PredictBasePipeline, frames_THWC: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Encode the frames that a clip begins with.

    The VAE is causal in time: the first latent frame depends on the first frame alone, the second on the four after
    it. So these are the very latents that the pipeline gets from a whole padded clip, at a fraction of the cost.

    Args:
        pipe: Its VAE is used.
        frames_THWC: uint8, RGB; 1 or 5 frames.

    Returns:
        clean_BCTHW, float32, normalised, on the VAE's device: one latent frame for 1 frame, two for 5.
    """
    vae = pipe.vae
    video_BCTHW = torch.as_tensor(frames_THWC).to(vae.device).permute(3, 0, 1, 2)[None]
    video_BCTHW = (video_BCTHW.float() / 255.0 * 2.0 - 1.0).to(vae.dtype)
    mean_BCTHW = vae.encode(video_BCTHW).latent_dist.mode().float()
    # `latents_std` holds 1 / std.
    return (mean_BCTHW - pipe.latents_mean.to(mean_BCTHW)) * pipe.latents_std.to(mean_BCTHW)


@torch.no_grad()
def decode(pipe: Cosmos2_5_PredictBasePipeline, latents_BCTHW: torch.Tensor) -> torch.Tensor:
    """Turn sampled latents into pixels.

    Args:
        pipe: Its VAE is used.
        latents_BCTHW: One clip, normalised as the transformer sees it.

    Returns:
        video_THWC, uint8, RGB, on the VAE's device.
    """
    mean = pipe.latents_mean.to(latents_BCTHW)
    inverse_std = pipe.latents_std.to(latents_BCTHW)  # despite its name
    latents_BCTHW = latents_BCTHW / inverse_std + mean
    video_BCTHW = pipe.vae.decode(latents_BCTHW.to(pipe.vae.dtype), return_dict=False)[0]
    video_THWC = (video_BCTHW[0].float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return video_THWC.permute(1, 2, 3, 0).contiguous()


def use_channels_last(pipe: Cosmos2_5_PredictBasePipeline) -> None:
    """Lay the VAE's convolutions out as a GPU reads them best: the same sums, and clips decoded in less time."""
    for module in pipe.vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
