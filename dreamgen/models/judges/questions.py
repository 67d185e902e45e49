"""What a vision-language model is asked about a clip, and how its answer becomes a number.

Axes: T frames, H height, W width, C channels. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreamgen.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Scale = Literal["binary", "five"]
QUESTIONS = ("instruction_following", "physical_plausibility")
ANSWERS: Mapping[str, dict[str, float]] = {
    "binary": {"yes": 1.0, "no": 0.0, "1": 1.0, "0": 0.0},
    "five": {str(number): (number - 1) / 4 for number in range(1, 6)},
}
FIELDS = ("{instruction}", "{num_frames}")


@dataclass(frozen=True)
class Question:
    """One question about a clip.

    Args:
        name: Of its metric.
        scale: Of the answers.
        template: Text with `{instruction}` and `{num_frames}`.
    """

    name: str
    scale: Scale
    template: str

    @property
    def sha256(self) -> str:
        """Return the hash of the text, the first 12 hex digits."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:12]

    def text(self, instruction: str, num_frames: int) -> str:
        """Return the text to ask; braces in the instruction stay as they are."""
        return self.template.replace("{num_frames}", str(num_frames)).replace("{instruction}", instruction)


def read_questions(folder: str | None, scale: Scale) -> list[Question]:
    """Read `NAME.SCALE.txt` of each question.

    Args:
        folder: With the user's own texts; those that it lacks, and None, mean DreamGen's.
        scale: "binary" or "five".

    Raises:
        UserError: if the folder has none of the files, or a text asks for a field that does not exist.
    """
    shipped, questions = Path(__file__).parent / "prompts", []
    names = {name: f"{name}.{scale}.txt" for name in QUESTIONS}
    if folder is not None and not any((Path(folder) / file).is_file() for file in names.values()):
        raise UserError("judge.prompts has no prompt", actual=folder, allowed=" or ".join(names.values()))
    for name, file in names.items():
        own = Path(folder) / file if folder is not None else None
        path = own if own is not None and own.is_file() else shipped / file
        template = path.read_text(encoding="utf-8").strip()
        if unknown := set(re.findall(r"\{[a-z_]+\}", template)) - set(FIELDS):
            raise UserError(f"{path} has an unknown field", actual=", ".join(unknown), allowed=", ".join(FIELDS))
        questions.append(Question(name, scale, template))
    return questions


def value_of_text(text: str, scale: Scale) -> float | None:
    """Return what an answer in words says, 0 to 1: the first answer of the scale after any thinking.

    Reasoning models write `<think>...</think>` before the answer, or `<answer>...</answer>` around it.
    """
    marked = re.search(r"<answer>(.*?)(</answer>|$)", text, re.DOTALL | re.IGNORECASE)
    answer = marked.group(1) if marked else text.rpartition("</think>")[2]
    found = re.search(rf"\b({'|'.join(ANSWERS[scale])})\b", answer, re.IGNORECASE)
    return ANSWERS[scale][found.group(1).lower()] if found else None


def value_of_logprobs(logprobs: Mapping[str, float], scale: Scale) -> float | None:
    """Return the expected value of the first token of an answer, 0 to 1, over those of the scale.

    The probability of "yes" orders clips better than the word (Lin et al., "Evaluating text-to-visual generation with
    image-to-text generation", 2024).

    Args:
        logprobs: Token -> log probability, of the likeliest tokens.
        scale: Of the answers.

    Returns:
        The mean over the answers, weighted by their probabilities; None if no token is an answer.
    """
    weights: dict[str, float] = {}
    for token, logprob in logprobs.items():
        word = token.strip().lower()
        if word in ANSWERS[scale]:
            weights[word] = weights.get(word, 0.0) + math.exp(logprob)
    total = sum(weights.values())
    return sum(ANSWERS[scale][word] * weight for word, weight in weights.items()) / total if total > 0 else None


def sampled_frames(video_THWC: np.ndarray, num_frames: int, max_px: int) -> list[np.ndarray]:
    """Return evenly spaced frames with the first and the last, no side longer than `max_px`."""
    import cv2
    import numpy as np

    frames = []
    for index in np.unique(np.linspace(0, len(video_THWC) - 1, num_frames).round().astype(int)):
        frame_HWC = video_THWC[index]
        scale = max_px / max(frame_HWC.shape[:2])
        if scale < 1:
            size = (max(1, round(frame_HWC.shape[1] * scale)), max(1, round(frame_HWC.shape[0] * scale)))
            frame_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
        frames.append(frame_HWC)
    return frames
