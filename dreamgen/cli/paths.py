"""The commands that take paths: check, convert and doctor."""

from __future__ import annotations

from pathlib import Path

from dreamgen.cli.results import show
from dreamgen.cli.table import Command
from dreamgen.config.loading import parse_settings
from dreamgen.config.paths import all_settings
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError


def check_command(command: Command, rest: list[str]) -> int:
    """Check each dataset that is named; what begins with -- is a setting of the check."""
    paths, words = paths_and_settings("check", command, rest)
    settings, switches = parse_settings(words, command.section, (*command.flags, "json"))
    if not paths:
        raise UserError("dreamgen check needs a dataset", next_step=command.example)
    results = [command.load()(Path(path), settings, switches["fix"]) for path in paths]
    return show(results, switches["json"])


def convert_command(command: Command, rest: list[str]) -> int:
    """Convert SRC to DST; what begins with -- is a setting of the conversion."""
    paths, words = paths_and_settings("convert", command, rest)
    if len(paths) != 2:
        raise UserError(
            "dreamgen convert needs two folders, SRC and DST", actual=" ".join(paths) or "none",
            next_step=command.example,
        )  # fmt: skip
    settings, switches = parse_settings(words, command.section, (*command.flags, "json"))
    return show([command.load()(*map(Path, paths), settings)], switches["json"])


def paths_and_settings(name: str, command: Command, rest: list[str]) -> tuple[list[str], list[str]]:
    """Tell paths from settings for a command that takes both.

    Returns:
        The paths; the words that set something, a switch as `--switch=true`.

    Raises:
        UserError: for a setting that is not the command's own.
    """
    own = {path.removeprefix(f"{name}."): setting for path, setting in setting_paths(Settings)
           if path.startswith(f"{name}.")}  # fmt: skip
    paths, words, expects_value = [], [], False
    for word in rest:
        key, has_value = word[2:].partition("=")[0].removeprefix(f"{name}."), "=" in word
        if expects_value or not word.startswith("-"):
            (words if expects_value else paths).append(word)
            expects_value = False
        elif key not in (*own, *command.flags, "json"):
            allowed = ", ".join(f"--{known}" for known in (*own, *command.flags, "json", "help"))
            raise UserError(f"dreamgen {name} does not know {word}", allowed=allowed, next_step=command.example)
        else:
            is_switch = key not in own or str(own[key].type) == "bool"
            words.append(f"--{key}=true" if key in own and is_switch and not has_value else word)
            expects_value = not is_switch and not has_value
    return paths, words


def doctor_command(command: Command, rest: list[str]) -> int:
    """Describe this machine, and the disk of each run folder that is named."""
    paths = [word for word in rest if word != "--json"]
    unknown = [word for word in paths if word.startswith("-")]
    if unknown:
        raise UserError(f"dreamgen doctor does not know {unknown[0]}", allowed="--json, --help")
    results = [command.load()(Path(path)) for path in paths] or [command.load()()]
    return show(results, "--json" in rest)
