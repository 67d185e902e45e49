"""Prompts: the text that a model reads, a prefix and an instruction."""

from __future__ import annotations


def bare_instruction(text: str, prefix: str) -> str:
    """Return an instruction on one line, without the prompt's prefix if it begins with it."""
    text, prefix = " ".join(text.split()), " ".join(prefix.split())
    return text[len(prefix) :].strip() if prefix and f"{text} ".startswith(f"{prefix} ") else text
