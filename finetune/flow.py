"""One step of rectified-flow training, as pure functions that feed the transformer what the pipeline feeds it.

Axes: B batch, C latent channels, T latent frames (frames in a video), H height, W width, L tokens, D features.
Sources: Liu et al. 2022, Flow Straight and Fast (arXiv 2209.03003); Esser et al. 2024, Scaling Rectified Flow
Transformers (arXiv 2403.03206), for the logit-normal sigma and its shift; and diffusers'
`Cosmos2_5_PredictBasePipeline.__call__` for the conditioning frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel

from dreamgen.config.settings import FinetuneSettings, VideoSettings
from dreamgen.models.cosmos_predict25.velocity import BlockForward, block_forward, velocity
from finetune.seeds import derived_seed


class NoiseSample(NamedTuple):
    """The random choices of a batch, drawn on the CPU; a tuple, so that the loader moves its tensors.

    Args:
        sigma_B: Share of noise, 0-1, float32.
        num_conditioned_B: For each sample, how many first latent frames are given clean.
        drop_text: For each sample, whether it is trained without its text.
        noise_BCTHW: Standard normal, float32.
    """

    sigma_B: torch.Tensor
    num_conditioned_B: torch.Tensor
    drop_text: list[bool]
    noise_BCTHW: torch.Tensor


@dataclass(frozen=True)
class FlowInput:
    """What the transformer reads and what it should answer.

    Args:
        hidden_states_BCTHW: Noised latents; clean ones in conditioning frames.
        condition_mask_B1THW: 1 in conditioning frames.
        timestep_BT: Noise level of each frame, float32.
        target_BCTHW: The velocity, float32.
        learnt_B1T11: 1 in the frames that the loss counts, float32.
    """

    hidden_states_BCTHW: torch.Tensor
    condition_mask_B1THW: torch.Tensor
    timestep_BT: torch.Tensor
    target_BCTHW: torch.Tensor
    learnt_B1T11: torch.Tensor


class VelocityModel(torch.nn.Module):
    """The transformer as training calls it: one module for accelerate to wrap.

    Args:
        transformer: With what is trained in it.
        run_block: How a block is run: plain, compiled or checkpointed.
    """

    def __init__(self, transformer: CosmosTransformer3DModel, run_block: BlockForward = block_forward) -> None:
        super().__init__()
        self.transformer, self.run_block = transformer, run_block

    def forward(
        self,
        hidden_states_BCTHW: torch.Tensor,
        condition_mask_B1THW: torch.Tensor,
        timestep_BT: torch.Tensor,
        text_BLD: torch.Tensor,
    ) -> torch.Tensor:
        """Return velocity_BCTHW, float32; latents and mask are rounded to the text's dtype, that of the model."""
        latents_BCTHW, mask_B1THW = hidden_states_BCTHW.to(text_BLD.dtype), condition_mask_B1THW.to(text_BLD.dtype)
        return velocity(self.transformer, latents_BCTHW, mask_B1THW, timestep_BT, text_BLD, self.run_block).float()


def latent_shape(video: VideoSettings) -> tuple[int, int, int, int]:
    """Return the shape CTHW of a window's latent: the first frame alone and then groups of four, an eighth in space."""
    return 16, (video.num_frames - 1) // 4 + 1, video.height // 8, video.width // 8


@torch.no_grad()
def vae_means(vae: AutoencoderKLWan, video_BTHWC: torch.Tensor) -> torch.Tensor:
    """Encode windows to the means of the VAE's posterior.

    Args:
        vae: Frozen.
        video_BTHWC: uint8, 0-255, RGB, on the VAE's device; T is 4k + 1.

    Returns:
        mean_BCTHW in the VAE's dtype, not yet normalised.
    """
    video_BCTHW = (video_BTHWC.permute(0, 4, 1, 2, 3).float() / 255.0 * 2.0 - 1.0).to(vae.dtype)
    return torch.cat([vae.encode(one_CTHW[None]).latent_dist.mode() for one_CTHW in video_BCTHW])


class LatentScale:
    """Normalises the VAE's means to clean latents, as the pipeline does with conditioning frames.

    The latent is (mean - channel's mean) / channel's std with the VAE's own constants; see `prepare_latents` in
    diffusers' pipeline_cosmos2_5_predict.py (there `latents_std` holds 1 / std).

    Args:
        mean, std: Of each channel, from the VAE's configuration.
        device: Where the latents will be.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        self._mean_1C111 = torch.tensor(mean).view(1, -1, 1, 1, 1).float().to(device)
        self._scale_1C111 = (1.0 / torch.tensor(std).view(1, -1, 1, 1, 1).float()).to(device)

    def __call__(self, mean_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return clean_BCTHW, float32."""
        return (mean_BCTHW.float() - self._mean_1C111) * self._scale_1C111


def shifted_sigma(normal: torch.Tensor, shift: float) -> torch.Tensor:
    """Return sigma = s t / (1 + (s - 1) t) with t = sigmoid(normal): more noise for larger s (arXiv 2403.03206).

    Args:
        normal: Standard normal draws.
        shift: s.

    Returns:
        Shares of noise, 0-1, of the same shape.
    """
    time = torch.sigmoid(normal)
    return shift * time / (1 + (shift - 1) * time)


def draw_batch(
    seed: int, sample_indices: Sequence[int], shape_CTHW: Sequence[int], tune: FinetuneSettings
) -> NoiseSample:
    """Draw a batch's random choices, each sample's from the run's seed and its own index.

    The index counts samples over steps, GPUs and accumulated batches alike, so none of these changes a draw.

    Args:
        seed: Of the run.
        sample_indices: One a sample.
        shape_CTHW: Of one clean latent.
        tune: Probabilities and the shift.

    Returns:
        The draws, on the CPU.
    """
    normals, counts, drop_text, noises = [], [], [], []
    for sample_index in sample_indices:
        generator = torch.Generator().manual_seed(derived_seed(seed, "flow", sample_index))
        normals.append(torch.randn((), generator=generator))
        one, dropped = torch.rand(2, generator=generator).tolist()
        # At least one frame is left to learn.
        counts.append(min(1 if one < tune.condition_on_one_latent else 2, shape_CTHW[1] - 1))
        drop_text.append(dropped < tune.text_dropout)
        noises.append(torch.randn(tuple(shape_CTHW), generator=generator))
    sigma_B = shifted_sigma(torch.stack(normals), tune.sigma_shift)
    return NoiseSample(sigma_B, torch.tensor(counts), drop_text, torch.stack(noises))


def flow_input(clean_BCTHW: torch.Tensor, draws: NoiseSample, conditional_frame_timestep: float) -> FlowInput:
    """Mix noise into clean latents, except in the conditioning frames.

    x = sigma noise + (1 - sigma) clean, and the velocity is its derivative by sigma, noise - clean (arXiv 2209.03003).

    Args:
        clean_BCTHW: Float32.
        draws: For each sample of it.
        conditional_frame_timestep: Time of the conditioning frames; negative: the noise's own sigma for all frames,
            as in the pipeline.

    Returns:
        The transformer's input and target, on the latents' device.
    """
    num_samples, _, num_frames, height, width = clean_BCTHW.shape
    noise_BCTHW, sigma_B1 = draws.noise_BCTHW.to(clean_BCTHW), draws.sigma_B.to(clean_BCTHW).view(-1, 1)
    count_B1 = draws.num_conditioned_B.to(clean_BCTHW.device).view(-1, 1)
    given_BT = (torch.arange(num_frames, device=clean_BCTHW.device) < count_B1).to(clean_BCTHW)
    timestep_BT = sigma_B1.expand(-1, num_frames)
    if conditional_frame_timestep >= 0:
        timestep_BT = given_BT * conditional_frame_timestep + (1 - given_BT) * sigma_B1
    given_B1T11, sigma_B1111 = given_BT.view(num_samples, 1, -1, 1, 1), sigma_B1.view(-1, 1, 1, 1, 1)
    mixed_BCTHW = sigma_B1111 * noise_BCTHW + (1 - sigma_B1111) * clean_BCTHW
    return FlowInput(
        hidden_states_BCTHW=given_B1T11 * clean_BCTHW + (1 - given_B1T11) * mixed_BCTHW,
        condition_mask_B1THW=given_B1T11.expand(-1, -1, -1, height, width),
        timestep_BT=timestep_BT,
        target_BCTHW=noise_BCTHW - clean_BCTHW,
        learnt_B1T11=1 - given_B1T11,
    )


def flow_loss(velocity_BCTHW: torch.Tensor, flow: FlowInput) -> torch.Tensor:
    """Return each sample's mean squared error over the frames that it was not given.

    The mean is a sample's own, so one batch of two counts as two batches of one.

    Args:
        velocity_BCTHW: The transformer's answer, float32.
        flow: With the target.

    Returns:
        loss_B, float32.
    """
    squared_BCTHW = (velocity_BCTHW - flow.target_BCTHW).square() * flow.learnt_B1T11
    num_learnt_B = flow.learnt_B1T11.expand_as(squared_BCTHW).sum(dim=(1, 2, 3, 4))
    return squared_BCTHW.sum(dim=(1, 2, 3, 4)) / num_learnt_B
