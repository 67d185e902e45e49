"""A vision-language model in this process, through transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from dreamgen.errors import UserError
from dreamgen.models.judges.questions import ANSWERS

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.models.judges.questions import Question


class InProcess:
    """A model that answers with one token, whose probabilities are read.

    Args:
        name: Hub id or folder; safetensors only, and no code from the repository.
        revision: On the hub.
        device: Where to compute; float32 on the CPU, bfloat16 on a GPU.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, name: str, revision: str | None, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.name, self._device = name if revision is None else f"{name}@{revision}", device
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        try:
            self._processor: Any = AutoProcessor.from_pretrained(name, revision=revision)
            model = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, dtype=dtype, use_safetensors=True
            )
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"the judge {name} cannot be loaded", actual=f"{error}"[:300],
                allowed="a vision-language model that AutoModelForImageTextToText loads",
                next_step="--judge.model=HUB_ID_OR_FOLDER, or --judge.endpoint=URL",
            ) from None  # fmt: skip
        loaded: Any = model  # its `to` is typed for calls without a dtype only
        self._model = loaded.to(device).eval()

    @torch.inference_mode()
    def answer(self, question: Question, frames: list[np.ndarray], instruction: str) -> tuple[dict[str, float], str]:
        """Return log probabilities of the answers of the scale as the next token, and the likeliest of them."""
        images = [Image.fromarray(frame) for frame in frames]
        text = question.text(instruction, len(frames))
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self._processor(text=[prompt], images=images, return_tensors="pt").to(self._device)
        logits = self._model(**inputs).logits[0, -1].float().log_softmax(-1)
        logprobs = {}
        for word in ANSWERS[question.scale]:
            for written in (word, word.capitalize()):
                tokens = self._processor.tokenizer(written, add_special_tokens=False)["input_ids"]
                logprobs[written] = float(logits[tokens[0]])
        return logprobs, max(logprobs, key=lambda written: logprobs[written])
