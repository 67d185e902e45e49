"""The Wan VAE applied to all frames of a clip at once.

diffusers encodes and decodes four frames at a time and caches what each causal convolution has seen. That bounds the
memory and costs time: many small convolutions, and on a CPU ones that torch has no fast kernel for. Here each layer
runs once over the whole clip. The layers are causal, so the values are the same up to rounding.

Axes: B batch, C channels, T frames (latent frames in latents), H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanRMS_norm

GIB = 2**30
WHOLE_CLIP_GIB = 8.0  # fixed, not what is free: the rounding of a clip must not depend on the machine's load
COPIES = 5  # activations of the largest layer that exist at a time: input, skipped input, padded, convolved, normalized

NormAct = Callable[[WanRMS_norm, torch.Tensor], torch.Tensor]


def norm_silu(norm: WanRMS_norm, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Normalize and activate as a residual block does."""
    return torch.nn.functional.silu(norm(x_BCTHW))


def can_run_whole(vae: AutoencoderKLWan) -> bool:
    """Return whether this module knows all layers of the VAE: that of Wan 2.1, without tiling."""
    config: Any = vae.config
    return not (config.is_residual or config.patch_size or config.attn_scales or vae.use_tiling)


def clip_gib(vae: AutoencoderKLWan, num_frames: int, height: int, width: int) -> float:
    """Estimate the activations of one clip in GiB; its size is that of the pixels."""
    config: Any = vae.config
    widest = max(config.base_dim, config.decoder_base_dim or 0)
    itemsize = 4 if vae.dtype == torch.float32 else 3  # the norms compute in float32
    return COPIES * itemsize * widest * num_frames * height * width / GIB


def clips_at_once(vae: AutoencoderKLWan, num_frames: int, height: int, width: int) -> int:
    """Return how many clips fit into `WHOLE_CLIP_GIB`; 0 if one must be decoded piece by piece."""
    return math.floor(WHOLE_CLIP_GIB / clip_gib(vae, num_frames, height, width)) if can_run_whole(vae) else 0


def encode_moments(vae: AutoencoderKLWan, video_BCTHW: torch.Tensor, norm_act: NormAct = norm_silu) -> torch.Tensor:
    """Encode clips to the parameters of the posterior.

    Args:
        vae: One that `can_run_whole`.
        video_BCTHW: -1 to 1, in the VAE's dtype; T is 4k + 1.
        norm_act: Normalizes and activates.

    Returns:
        Means and log variances, concatenated along C.
    """
    encoder: Any = vae.encoder  # torch's types do not know the layers of a module
    x_BCTHW = encoder.conv_in(video_BCTHW.contiguous(memory_format=torch.channels_last_3d))
    for layer in encoder.down_blocks:
        x_BCTHW = _resample(layer, x_BCTHW) if isinstance(layer, WanResample) else _residual(layer, x_BCTHW, norm_act)
    x_BCTHW = _middle(encoder.mid_block, x_BCTHW, norm_act)
    return vae.quant_conv(encoder.conv_out(norm_act(encoder.norm_out, x_BCTHW)))


def decode_latents(vae: AutoencoderKLWan, latents_BCTHW: torch.Tensor, norm_act: NormAct = norm_silu) -> torch.Tensor:
    """Decode latents to video.

    Args:
        vae: One that `can_run_whole`.
        latents_BCTHW: Not normalized, in the VAE's dtype.
        norm_act: Normalizes and activates.

    Returns:
        video_BCTHW, about -1 to 1, not clamped.
    """
    decoder: Any = vae.decoder
    x_BCTHW = vae.post_quant_conv(latents_BCTHW.contiguous(memory_format=torch.channels_last_3d))
    x_BCTHW = _middle(decoder.mid_block, decoder.conv_in(x_BCTHW), norm_act)
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x_BCTHW = _residual(layer, x_BCTHW, norm_act)
        for layer in block.upsamplers or ():
            x_BCTHW = _resample(layer, x_BCTHW)
    return decoder.conv_out(norm_act(decoder.norm_out, x_BCTHW))


def _residual(block: Any, x_BCTHW: torch.Tensor, norm_act: NormAct) -> torch.Tensor:
    skipped_BCTHW = block.conv_shortcut(x_BCTHW)
    x_BCTHW = block.conv1(norm_act(block.norm1, x_BCTHW))
    return block.conv2(block.dropout(norm_act(block.norm2, x_BCTHW))) + skipped_BCTHW


def _middle(block: Any, x_BCTHW: torch.Tensor, norm_act: NormAct) -> torch.Tensor:
    x_BCTHW = _residual(block.resnets[0], x_BCTHW, norm_act)
    for attention, layer in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x_BCTHW = attention(x_BCTHW)
        x_BCTHW = _residual(layer, x_BCTHW, norm_act)
    return x_BCTHW


def _resample(layer: Any, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Resample in space and time; the first frame stays alone in time, and no later frame doubles or merges with it."""
    if layer.mode == "upsample3d" and x_BCTHW.shape[2] > 1:
        # The convolution starts after the first frame. Its output channels are two frames for each frame.
        pairs_BCTHW = layer.time_conv(x_BCTHW[:, :, 1:])
        batch, channels, frames, height, width = pairs_BCTHW.shape
        later_BCTHW = (
            pairs_BCTHW.view(batch, 2, channels // 2, frames, height, width)
            .permute(0, 2, 3, 1, 4, 5)
            .reshape(batch, channels // 2, 2 * frames, height, width)
        )
        x_BCTHW = torch.cat([x_BCTHW[:, :, :1], later_BCTHW], dim=2)
    x_BCTHW = _each_frame(layer.resample, x_BCTHW.contiguous(memory_format=torch.channels_last_3d))
    if layer.mode == "downsample3d" and x_BCTHW.shape[2] > 1:
        x_BCTHW = torch.cat([x_BCTHW[:, :, :1], layer.time_conv(x_BCTHW)], dim=2)
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)


def _each_frame(module: torch.nn.Module, x_BCTHW: torch.Tensor) -> torch.Tensor:
    batch, _, frames = x_BCTHW.shape[:3]
    return module(x_BCTHW.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
