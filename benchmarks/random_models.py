"""An adapter and a batch for a model with random weights, which the benchmarks of training steps share.

Axes: B batch, T frames, C channels, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.random_models import model_sizes

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
NUM_TEXT_TOKENS = 512
CONDITION_TIMESTEP = 1e-4


def attach(transformer: Any, rank: int, use_dora: bool) -> list[torch.nn.Parameter]:
    """Add an adapter and move it away from its zero start, where half of the gradients would be zero."""
    parameters = add_adapter(transformer, rank, rank, TARGETS, use_dora)
    generator = torch.Generator(parameters[0].device).manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return parameters


def make_batch(args: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Draw one window with its noise, at sigma 0.7, conditioned on the first latent frame."""
    generator = torch.Generator().manual_seed(0)
    num_latents = (args.num_frames - 1) // 4 + 1
    shape = (1, 16, num_latents, args.height // 8, args.width // 8)
    text_features = model_sizes(args.model)["transformer"]["crossattn_proj_in_channels"]
    clean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    mask = torch.zeros(1, 1, *shape[2:])
    mask[:, :, 0] = 1
    timestep_BT = torch.full((1, num_latents), 0.7)
    timestep_BT[:, 0] = CONDITION_TIMESTEP
    batch = {
        "video_BCTHW": torch.rand(1, 3, args.num_frames, args.height, args.width, generator=generator) * 2 - 1,
        "text_BLD": torch.randn(1, NUM_TEXT_TOKENS, text_features, generator=generator),
        "clean": clean, "target": noise - clean, "mask": mask, "timestep_BT": timestep_BT,
        "mixed": mask * clean + (1 - mask) * (0.7 * noise + 0.3 * clean),
        "padding": torch.zeros(1, 1, args.height, args.width),
    }  # fmt: skip
    return {name: value.to(device) for name, value in batch.items()}
