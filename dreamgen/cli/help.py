"""The texts of `dreamgen --help` and `dreamgen COMMAND --help`, from the commands' table and the settings."""

from __future__ import annotations

import dataclasses

from dreamgen.cli.table import COMMANDS, FLAG_HELP
from dreamgen.config.paths import all_settings
from dreamgen.config.settings import Settings, default_of


def overview() -> str:
    """Return the text of `dreamgen --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        "DreamGen: robot demonstrations in, a policy-ready synthetic dataset out.",
        "",
        "usage: dreamgen COMMAND [--config_path FILE] [--setting=value ...]",
        "",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "dreamgen COMMAND --help shows its settings with their defaults.",
        "Exit status: 0 all done, 1 failed, 2 wrong usage or input, 3 done in part.",
        "",
        "Try it without any data:  dreamgen demo",
    ]
    return "\n".join(lines)


def command_help(name: str) -> str:
    """Return the text of `dreamgen NAME --help`: switches, its own settings, then those that stages share."""
    command = COMMANDS[name]
    lines = [f"dreamgen {name}: {command.summary}", "", "example:", f"  {command.example}", "", "switches:"]
    lines += [f"  --{flag:<36} {FLAG_HELP[flag]}" for flag in (*command.flags, "json")]
    if name == "doctor":
        return "\n".join([*lines, "  [OUT]: a run folder, whose disk is looked at"])
    if name in ("check", "convert"):
        what = {
            "check": "PATH ...: datasets",
            "convert": "SRC DST: a LeRobot dataset, and a folder that does not exist",
        }
        own = [_setting_line(path.partition(".")[2], setting) for path, setting in setting_paths(Settings)
               if path.startswith(f"{name}.")]  # fmt: skip
        return "\n".join([*lines, f"  {what[name]}", "", "settings:", *own])
    if name == "demo":
        return "\n".join([*lines, f"  --{'out FOLDER':<36} the run folder [runs/demo]"])
    lines.append(f"  --{'config_path FILE':<36} a preset, or a run's run.yaml; the command line wins over it")
    own, shared = [], []
    for path, setting in setting_paths(Settings):
        section, _, rest = path.partition(".")
        if command.section is None or section == command.section:
            own.append(_setting_line(rest if command.section else path, setting))
        elif not rest or section in ("model", "video"):
            shared.append(_setting_line(path, setting))
    lines += ["", "settings:", *own]
    lines += ["", "shared by all stages:", *shared] if shared else []
    return "\n".join(lines)


def _setting_line(path: str, setting: dataclasses.Field) -> str:
    default = default_of(setting)
    shown = "" if default is None else f" [{default}]"
    return f"  --{path:<36} {setting.metadata['help']}{shown}"
