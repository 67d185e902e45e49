"""Sampling a clip's latents: the loop of `Cosmos2_5_PredictBasePipeline.__call__` without its repeated work.

Axes: B batch, C latent channels, T latent frames, H and W latent height and width, L text tokens, D features.

The loop never waits for the GPU: noise levels, timesteps and the solver's weights are computed before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import CosmosTransformer3DModel

from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, KeysValues, velocities
from dreamgen.models.cosmos_predict25.solver import Stepper, StepTable
from dreamgen.models.cosmos_predict25.step_skipping import LinearExtrapolation, StepSkipping, plan_passes

CONDITION_TIMESTEP = 1e-4  # the pipeline's own timestep of conditioning frames


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance.

    Args:
        text: `text_keys_values` of the negative prompt.
        scale: g of cond + g (cond - uncond).
    """

    text: Sequence[KeysValues]
    scale: float


@torch.no_grad()
def sample_latents(
    transformer: CosmosTransformer3DModel,
    table: StepTable,
    noise_BCTHW: torch.Tensor,
    conditioning_BCTHW: torch.Tensor | None,
    text: Sequence[KeysValues],
    guidance: Guidance | None,
    step_skipping: StepSkipping,
    parts: BlockParts,
) -> torch.Tensor:
    """Sample one clip.

    Args:
        transformer: Frozen, its adapter fused.
        table: From `step_table`.
        noise_BCTHW: Initial noise, float32, on the transformer's device.
        conditioning_BCTHW: Clean latents of the conditioning frames, float32; None for a clip from text alone.
        text: `text_keys_values` of the prompt.
        guidance: None for no guidance.
        step_skipping: The level's numbers.
        parts: How blocks are run.

    Returns:
        latents_BCTHW, float32, normalized.
    """
    device, dtype = noise_BCTHW.device, transformer.dtype
    num_conditioning = 0 if conditioning_BCTHW is None else conditioning_BCTHW.shape[2]
    times_ST = torch.tensor(table.sigmas)[:, None].repeat(1, noise_BCTHW.shape[2])
    times_ST[:, :num_conditioning] = CONDITION_TIMESTEP
    times_ST = times_ST.to(device)
    mask_B1THW = torch.zeros_like(noise_BCTHW[:, :1], dtype=dtype)
    mask_B1THW[:, :, :num_conditioning] = 1
    rope = transformer.rope(noise_BCTHW, fps=None)
    # The velocity of the conditioning frames is known: noise - clean.
    known_BCTHW = None if conditioning_BCTHW is None else noise_BCTHW[:, :, :num_conditioning] - conditioning_BCTHW

    passes = plan_passes(table.num_steps, step_skipping)
    skips = not all(p.velocity and p.guidance for p in passes)
    velocity_line, guidance_line = LinearExtrapolation(skips), LinearExtrapolation(skips)
    stepper = Stepper(table, noise_BCTHW)
    for index, (sigma, computed) in enumerate(zip(table.sigmas, passes, strict=True)):
        if computed.velocity:
            latents_BCTHW = _with_first(conditioning_BCTHW, stepper.sample).to(dtype)
            texts = [text, guidance.text] if guidance and computed.guidance else [text]
            answers = velocities(
                transformer, latents_BCTHW, mask_B1THW, times_ST[index].expand(len(noise_BCTHW), -1), texts, parts, rope
            )
            prompted_BCTHW = velocity_line.add(sigma, answers[0].float())
        else:
            prompted_BCTHW = velocity_line.extrapolate(sigma)
        velocity_BCTHW = prompted_BCTHW
        if guidance:
            if computed.guidance:
                push_BCTHW = guidance_line.add(sigma, prompted_BCTHW - answers[1].float())
            else:
                push_BCTHW = guidance_line.extrapolate(sigma)
            velocity_BCTHW = prompted_BCTHW + guidance.scale * push_BCTHW
        stepper.step(index, _with_first(known_BCTHW, velocity_BCTHW))
    return stepper.sample


def _with_first(frames_BCTHW: torch.Tensor | None, all_BCTHW: torch.Tensor) -> torch.Tensor:
    if frames_BCTHW is None:
        return all_BCTHW
    return torch.cat([frames_BCTHW, all_BCTHW[:, :, frames_BCTHW.shape[2] :]], dim=2)
