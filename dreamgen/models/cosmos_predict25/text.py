"""What the model reads of a prompt: its tokens, and its features after the transformer's frozen projection.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from transformers import PreTrainedTokenizerBase

from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS
from dreamgen.models.cosmos_predict25.velocity import project_text
from dreamgen.models.prompt_length import CutPrompt

# What the pipeline puts before every prompt; it counts among the tokens.
SYSTEM_TEXT = "You are a helpful assistant who will provide prompts to an image generator."


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
    return project_text(transformer, zero).expand(1, NUM_TEXT_TOKENS, -1).contiguous()


def cut_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[CutPrompt]:
    """Return the prompts that the pipeline does not read to their end."""
    found = []
    for prompt in prompts:
        turns = [("system", SYSTEM_TEXT), ("user", prompt)]
        conversation = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], np.int64)
        if len(ids) > NUM_TEXT_TOKENS:
            end = encoded["offset_mapping"][NUM_TEXT_TOKENS - 1][1] - text.rfind(prompt)
            num_read = min(max(end, 0), len(prompt))
            found.append(CutPrompt(prompt, num_read, len(ids), NUM_TEXT_TOKENS, ids[:NUM_TEXT_TOKENS].tobytes()))
    return found
