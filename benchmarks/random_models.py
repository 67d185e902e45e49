"""Models of the real sizes with random weights, and a batch for them: what the benchmarks of training steps share.

Axes: B batch, T frames, C channels, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.quiet import quiet_loaders

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
NUM_TEXT_TOKENS = 512
CONDITION_TIMESTEP = 1e-4


def encoders(sizes: dict[str, Any], batch: dict[str, torch.Tensor], device, dtype) -> Callable[[], None]:
    """Return what the published step runs before the transformer: the VAE on the window and the text encoder."""
    with torch.device(device):
        vae = AutoencoderKLWan(**sizes["vae"]).to(dtype).eval().requires_grad_(False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            text = Qwen2_5_VLTextModel(
                Qwen2_5_VLTextConfig(
                    **{key: sizes["text_encoder"][key] for key in (*keys, "num_key_value_heads")},
                    vocab_size=sizes["text_encoder"].get("vocab_size", 300),
                    bos_token_id=None, eos_token_id=1, pad_token_id=0,
                    rope_parameters={
                        "rope_type": "default", "rope_theta": 1e6,
                        "mrope_section": sizes["text_encoder"]["mrope_section"],
                    },
                )
            ).eval().requires_grad_(False)  # fmt: skip
        finally:
            torch.set_default_dtype(before)
    tokens = torch.randint(2, 200, (1, NUM_TEXT_TOKENS), device=device)

    @torch.no_grad()
    def run() -> None:
        vae.encode(batch["video_BCTHW"].to(dtype)).latent_dist.mode()
        states = text(tokens, output_hidden_states=True).hidden_states[1:]
        torch.cat([(s - s.mean(-1, keepdim=True)) / (s.std(-1, keepdim=True) + 1e-8) for s in states], dim=-1)

    return run


def make_transformer(config: dict[str, Any], device, dtype) -> CosmosTransformer3DModel:
    """Build the transformer with random weights, the same at every call."""
    torch.manual_seed(0)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if "crossattn_proj_in_channels" not in config:
        config["crossattn_proj_in_channels"] = 192
    with torch.device(device):
        transformer = CosmosTransformer3DModel(**config)
    with quiet_loaders():
        return transformer.to(dtype).requires_grad_(False)


def attach(transformer: CosmosTransformer3DModel, rank: int, use_dora: bool) -> list[torch.nn.Parameter]:
    """Put an adapter on, away from its zero start, where half of the gradients would be zero."""
    parameters = add_adapter(transformer, rank, rank, TARGETS, use_dora)
    generator = torch.Generator(parameters[0].device).manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return parameters


def make_batch(args: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Draw one window with its noise, at sigma 0.7, the first latent frame given."""
    generator = torch.Generator().manual_seed(0)
    num_latents = (args.num_frames - 1) // 4 + 1
    shape = (1, 16, num_latents, args.height // 8, args.width // 8)
    sizes = read_yaml(configs_folder() / "models" / f"{args.model}.yaml")["transformer"]
    text_features = sizes.get("crossattn_proj_in_channels", 192)
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
