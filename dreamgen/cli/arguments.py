"""Parse the words after a command into settings, switches and paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamgen.config.loading import parse_settings
from dreamgen.config.paths import all_settings
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, closest_match
from dreamgen.stages import Stage, imported


@dataclass(frozen=True)
class Arguments:
    """Parsed words after a command.

    Args:
        settings: Settings of the command line, the preset, and the run folder.
        switches: Switch -> whether it was given.
        calls: Of a command that takes paths: the positional arguments of each call of its function.
    """

    settings: Settings
    switches: dict[str, bool]
    calls: list[tuple[Any, ...]] = field(default_factory=list)


def read_arguments(stage: Stage, words: Sequence[str]) -> Arguments:
    """Read the words after a command.

    Raises:
        UserError: for a word that the command does not take, a value of the wrong type, or a wrong number of paths.
    """
    flags = (*stage.flags, "json")
    if stage.takes_run and words and not words[0].startswith("-"):
        words = [f"--out={words[0]}", *words[1:]]
    if stage.words_are is not None:
        words = _with_words(stage.words_are, words)
    if not stage.takes_all_settings:
        paths, words = _split_paths(stage, words, flags)
    settings, switches = parse_settings(words, stage.section, flags)
    if not stage.paths:
        return Arguments(settings, switches)
    num = len(stage.paths)
    if (num > 1 and len(paths) != num) or (not paths and not stage.paths_optional):
        raise UserError(
            f"dreamgen {stage.name} needs {' and '.join(stage.paths)}: {stage.paths_help}",
            actual=" ".join(paths) or "none", next_step=stage.example,
        )  # fmt: skip
    if stage.expand_path is not None:
        expanded = imported(stage.expand_path)
        paths = [str(path) for given in paths for path in expanded(Path(given))]
    own = (getattr(settings, stage.section),) if stage.section else ()
    calls = [(*map(Path, paths[start : start + num]), *own) for start in range(0, len(paths), num)]
    return Arguments(settings, switches, calls or [own])


def _with_words(setting: str, words: Sequence[str]) -> list[str]:
    """Return the words with those before the first `--` as the value of a setting, a list."""
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return [f"--{setting}={json.dumps(list(words[:first]))}", *words[first:]] if first else list(words)


def _split_paths(stage: Stage, words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate paths from settings, for a command that takes no settings but its own.

    Returns:
        The paths; the other words, a switch of its settings as `--switch=true`.
    """
    prefix = f"{stage.section}." if stage.section else ""
    own = {path.removeprefix(prefix): setting for path, setting in all_settings().items()
           if (prefix and path.startswith(prefix)) or path in stage.settings}  # fmt: skip
    known = (*own, *flags, "help")
    paths: list[str] = []
    others: list[str] = []
    expects_value = False
    for word in words:
        key, has_value = word[2:].partition("=")[0].removeprefix(prefix), "=" in word
        if expects_value or (not word.startswith("-") and stage.paths):
            (others if expects_value else paths).append(word)
            expects_value = False
        elif not word.startswith("-") or key not in known:
            near = closest_match(key, known)
            raise UserError(
                f"dreamgen {stage.name} does not take {word}", allowed=", ".join(f"--{name}" for name in known),
                next_step=f"did you mean --{near}?" if near else stage.example,
            )  # fmt: skip
        else:
            is_switch = key not in own or bool in own[key].kinds
            others.append(f"--{key}=true" if key in own and is_switch and not has_value else word)
            expects_value = not is_switch and not has_value
    return paths, others
