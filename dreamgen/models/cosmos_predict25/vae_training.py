"""The Wan VAE as its training calls it.

Axes: B batch, C channels, T frames (latent frames in latents), H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.whole_clip import NormAct, can_run_whole, decode_latents, encode_moments

FIRST_LOGVAR = -4.0  # little noise at first, so that the decoder has something to learn from


def new_vae(sizes: dict[str, Any], seed: int) -> Any:
    """Create a VAE with random weights.

    Args:
        sizes: Arguments of AutoencoderKLWan.
        seed: Of the weights.

    Raises:
        TypeError, ValueError: if the sizes are not those of a VAE.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLWan(**sizes)
    bias = vae.quant_conv.bias
    with torch.no_grad():
        bias[len(bias) // 2 :] = FIRST_LOGVAR
    return vae


def check_trainable(vae: Any) -> None:
    """Refuse a VAE with other layers than those of Wan 2.1.

    Raises:
        UserError: if it has some.
    """
    if not can_run_whole(vae):
        raise UserError(
            "this VAE cannot be trained",
            actual="it is residual, in patches or tiled, or has attention between its blocks",
            allowed="the layers of Wan 2.1",
        )


class Reconstruction(torch.nn.Module):
    """Encodes clips and decodes a sample of the posterior; one module for accelerate to wrap.

    Args:
        vae: With the trained parameters.
        norm_act: Normalizes and activates.
    """

    def __init__(self, vae: Any, norm_act: NormAct) -> None:
        super().__init__()
        self.vae, self.norm_act = vae, norm_act

    def forward(
        self, video_BCTHW: torch.Tensor, noise_BCTHW: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reconstruction, and means and log variances of the latents, all float32.

        Args:
            video_BCTHW: -1 to 1.
            noise_BCTHW: Standard normal, of the latents' shape; None decodes the means.
        """
        moments_BCTHW = encode_moments(self.vae, video_BCTHW, self.norm_act).float()
        mean_BCTHW, logvar_BCTHW = moments_BCTHW.chunk(2, dim=1)
        logvar_BCTHW = logvar_BCTHW.clamp(-30.0, 20.0)  # as diffusers' DiagonalGaussianDistribution
        latents_BCTHW = mean_BCTHW
        if noise_BCTHW is not None:
            latents_BCTHW = mean_BCTHW + (0.5 * logvar_BCTHW).exp() * noise_BCTHW
        return decode_latents(self.vae, latents_BCTHW, self.norm_act).float(), mean_BCTHW, logvar_BCTHW


def norm_silu(norm: WanRMS_norm, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Normalize and activate like the stock layers, in fewer passes over memory: the sums in float32, the rest in x's
    dtype."""
    return _norm_silu(x_BCTHW, norm.gamma, norm.scale)


def make_norm_act(compiled: bool) -> NormAct:
    """Return `norm_silu`, compiled for each shape if that is wanted; where that fails it runs as it is."""
    if not compiled:
        return norm_silu
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # shapes: two for each block
    return partial(_compiled_norm_silu, torch.compile(_norm_silu, dynamic=False))


def _compiled_norm_silu(function: Any, norm: WanRMS_norm, x_BCTHW: torch.Tensor) -> torch.Tensor:
    return function(x_BCTHW, norm.gamma, norm.scale)


def _norm_silu(x_BCTHW: torch.Tensor, gamma_C111: torch.Tensor, scale: float) -> torch.Tensor:
    with torch.autocast(x_BCTHW.device.type, enabled=False):
        length_B1THW = torch.linalg.vector_norm(x_BCTHW, dim=1, keepdim=True, dtype=torch.float32)
        factor_B1THW = (scale / length_B1THW.clamp_min(1e-12)).to(x_BCTHW.dtype)
        return torch.nn.functional.silu(x_BCTHW * factor_B1THW * gamma_C111.to(x_BCTHW.dtype))


@torch.no_grad()
def measure_latents(module: Reconstruction, videos: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Measure mean and standard deviation of each latent channel.

    Args:
        module: With the weights to measure.
        videos: Batches of video_BCTHW, -1 to 1.

    Returns:
        `latents_mean` and `latents_std`, as the VAE's configuration holds them.
    """
    sums: list[torch.Tensor] = []
    for video_BCTHW in videos:
        mean_BCTHW = encode_moments(module.vae, video_BCTHW, module.norm_act).chunk(2, dim=1)[0].double()
        count = mean_BCTHW[:, 0].numel()
        total_2C = torch.stack([mean_BCTHW.sum((0, 2, 3, 4)), mean_BCTHW.square().sum((0, 2, 3, 4))])
        sums.append(torch.cat([total_2C, torch.full_like(total_2C[:1], count)]))
    total_C, squares_C, count_C = torch.stack(sums).sum(0)
    mean_C = total_C / count_C
    std_C = (squares_C / count_C - mean_C.square()).clamp_min(1e-12).sqrt()
    return [round(value, 6) for value in mean_C.tolist()], [round(value, 6) for value in std_C.tolist()]
