"""The prompts' features, each prompt encoded once in a training.

Axes: B batch, L tokens, D features (every hidden state of the text encoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import Cosmos2_5_PredictBasePipeline

KEEP_GIB = 8.0  # a prompt of the 2B model is 0.1 GiB; beyond this, prompts are encoded again


class PromptFeatures:
    """Encodes prompts with the pipeline's own frozen text encoder and keeps them in main memory.

    Args:
        pipe: With tokenizer and text encoder.
        keep_gib: Memory for kept prompts.
    """

    def __init__(self, pipe: Cosmos2_5_PredictBasePipeline, keep_gib: float = KEEP_GIB) -> None:
        self._pipe, self._room_bytes = pipe, keep_gib * 2**30
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Return text_BLD on the device, in the text encoder's precision, as the pipeline makes it."""
        return torch.cat([self._one(prompt, device).to(device) for prompt in prompts])

    @torch.no_grad()
    def _one(self, prompt: str, device: torch.device) -> torch.Tensor:
        if prompt in self._kept:
            return self._kept[prompt]
        text_1LD, _ = self._pipe.encode_prompt([prompt], do_classifier_free_guidance=False, device=device)
        if text_1LD.nbytes <= self._room_bytes:
            self._kept[prompt] = text_1LD.cpu()
            self._room_bytes -= text_1LD.nbytes
        return text_1LD
