"""Prompts: the text that a model reads, a prefix and an instruction."""

from __future__ import annotations

MAX_SAMPLE = 300  # characters


def bare_instruction(text: str, prefix: str) -> str:
    """Return an instruction on one line, without the prompt's prefix if it begins with it."""
    text, prefix = " ".join(text.split()), " ".join(prefix.split())
    return text[len(prefix) :].strip() if prefix and f"{text} ".startswith(f"{prefix} ") else text


def sample_prompt(prompt: str) -> str:
    """Return the beginning of a prompt as a sample of what the model reads."""
    return prompt if len(prompt) <= MAX_SAMPLE else f"{prompt[:MAX_SAMPLE]}..."
