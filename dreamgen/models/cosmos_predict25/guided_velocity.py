"""The velocity for the prompt and the negative prompt, for sampling: what both passes share is computed once, and a
prompt's keys and values in each block once for each clip.

Axes: B batch, C channels, T latent frames, H and W latent height and width, S tokens of one frame, L text tokens,
D features, N heads.

Exact: the same products as `CosmosTransformer3DModel.forward` makes, in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import CosmosTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock

from dreamgen.models.cosmos_predict25.velocity import Rope, blocks_of, embed, unpatchify

KeysValues = tuple[torch.Tensor, torch.Tensor]


def self_attention(
    block: CosmosTransformerBlock,
    hidden_BTSD: torch.Tensor,
    embedded_timestep_BT1D: torch.Tensor,
    temb_BT1D: torch.Tensor,
    rope: Rope,
) -> torch.Tensor:
    """Run the first part of a block, which does not use the text. Returns hidden_BTSD."""
    modulated, gate = block.norm1(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    attended = block.attn1(modulated.flatten(1, 2), image_rotary_emb=rope)
    return hidden_BTSD + gate * attended.unflatten(1, (hidden_BTSD.shape[1], -1))


def text_and_feed_forward(
    block: CosmosTransformerBlock,
    hidden_BTSD: torch.Tensor,
    text_BNLD: KeysValues,
    embedded_timestep_BT1D: torch.Tensor,
    temb_BT1D: torch.Tensor,
) -> torch.Tensor:
    """Run the rest of a block with the keys and values of a text. Returns hidden_BTSD."""
    modulated, gate = block.norm2(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    attended = _attend(block.attn2, modulated.flatten(1, 2), text_BNLD)
    hidden_BTSD = hidden_BTSD + gate * attended.unflatten(1, (hidden_BTSD.shape[1], -1))
    modulated, gate = block.norm3(hidden_BTSD, embedded_timestep_BT1D, temb_BT1D)
    return hidden_BTSD + gate * block.ff(modulated)


def whole_block(
    block: CosmosTransformerBlock,
    hidden_BTSD: torch.Tensor,
    text_BNLD: KeysValues,
    embedded_timestep_BT1D: torch.Tensor,
    temb_BT1D: torch.Tensor,
    rope: Rope,
) -> torch.Tensor:
    """Run a whole block with the keys and values of a text. Returns hidden_BTSD."""
    hidden_BTSD = self_attention(block, hidden_BTSD, embedded_timestep_BT1D, temb_BT1D, rope)
    return text_and_feed_forward(block, hidden_BTSD, text_BNLD, embedded_timestep_BT1D, temb_BT1D)


@dataclass(frozen=True)
class BlockParts:
    """Forward passes of blocks, plain or compiled.

    Args:
        first: Part of the first block that does not use the text.
        rest: The remainder of the first block.
        whole: A whole block, for all others.
    """

    first: Callable[..., torch.Tensor] = self_attention
    rest: Callable[..., torch.Tensor] = text_and_feed_forward
    whole: Callable[..., torch.Tensor] = whole_block


def compiled_parts() -> BlockParts:
    """Compile each part once for all blocks; the first call with a size takes about a minute."""
    compiled = (torch.compile(part, dynamic=False, fullgraph=True) for part in
                (self_attention, text_and_feed_forward, whole_block))  # fmt: skip
    return BlockParts(*compiled)


def text_keys_values(transformer: CosmosTransformer3DModel, text_BLD: torch.Tensor) -> list[KeysValues]:
    """Project a text to the keys and values of every block's cross-attention, which are constant over the steps.

    Args:
        transformer: With its adapter fused.
        text_BLD: From `project_text`.

    Returns:
        One pair for each block, BNLD each.
    """
    return [_keys_values(block.attn2, text_BLD) for block in blocks_of(transformer)]


def velocities(
    transformer: CosmosTransformer3DModel,
    latents_BCTHW: torch.Tensor,
    condition_mask_B1THW: torch.Tensor,
    timestep_BT: torch.Tensor,
    texts: Sequence[Sequence[KeysValues]],
    parts: BlockParts,
    rope: Rope | None = None,
) -> list[torch.Tensor]:
    """Predict the velocity for each text, all with the same latents.

    Args:
        transformer: Frozen, in eval mode.
        latents_BCTHW: Noised latents with clean conditioning frames, in the transformer's dtype.
        condition_mask_B1THW: 1 on conditioning frames.
        timestep_BT: Noise level of each frame, float32.
        texts: `text_keys_values` of each.
        parts: Forward passes of the blocks.
        rope: The rotary embedding of the size, if it is known.

    Returns:
        velocity_BCTHW for each text.
    """
    hidden_BTSD, embedded_BT1D, temb_BT1D, rope = embed(
        transformer, latents_BCTHW, condition_mask_B1THW, timestep_BT, rope
    )
    first, *others = blocks_of(transformer)
    # The text enters in the second part of the first block; up to there all passes are the same.
    shared_BTSD = parts.first(first, hidden_BTSD, embedded_BT1D, temb_BT1D, rope)
    velocities_BCTHW = []
    for text in texts:
        hidden_BTSD = parts.rest(first, shared_BTSD, text[0], embedded_BT1D, temb_BT1D)
        for block, keys_values in zip(others, text[1:], strict=True):
            hidden_BTSD = parts.whole(block, hidden_BTSD, keys_values, embedded_BT1D, temb_BT1D, rope)
        hidden_BTSD = transformer.norm_out(hidden_BTSD, embedded_BT1D, temb_BT1D)
        height, width = latents_BCTHW.shape[-2:]
        velocities_BCTHW.append(
            unpatchify(transformer.proj_out(hidden_BTSD), height, width, transformer.config["patch_size"])
        )
    return velocities_BCTHW


def _keys_values(attention: Attention, text_BLD: torch.Tensor) -> KeysValues:
    assert attention.to_k is not None and attention.to_v is not None and attention.norm_k is not None
    keys, values = (
        project(text_BLD).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_k, attention.to_v)
    )
    return attention.norm_k(keys), values


def _attend(attention: Attention, hidden_BLD: torch.Tensor, text_BNLD: KeysValues) -> torch.Tensor:
    assert attention.norm_q is not None and attention.to_out is not None
    queries_BNLD = attention.norm_q(attention.to_q(hidden_BLD).unflatten(2, (attention.heads, -1)).transpose(1, 2))
    attended_BNLD = F.scaled_dot_product_attention(queries_BNLD, *text_BNLD)
    return attention.to_out[0](attended_BNLD.transpose(1, 2).flatten(2, 3).type_as(queries_BNLD))
