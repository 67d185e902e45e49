"""Prompt features after the transformer's frozen projection, which is all that its blocks read of a prompt.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.models.cosmos_predict25.velocity import project_text

NUM_TOKENS = 512  # the pipeline pads every prompt to this


@torch.no_grad()
def encode_text(pipe: Cosmos2_5_PredictBasePipeline, prompt: str | None) -> torch.Tensor:
    """Encode a prompt as the pipeline does and project it.

    Args:
        pipe: With tokenizer and text encoder; a dropped prompt needs neither.
        prompt: None for a dropped prompt: zeros before the projection.

    Returns:
        text_1LD on the transformer's device, in the model's dtype.
    """
    transformer = pipe.transformer
    if prompt is not None:
        text, _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False, device=transformer.device)
        return project_text(transformer, text)
    config = transformer.config
    width = config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim
    # Every token of a dropped prompt is projected to the same features: those of the bias.
    zero = torch.zeros(1, 1, width, dtype=pipe.vae.dtype, device=transformer.device)
    return project_text(transformer, zero).expand(1, NUM_TOKENS, -1).contiguous()
