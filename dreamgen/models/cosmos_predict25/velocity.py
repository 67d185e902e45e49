"""The transformer's forward pass with the modulation computed once for each frame instead of each token.

Axes: B batch, C channels, T latent frames, H and W latent height and width, S tokens of one frame, L text tokens,
D features.

diffusers expands the per-frame timestep to every token before the modulation MLPs, so all tokens of a frame get equal
values. Here hidden states keep a frame axis and the modulation broadcasts over S. The arithmetic of each row is the
same, so the result differs by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock

Rope = tuple[torch.Tensor, torch.Tensor]
BlockForward = Callable[
    [CosmosTransformerBlock, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Rope], torch.Tensor
]


def block_forward(
    block: CosmosTransformerBlock,
    hidden_BTSD: torch.Tensor,
    text_BLD: torch.Tensor,
    embedded_timestep_BT1D: torch.Tensor,
    temb_BT1D: torch.Tensor,
    rope: Rope,
) -> torch.Tensor:
    """Run one transformer block: self-attention over all frames, cross-attention to the text, feed-forward.

    Returns:
        hidden_BTSD.
    """
    num_frames = hidden_BTSD.shape[1]
    modulated, gate = block.norm1(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    attended = block.attn1(modulated.flatten(1, 2), image_rotary_emb=rope)
    hidden_BTSD = hidden_BTSD + gate * attended.unflatten(1, (num_frames, -1))
    modulated, gate = block.norm2(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    attended = block.attn2(modulated.flatten(1, 2), encoder_hidden_states=text_BLD)
    hidden_BTSD = hidden_BTSD + gate * attended.unflatten(1, (num_frames, -1))
    modulated, gate = block.norm3(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    return hidden_BTSD + gate * block.ff(modulated)


def blocks_of(transformer: CosmosTransformer3DModel) -> list[CosmosTransformerBlock]:
    """Return the transformer's blocks; torch does not type what a ModuleList holds."""
    return cast(list[CosmosTransformerBlock], list(transformer.transformer_blocks))


def project_text(transformer: CosmosTransformer3DModel, text: torch.Tensor) -> torch.Tensor:
    """Apply the frozen cross-attention projection: 100,352 features a token become 1,024 in the real model.

    Args:
        text: The text encoder's output, (B, L, features of all its layers).

    Returns:
        text_BLD, what `velocity` takes.
    """
    return transformer.crossattn_proj(text) if transformer.config["use_crossattn_projection"] else text


def velocity(
    transformer: CosmosTransformer3DModel,
    latents_BCTHW: torch.Tensor,
    condition_mask_B1THW: torch.Tensor,
    timestep_BT: torch.Tensor,
    text_BLD: torch.Tensor,
    run_block: BlockForward | Sequence[BlockForward] = block_forward,
) -> torch.Tensor:
    """Predict the velocity, noise - clean, as `CosmosTransformer3DModel.forward` does.

    Args:
        transformer: A model with patches of one frame and without a learned position embedding, as Predict 2.5 is.
        latents_BCTHW: Noised latents with clean conditioning frames, in the transformer's dtype.
        condition_mask_B1THW: 1 on conditioning frames.
        timestep_BT: Noise level of each frame, float32.
        text_BLD: From `project_text`.
        run_block: `block_forward`, or a compiled or checkpointed version; a sequence has one for each block.

    Returns:
        velocity_BCTHW.
    """
    hidden_BTSD, embedded_BT1D, temb_BT1D, rope = embed(transformer, latents_BCTHW, condition_mask_B1THW, timestep_BT)
    blocks = blocks_of(transformer)
    for block, run in zip(blocks, [run_block] * len(blocks) if callable(run_block) else run_block, strict=True):
        hidden_BTSD = run(block, hidden_BTSD, text_BLD, embedded_BT1D, temb_BT1D, rope)
    hidden_BTSD = transformer.norm_out(hidden_BTSD, embedded_BT1D, temb_BT1D)
    height, width = latents_BCTHW.shape[-2:]
    return unpatchify(transformer.proj_out(hidden_BTSD), height, width, transformer.config["patch_size"])


def embed(
    transformer: CosmosTransformer3DModel,
    latents_BCTHW: torch.Tensor,
    condition_mask_B1THW: torch.Tensor,
    timestep_BT: torch.Tensor,
    rope: Rope | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Rope]:
    """Convert latents and noise levels to the inputs of the blocks.

    Args:
        transformer: A model with patches of one frame and without a learned position embedding, as Predict 2.5 is.
        latents_BCTHW, condition_mask_B1THW, timestep_BT: As `velocity` takes them.
        rope: The rotary embedding of the size, if it is known.

    Returns:
        hidden_BTSD, the embedded timestep and its modulation (BT1D each), and the rotary embedding.
    """
    config = transformer.config
    assert config["patch_size"][0] == 1 and not config["extra_pos_embed_type"], "not a Cosmos Predict 2.5 transformer"
    batch_size, _, num_frames, _, _ = latents_BCTHW.shape
    channels = [latents_BCTHW, condition_mask_B1THW]
    if config["concat_padding_mask"]:
        channels.append(torch.zeros_like(condition_mask_B1THW))
    stacked = torch.cat(channels, dim=1)
    hidden_BTSD = transformer.patch_embed(stacked).flatten(2, 3)
    temb, embedded_timestep = transformer.time_embed(hidden_BTSD, timestep_BT.flatten())
    temb_BT1D, embedded_BT1D = (x.view(batch_size, num_frames, 1, -1) for x in (temb, embedded_timestep))
    return hidden_BTSD, embedded_BT1D, temb_BT1D, rope or transformer.rope(stacked, fps=None)


def unpatchify(tokens_BTSD: torch.Tensor, height: int, width: int, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """Rearrange tokens to latents of a height and width. Returns latents_BCTHW."""
    _, patch_height, patch_width = patch_size
    # A token's features are ordered (patch row, patch column, channel), unlike in patchifying.
    tokens = tokens_BTSD.unflatten(3, (patch_height, patch_width, -1))
    tokens = tokens.unflatten(2, (height // patch_height, width // patch_width))  # B T h w ph pw C
    return tokens.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
