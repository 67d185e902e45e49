"""The texts of `dreamgen --help` and `dreamgen COMMAND --help`, from the table of stages and the settings."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from dreamgen.config.paths import Setting, all_settings
from dreamgen.stages import COMMANDS, Stage

FLAG_HELP = {
    "dry_run": "write nothing: show counts, sample prompts and estimates",
    "resume": "continue in an existing run folder; finished work is kept",
    "calibrate": "set thresholds from the demonstrations, so that 2 % of real clips are rejected, and write a preset",
    "overwrite": "replace datasets that this run wrote, each when the new one is whole; with --resume, only those that "
    "are out of date",
    "fix": "repair what is safe (totals, splits, statistics, index columns); originals are kept as NAME.before-fix",
    "json": "print the result as JSON",
}
NAME_WIDTH, MIN_WIDTH, MAX_WIDTH = 34, 80, 120
SHARED_SECTIONS = ("model", "video")


def overview() -> str:
    """Return the text of `dreamgen --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        "DreamGen: turn robot demonstrations into a policy-ready synthetic dataset.",
        "",
        "usage: dreamgen COMMAND [--config_path FILE] [--setting=value ...]",
        "",
        *(f"  {name:<{width}}  {stage.summary}" for name, stage in COMMANDS.items()),
        "",
        "dreamgen COMMAND --help shows the settings of a command with their defaults and bounds.",
        "Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 partly done.",
        "",
        "To try it without data: dreamgen demo",
    ]
    return "\n".join(lines)


def command_help(stage: Stage) -> str:
    """Return the text of `dreamgen COMMAND --help`: its switches, its own settings, then the shared ones."""
    lines = [f"dreamgen {stage.name}: {stage.summary}", "", "example:", f"  {stage.example}", ""]
    if stage.words_are is not None:
        lines += ["arguments:", *_entry("NAME ...", f"values of --{stage.words_are}, before the settings"), ""]
    if stage.takes_run:
        lines += ["paths:", *_entry("RUN", "the run folder, instead of --out"), ""]
    if stage.paths:
        lines += ["paths:", *_entry(" ".join(stage.paths), stage.paths_help), ""]
    lines += ["switches:"]
    for flag in (*stage.flags, "json"):
        lines += _entry(f"--{flag}", FLAG_HELP[flag])
    if stage.takes_all_settings:
        lines += _entry("--config_path FILE", "a preset such as mini, or a YAML file; the command line overrides it")
    own, shared = _settings_of(stage)
    for title, settings in (("settings:", own), ("shared by all stages:", shared)):
        lines += ["", title] if settings else []
        for name, setting in settings:
            lines += _entry(f"--{name}", f"{setting.option.help} {_default_and_bounds(setting)}".strip())
    return "\n".join(lines)


def _settings_of(stage: Stage) -> tuple[list[tuple[str, Setting]], list[tuple[str, Setting]]]:
    """Return a command's own settings, by the name that it knows them by, and those that all stages share."""
    own, shared = [], []
    for path, setting in all_settings().items():
        is_top = setting.section == path
        if stage.settings or (stage.paths and not stage.section):
            own += [(path, setting)] if path in stage.settings else []
        elif stage.section is None:
            own += [(path, setting)] if stage.flags or path == "out" else []  # status only reads the run
        elif setting.section == stage.section:
            own.append((path.partition(".")[2], setting))
        elif setting.section in stage.more_sections:
            own.append((setting.public_path, setting))
        elif stage.takes_all_settings and (is_top or setting.section in SHARED_SECTIONS):
            shared.append((path, setting))
    return own, shared


def _default_and_bounds(setting: Setting) -> str:
    default = setting.default
    shown = "" if default in (None, "", {}) else str(default)
    if shown != shown.strip():
        shown = repr(default)  # prompt_prefix ends with a space
    if isinstance(default, list):
        shown = ", ".join(default)
    elif isinstance(default, bool):
        shown = shown.lower()
    elif isinstance(default, float):
        shown = f"{default:.4g}"
    parts = [f"default: {shown}"] if shown else []
    parts += [bounds] if (bounds := setting.option.bounds()) else []
    parts += [f"choices: {', '.join(map(str, setting.choices))}"] if setting.choices else []
    return f"({'; '.join(parts)})" if parts else ""


def _entry(name: str, text: str) -> Sequence[str]:
    """Return a name with its text beside it, wrapped to the terminal."""
    width = min(max(shutil.get_terminal_size((MAX_WIDTH, 0)).columns, MIN_WIDTH), MAX_WIDTH)
    indent = " " * (NAME_WIDTH + 3)
    lines = textwrap.wrap(text, width - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    head = f"  {name:<{NAME_WIDTH}} "
    if len(name) > NAME_WIDTH:
        return [f"  {name}", *(indent + line for line in lines)]
    return [head + lines[0], *(indent + line for line in lines[1:])]
