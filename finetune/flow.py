"""One step of rectified-flow training, as pure functions that feed the transformer what the pipeline feeds it.

Axes: B batch, C latent channels, T latent frames (frames in a video), H height, W width, L tokens, D features.
Sources: Liu et al. 2022, Flow Straight and Fast (arXiv 2209.03003); Esser et al. 2024, Scaling Rectified Flow
Transformers (arXiv 2403.03206), for the logit-normal sigma and its shift; and diffusers'
`Cosmos2_5_PredictBasePipeline.__call__` for the conditioning frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.core.settings import FinetuneSettings
from finetune.seeds import derived_seed


@dataclass(frozen=True)
class Draws:
    """The random choices of a batch, drawn on the CPU.

    Args:
        sigma_B: Share of noise, 0-1, float32.
        num_conditioned: For each sample, how many first latent frames are given clean.
        drop_text: For each sample, whether it is trained without its text.
        noise_BCTHW: Standard normal, float32.
    """

    sigma_B: torch.Tensor
    num_conditioned: list[int]
    drop_text: list[bool]
    noise_BCTHW: torch.Tensor


@dataclass(frozen=True)
class FlowInput:
    """What the transformer reads and what it should answer.

    Args:
        hidden_states_BCTHW: Noised latents; clean ones in conditioning frames.
        condition_mask_B1THW: 1 in conditioning frames.
        timestep: Float32, (B, 1, T, 1, 1) with the conditioning frames' own time, or (B,) where they have none.
        target_BCTHW: The velocity, float32.
        learnt_B1T11: 1 in the frames that the loss counts, float32.
    """

    hidden_states_BCTHW: torch.Tensor
    condition_mask_B1THW: torch.Tensor
    timestep: torch.Tensor
    target_BCTHW: torch.Tensor
    learnt_B1T11: torch.Tensor


@torch.no_grad()
def encode_windows(pipe: Cosmos2_5_PredictBasePipeline, video_BTHWC: torch.Tensor) -> torch.Tensor:
    """Encode windows to clean latents, as the pipeline encodes conditioning frames.

    The latent is (VAE mean - mean) / std with the VAE's own constants; see `prepare_latents` in diffusers'
    pipeline_cosmos2_5_predict.py (there `latents_std` holds 1 / std).

    Args:
        pipe: With its VAE.
        video_BTHWC: uint8, 0-255, RGB, on the VAE's device; T is 4k + 1.

    Returns:
        clean_BCTHW, float32; T is (frames - 1) / 4 + 1, H and W an eighth.
    """
    video_BCTHW = (video_BTHWC.permute(0, 4, 1, 2, 3).float() / 255.0 * 2.0 - 1.0).to(pipe.vae.dtype)
    mean_BCTHW = torch.cat([pipe.vae.encode(one_CTHW[None]).latent_dist.mode() for one_CTHW in video_BCTHW]).float()
    return (mean_BCTHW - pipe.latents_mean.to(mean_BCTHW)) * pipe.latents_std.to(mean_BCTHW)


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


def draw_batch(seed: int, sample_indices: Sequence[int], shape_CTHW: Sequence[int], tune: FinetuneSettings) -> Draws:
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
    normals, num_conditioned, drop_text, noises = [], [], [], []
    for sample_index in sample_indices:
        generator = torch.Generator().manual_seed(derived_seed(seed, "flow", sample_index))
        normals.append(torch.randn((), generator=generator))
        one, dropped = torch.rand(2, generator=generator).tolist()
        # At least one frame is left to learn.
        num_conditioned.append(min(1 if one < tune.condition_on_one_latent else 2, shape_CTHW[1] - 1))
        drop_text.append(dropped < tune.text_dropout)
        noises.append(torch.randn(tuple(shape_CTHW), generator=generator))
    return Draws(shifted_sigma(torch.stack(normals), tune.sigma_shift), num_conditioned, drop_text, torch.stack(noises))


def flow_input(clean_BCTHW: torch.Tensor, draws: Draws, conditional_frame_timestep: float) -> FlowInput:
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
    noise_BCTHW, sigma_B = draws.noise_BCTHW.to(clean_BCTHW), draws.sigma_B.to(clean_BCTHW)
    sigma_B1111 = sigma_B.view(-1, 1, 1, 1, 1)
    count_B1 = torch.tensor(draws.num_conditioned, device=clean_BCTHW.device).view(-1, 1)
    given_B1T11 = (torch.arange(num_frames, device=clean_BCTHW.device) < count_B1).view(num_samples, 1, -1, 1, 1)
    given_B1T11 = given_B1T11.to(clean_BCTHW)
    mixed_BCTHW = sigma_B1111 * noise_BCTHW + (1 - sigma_B1111) * clean_BCTHW
    if conditional_frame_timestep >= 0:
        timestep = given_B1T11 * conditional_frame_timestep + (1 - given_B1T11) * sigma_B1111
    else:
        timestep = sigma_B
    return FlowInput(
        hidden_states_BCTHW=given_B1T11 * clean_BCTHW + (1 - given_B1T11) * mixed_BCTHW,
        condition_mask_B1THW=given_B1T11.expand(-1, -1, -1, height, width),
        timestep=timestep,
        target_BCTHW=noise_BCTHW - clean_BCTHW,
        learnt_B1T11=1 - given_B1T11,
    )


def drop_texts(text_BLD: torch.Tensor, drop_text: Sequence[bool]) -> torch.Tensor:
    """Return the prompts' features with zeros for the samples that are trained without text."""
    kept_B11 = ~torch.tensor(drop_text, device=text_BLD.device).view(-1, 1, 1)
    return torch.where(kept_B11, text_BLD, torch.zeros_like(text_BLD))


def predict_velocity(
    transformer: torch.nn.Module, flow: FlowInput, text_BLD: torch.Tensor, size_px: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Run the transformer with exactly the arguments that the pipeline gives it.

    Args:
        transformer: Bare or wrapped by accelerate.
        flow: From `flow_input`.
        text_BLD: Prompts' features.
        size_px: Height and width of the video.
        dtype: Of the frozen weights.

    Returns:
        velocity_BCTHW, float32.
    """
    return transformer(
        hidden_states=flow.hidden_states_BCTHW.to(dtype),
        condition_mask=flow.condition_mask_B1THW.to(dtype),
        timestep=flow.timestep,
        encoder_hidden_states=text_BLD,
        padding_mask=flow.hidden_states_BCTHW.new_zeros(1, 1, *size_px, dtype=dtype),
        return_dict=False,
    )[0].float()


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
