"""The prompts' features after the transformer's frozen projection, which is all that its blocks read of them.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.models.cosmos_predict25.velocity import project_text

NUM_TOKENS = 512  # the pipeline's own length of every prompt
KEEP_GIB = 4.0  # a prompt is 1 MB in the 2B model; beyond this, prompts are read or encoded again


@torch.no_grad()
def encode_text(pipe: Cosmos2_5_PredictBasePipeline, prompt: str | None) -> torch.Tensor:
    """Encode a prompt as the pipeline does and project it.

    Args:
        pipe: With tokenizer and text encoder, which only a prompt needs.
        prompt: None stands for a dropped text: zeros before the projection.

    Returns:
        text_1LD on the transformer's device, in the model's dtype.
    """
    transformer = pipe.transformer
    if prompt is not None:
        text, _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False, device=transformer.device)
        return project_text(transformer, text)
    config = transformer.config
    width = config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim
    # Every token of a dropped text is projected to the same features: those of the bias.
    zero = torch.zeros(1, 1, width, dtype=pipe.vae.dtype, device=transformer.device)
    return project_text(transformer, zero).expand(1, NUM_TOKENS, -1).contiguous()


class ProjectedTexts:
    """Gives projected prompts, each read or encoded once and kept in main memory.

    Args:
        read: Returns text_1LD of a prompt, or of a dropped text for None.
        device: Where the step needs them.
        keep_gib: Memory for kept prompts.
    """

    def __init__(
        self, read: Callable[[str | None], torch.Tensor], device: torch.device, keep_gib: float = KEEP_GIB
    ) -> None:
        self._read, self._device, self._room_bytes = read, device, keep_gib * 2**30
        self._kept: dict[str | None, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str | None]) -> torch.Tensor:
        """Return text_BLD on the device; None stands for a dropped text."""
        return torch.cat([self._one(prompt).to(self._device, non_blocking=True) for prompt in prompts])

    def _one(self, prompt: str | None) -> torch.Tensor:
        if prompt in self._kept:
            return self._kept[prompt]
        text_1LD = self._read(prompt)
        if text_1LD.nbytes <= self._room_bytes:
            self._room_bytes -= text_1LD.nbytes
            text_1LD = text_1LD.cpu()
            # Only a copy from pinned memory runs beside the GPU's work.
            self._kept[prompt] = text_1LD.pin_memory() if self._device.type == "cuda" else text_1LD
        return text_1LD
