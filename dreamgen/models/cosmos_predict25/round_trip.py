"""Real video through the VAE: what a perfect world model with this VAE would make of it.

Axes: T frames, H height, W width, C channels, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dreamgen.models.cosmos_predict25.latents import decode_video, use_channels_last, vae_means
from dreamgen.models.cosmos_predict25.loading import load_vae
from dreamgen.models.world_model import WorldModelSource


def vae_round_trip(source: WorldModelSource, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Load the VAE and return the function that encodes and decodes a clip.

    Args:
        source: The model's files.
        device: Where to compute; float32 on the CPU, bfloat16 on a GPU.

    Returns:
        From video_THWC to video_THWC, uint8, 0-255, RGB, of 4k + 1 frames whose size is divisible by 8.
    """
    loaded: Any = load_vae(source)
    vae = loaded.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16).eval()
    if device.type == "cpu":
        use_channels_last(vae)

    @torch.no_grad()
    def trip(video_THWC: np.ndarray) -> np.ndarray:
        means_BCTHW = vae_means(vae, torch.from_numpy(np.ascontiguousarray(video_THWC)).to(device)[None])
        video_CTHW = decode_video(vae, means_BCTHW)[0].float()
        pixels_CTHW = (video_CTHW * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels_CTHW.permute(1, 2, 3, 0).cpu().numpy()

    return trip
