"""Prompts that are longer than what a text encoder reads: which are cut, where, and which become the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.models.world_model import model_type

NUM_SHOWN, NUM_CHARACTERS = 5, 60


@dataclass(frozen=True)
class CutPrompt:
    """A prompt that the text encoder does not read to its end.

    Args:
        prompt: The whole prompt.
        num_read: Its characters that are read.
        num_tokens: Tokens of the whole prompt, with those that the model adds.
        max_tokens: Tokens that are read.
        tokens_read: What the encoder gets; two prompts with the same give the same clip.
    """

    prompt: str
    num_read: int
    num_tokens: int
    max_tokens: int
    tokens_read: bytes


def check_prompt_lengths(
    model: ModelSettings, build_folder: Path, sources: Mapping[str, str], may_download: bool,
    planned: Iterable[str] = (),
) -> list[str]:  # fmt: skip
    """Measure prompts with the model's own tokenizer.

    Args:
        model: Settings of the world model.
        build_folder: Of a model that is built on first use.
        sources: Each distinct prompt, and where it comes from.
        may_download: Whether the tokenizer may be downloaded.
        planned: Prompts that clips are made with already.

    Returns:
        Notes: which prompts are cut and where, or that they were not measured.

    Raises:
        UserError: if a prompt becomes the same as another one, or as one of `planned`.
    """
    kind = model_type(model)
    long = [prompt for prompt in dict.fromkeys([*sources, *planned])
            if num_bytes(prompt) > kind.max_uncut_bytes]  # fmt: skip
    if not long:
        return []
    cut = kind.load_class().cut_prompts(model, build_folder, long, may_download)
    if cut is None:
        return [f"the texts' lengths were not measured: the tokenizer of {model.path} is not on this machine"]
    by_tokens: dict[bytes, list[CutPrompt]] = {}
    for prompt in cut:
        by_tokens.setdefault(prompt.tokens_read, []).append(prompt)
    same = [group for group in by_tokens.values() if len(group) > 1 and any(p.prompt in sources for p in group)]
    if same:
        first = same[0]
        raise UserError(
            f"{sum(map(len, same))} different texts become the same: they differ only in what the text encoder ignores",
            actual="\n".join(_described(prompt, sources) for prompt in first[:NUM_SHOWN]),
            allowed=f"texts that differ within {first[0].max_tokens} tokens",
            next_step="shorten them, or put what differs at the beginning",
        )
    return _notes([p for p in cut if p.num_read < len(p.prompt) and p.prompt in sources], sources)


def num_bytes(prompt: str) -> int:
    """Return the length of a prompt in UTF-8; tokenizers compose it (NFC), which makes some characters longer."""
    return max(len(text.encode("utf-8", "replace")) for text in (prompt, unicodedata.normalize("NFC", prompt)))


def _notes(cut: Sequence[CutPrompt], sources: Mapping[str, str]) -> list[str]:
    notes = [f"text cut: {_described(prompt, sources)}" for prompt in cut[:NUM_SHOWN]]
    if len(cut) > NUM_SHOWN:
        notes.append(f"text cut: and {len(cut) - NUM_SHOWN} others")
    return notes


def _described(prompt: CutPrompt, sources: Mapping[str, str]) -> str:
    read, lost = prompt.prompt[: prompt.num_read], prompt.prompt[prompt.num_read :]
    ending = lost if len(lost) <= 2 * NUM_CHARACTERS else f"{lost[:NUM_CHARACTERS]}...{lost[-NUM_CHARACTERS:]}"
    return (
        f"{sources.get(prompt.prompt, 'planned before')}: {prompt.num_tokens} tokens, of which {prompt.max_tokens} are "
        f'read, to "...{read[-NUM_CHARACTERS:]}"; not read: "{ending}"'
    )
