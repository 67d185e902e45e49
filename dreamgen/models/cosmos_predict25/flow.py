"""One step of rectified-flow training, as pure functions that give the transformer what the pipeline gives it.

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
from diffusers import CosmosTransformer3DModel

from dreamgen.config.settings import FinetuneSettings
from dreamgen.data.seeds import derived_seed
from dreamgen.models.cosmos_predict25.velocity import BlockForward, block_forward, velocity


class NoiseSample(NamedTuple):
    """The random choices of a batch, drawn on the CPU; a tuple, so that the loader moves its tensors.

    Args:
        sigma_B: Noise level, 0-1, float32.
        num_conditioned_B: For each sample, the number of conditioning latent frames.
        drop_text: For each sample, whether it is trained without its text.
        noise_BCTHW: Standard normal, float32.
    """

    sigma_B: torch.Tensor
    num_conditioned_B: torch.Tensor
    drop_text: list[bool]
    noise_BCTHW: torch.Tensor


@dataclass(frozen=True)
class FlowInput:
    """Input and target of the transformer.

    Args:
        hidden_states_BCTHW: Noised latents; clean ones in conditioning frames.
        condition_mask_B1THW: 1 in conditioning frames.
        timestep_BT: Noise level of each frame, float32.
        target_BCTHW: The velocity, float32.
        loss_mask_B1T11: 1 in the frames that the loss includes, float32.
    """

    hidden_states_BCTHW: torch.Tensor
    condition_mask_B1THW: torch.Tensor
    timestep_BT: torch.Tensor
    target_BCTHW: torch.Tensor
    loss_mask_B1T11: torch.Tensor


class VelocityModel(torch.nn.Module):
    """The transformer as training calls it: one module for accelerate to wrap.

    Args:
        transformer: With the trained parameters.
        run_block: Forward pass of a block: plain, compiled or checkpointed; or one for each block.
    """

    def __init__(
        self, transformer: CosmosTransformer3DModel, run_block: BlockForward | Sequence[BlockForward] = block_forward
    ) -> None:
        super().__init__()
        self.transformer, self.run_block = transformer, run_block

    def forward(
        self,
        hidden_states_BCTHW: torch.Tensor,
        condition_mask_B1THW: torch.Tensor,
        timestep_BT: torch.Tensor,
        text_BLD: torch.Tensor,
    ) -> torch.Tensor:
        """Return velocity_BCTHW, float32; latents and mask are cast to the dtype of the text, which is the model's."""
        latents_BCTHW, mask_B1THW = hidden_states_BCTHW.to(text_BLD.dtype), condition_mask_B1THW.to(text_BLD.dtype)
        return velocity(self.transformer, latents_BCTHW, mask_B1THW, timestep_BT, text_BLD, self.run_block).float()


def shifted_sigma(normal: torch.Tensor, shift: float) -> torch.Tensor:
    """Return sigma = s t / (1 + (s - 1) t) with t = sigmoid(normal): more noise for larger s (arXiv 2403.03206).

    Args:
        normal: Standard normal samples.
        shift: s.

    Returns:
        Noise levels, 0-1, of the same shape.
    """
    time = torch.sigmoid(normal)
    return shift * time / (1 + (shift - 1) * time)


def sample_noise(
    seed: int, shape_CTHW: Sequence[int], tune: FinetuneSettings, sample_indices: Sequence[int]
) -> NoiseSample:
    """Draw a batch's random choices, each sample's from the run's seed and its own index.

    The index counts samples across steps, GPUs and accumulated batches, so none of these changes a sample's noise.

    Args:
        seed: Of the run.
        shape_CTHW: Of one clean latent.
        tune: Probabilities and the shift.
        sample_indices: One for each sample.

    Returns:
        The noise, on the CPU.
    """
    normals, counts, drop_text, noises = [], [], [], []
    for sample_index in sample_indices:
        generator = torch.Generator().manual_seed(derived_seed(seed, "flow", sample_index))
        normals.append(torch.randn((), generator=generator))
        one, dropped = torch.rand(2, generator=generator).tolist()
        # At least one frame remains in the loss.
        counts.append(min(1 if one < tune.condition_on_one_latent else 2, shape_CTHW[1] - 1))
        drop_text.append(dropped < tune.text_dropout)
        noises.append(torch.randn(tuple(shape_CTHW), generator=generator))
    sigma_B = shifted_sigma(torch.stack(normals), tune.sigma_shift)
    return NoiseSample(sigma_B, torch.tensor(counts), drop_text, torch.stack(noises))


def flow_input(clean_BCTHW: torch.Tensor, noise: NoiseSample, conditional_frame_timestep: float) -> FlowInput:
    """Mix noise into clean latents, except in the conditioning frames.

    x = sigma noise + (1 - sigma) clean, and the velocity is its derivative by sigma, noise - clean (arXiv 2209.03003).

    Args:
        clean_BCTHW: Float32.
        noise: Of each sample.
        conditional_frame_timestep: Timestep of the conditioning frames; negative: the sample's sigma for all frames, as
            in the pipeline.

    Returns:
        The transformer's input and target, on the latents' device.
    """
    num_samples, _, num_frames, height, width = clean_BCTHW.shape
    noise_BCTHW, sigma_B1 = noise.noise_BCTHW.to(clean_BCTHW), noise.sigma_B.to(clean_BCTHW).view(-1, 1)
    count_B1 = noise.num_conditioned_B.to(clean_BCTHW.device).view(-1, 1)
    conditioning_BT = (torch.arange(num_frames, device=clean_BCTHW.device) < count_B1).to(clean_BCTHW)
    timestep_BT = sigma_B1.expand(-1, num_frames)
    if conditional_frame_timestep >= 0:
        timestep_BT = conditioning_BT * conditional_frame_timestep + (1 - conditioning_BT) * sigma_B1
    conditioning_B1T11, sigma_B1111 = conditioning_BT.view(num_samples, 1, -1, 1, 1), sigma_B1.view(-1, 1, 1, 1, 1)
    mixed_BCTHW = sigma_B1111 * noise_BCTHW + (1 - sigma_B1111) * clean_BCTHW
    return FlowInput(
        hidden_states_BCTHW=conditioning_B1T11 * clean_BCTHW + (1 - conditioning_B1T11) * mixed_BCTHW,
        condition_mask_B1THW=conditioning_B1T11.expand(-1, -1, -1, height, width),
        timestep_BT=timestep_BT,
        target_BCTHW=noise_BCTHW - clean_BCTHW,
        loss_mask_B1T11=1 - conditioning_B1T11,
    )


def flow_loss(velocity_BCTHW: torch.Tensor, flow: FlowInput) -> torch.Tensor:
    """Return each sample's mean squared error over the frames that are not conditioning frames.

    Each sample has its own mean, so one batch of two counts like two batches of one.

    Args:
        velocity_BCTHW: The transformer's output, float32.
        flow: With the target.

    Returns:
        loss_B, float32.
    """
    squared_BCTHW = (velocity_BCTHW - flow.target_BCTHW).square() * flow.loss_mask_B1T11
    num_counted_B = flow.loss_mask_B1T11.expand_as(squared_BCTHW).sum(dim=(1, 2, 3, 4))
    return squared_BCTHW.sum(dim=(1, 2, 3, 4)) / num_counted_B
