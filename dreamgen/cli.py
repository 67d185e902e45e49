"""The commands: parse settings, call one stage, print its result. Heavy libraries are imported inside it only."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgen import __version__
from dreamgen.core.config import parse_settings, setting_paths
from dreamgen.core.errors import CannotWrite, UserError, closest_match
from dreamgen.core.progress import log
from dreamgen.core.records import StageResult
from dreamgen.core.settings import Settings, default_of

ALL_DONE, FAILED, WRONG_USAGE, DONE_IN_PART = 0, 1, 2, 3


@dataclass(frozen=True)
class Command:
    """One word of the command line.

    Args:
        summary: What it does, in a line.
        function: `module:name`, imported when the command runs.
        section: The settings that may be named without their section.
        flags: Switches it takes beside `--json`.
        example: A command that can be copied.
    """

    summary: str
    function: str
    section: str | None
    flags: tuple[str, ...]
    example: str


COMMANDS = {
    "prepare": Command(
        "demonstrations -> training set", "dreamgen.commands:prepare_stage", "prepare", ("dry_run", "resume"),
        "dreamgen prepare --demos path/to/lerobot_dataset --out runs/pick",
    ),
    "finetune": Command(
        "training set -> LoRA or DoRA adapter", "dreamgen.commands:finetune_stage", "finetune", ("dry_run", "resume"),
        "dreamgen finetune --out runs/pick --method dora --lora.rank=16",
    ),
    "plan": Command(
        "first frames x instructions x seeds -> jobs", "dreamgen.commands:plan_stage", "plan", ("dry_run", "resume"),
        "dreamgen plan --out runs/pick --first_frames path/to/pairs --num_seeds 5",
    ),
    "generate": Command(
        "jobs -> clips on Ray; does what is not done yet", "dreamgen.commands:generate_stage", "generate",
        ("dry_run", "resume"), "dreamgen generate --out runs/pick --limit 4",
    ),
    "status": Command(
        "a job from another shell: done, rate, time left, failures", "dreamgen.commands:status_stage", None, (),
        "dreamgen status --out runs/pick --json",
    ),
    "label": Command(
        "clips -> actions, by inverse dynamics trained on the demonstrations", "dreamgen.commands:label_stage", "idm",
        ("resume",), "dreamgen label --out runs/pick",
    ),
    "curate": Command(
        "clips -> verdicts", "dreamgen.commands:curate_stage", "curate", ("resume",),
        "dreamgen curate --out runs/pick --min_motion=1.0",
    ),
    "export": Command(
        "accepted clips -> LeRobot and HDF5 datasets", "dreamgen.commands:export_stage", "export", ("resume",),
        "dreamgen export --out runs/pick --formats='[lerobot-v3.0]'",
    ),
    "check": Command(
        "verify a LeRobot, robomimic or ACT dataset, ours or not", "dreamgen.commands:check_stage", "check", ("fix",),
        "dreamgen check runs/pick/datasets/lerobot-v3.0",
    ),
    "convert": Command(
        "LeRobot v2.0 or v2.1 -> v3.0, or v3.0 -> v2.1; streams are copied", "dreamgen.commands:convert_stage",
        "convert", (), "dreamgen convert path/to/lerobot_v21 path/to/lerobot_v30",
    ),
    "run": Command(
        "all stages in order", "dreamgen.pipeline:run_all", None, ("dry_run", "resume"),
        "dreamgen run --config_path configs/mini.yaml --demos path/to/lerobot_dataset --out runs/pick",
    ),
    "report": Command(
        "the run on one page, report.html", "dreamgen.commands:report_stage", "report", ("resume",),
        "dreamgen report --out runs/pick",
    ),
    "doctor": Command(
        "versions, GPU, codecs, disk, login: one block for a bug report", "dreamgen.commands:doctor_stage", None, (),
        "dreamgen doctor",
    ),
    "demo": Command(
        "the whole job on demonstrations that it makes itself, on a CPU", "dreamgen.commands:run_demo", None, (),
        "dreamgen demo --out runs/demo",
    ),
}  # fmt: skip

FLAG_HELP = {
    "dry_run": "write nothing: counts, sample prompts, estimates",
    "resume": "go on in an existing run folder; what is done is kept",
    "fix": "repair what is safe (totals, splits, statistics, index columns); originals are kept beside",
    "json": "print the result as JSON",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 all done, 1 failed, 2 wrong usage or input, 3 done in part.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        log(f"error: {error}")
        return FAILED if isinstance(error, CannotWrite) else WRONG_USAGE
    except KeyboardInterrupt:
        log("stopped. What was finished is kept; the same command with --resume goes on.")
        return DONE_IN_PART
    except BrokenPipeError:
        # The reader of stdout (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.filename is None:
            raise
        log(f"error: {error.filename}: {error.strerror}")  # no space, no permission: nothing that a traceback explains
        return FAILED


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return ALL_DONE if words else WRONG_USAGE
    if words[0] in ("-V", "--version"):
        print(f"dreamgen {__version__}")
        return ALL_DONE
    name, *rest = words
    if name not in COMMANDS:
        nearest = closest_match(name, COMMANDS)
        raise UserError(
            f"unknown command: {name}",
            allowed=", ".join(COMMANDS),
            next_step=f"dreamgen {nearest or '--help'}",
        )
    command = COMMANDS[name]
    if "-h" in rest or "--help" in rest:
        print(command_help(name))
        return ALL_DONE
    if name == "check":
        return _check_command(command, rest)
    if name == "convert":
        return _convert_command(command, rest)
    if name == "doctor":
        return _doctor_command(command, rest)
    if name == "demo":
        _only_out(rest)
    settings, switches = parse_settings(rest, command.section, (*command.flags, "json"))
    as_json = switches.pop("json")
    results = _load(command.function)(settings, **switches)
    return show(results if isinstance(results, list) else [results], as_json)


def _only_out(rest: list[str]) -> None:
    """The demo is one fixed job: any other setting would be read and then not count."""
    keys = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    for key in keys:
        if key not in ("out", "json"):
            raise UserError(
                f"dreamgen demo does not take --{key}", allowed="--out FOLDER, --json",
                next_step="dreamgen run --config_path mini takes every setting",
            )  # fmt: skip


def _check_command(command: Command, rest: list[str]) -> int:
    """Check each dataset that is named; what begins with -- is a setting of the check."""
    paths, words = paths_and_settings("check", command, rest)
    settings, switches = parse_settings(words, command.section, (*command.flags, "json"))
    if not paths:
        raise UserError("dreamgen check needs a dataset", next_step=command.example)
    results = [_load(command.function)(Path(path), settings, switches["fix"]) for path in paths]
    return show(results, switches["json"])


def _convert_command(command: Command, rest: list[str]) -> int:
    """Convert SRC to DST; what begins with -- is a setting of the conversion."""
    paths, words = paths_and_settings("convert", command, rest)
    if len(paths) != 2:
        raise UserError(
            "dreamgen convert needs two folders, SRC and DST", actual=" ".join(paths) or "none",
            next_step=command.example,
        )  # fmt: skip
    settings, switches = parse_settings(words, command.section, (*command.flags, "json"))
    return show([_load(command.function)(*map(Path, paths), settings)], switches["json"])


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


def _doctor_command(command: Command, rest: list[str]) -> int:
    paths = [word for word in rest if word != "--json"]
    unknown = [word for word in paths if word.startswith("-")]
    if unknown:
        raise UserError(f"dreamgen doctor does not know {unknown[0]}", allowed="--json, --help")
    results = [_load(command.function)(Path(path)) for path in paths] or [_load(command.function)()]
    return show(results, "--json" in rest)


def show(results: Sequence[StageResult], as_json: bool) -> int:
    """Print results on stdout and notes on stderr, and return the exit status."""
    if as_json:
        print(json.dumps([_plain(dataclasses.asdict(result)) for result in results], indent=2, ensure_ascii=False))
    else:
        for result in results:
            print(result_text(result))
    if any(result.figures.get("num_errors") for result in results):
        return FAILED
    return DONE_IN_PART if any(result.partial for result in results) else ALL_DONE


def result_text(result: StageResult) -> str:
    """Return a stage's result as lines for a terminal."""
    if "markdown" in result.figures:
        return str(result.figures["markdown"])
    shown = {name: value for name, value in result.figures.items() if not isinstance(value, list | dict)}
    figures = "  ".join(f"{name}={_short(value)}" for name, value in shown.items())
    lines = [f"{result.stage}: {figures}" if figures else f"{result.stage}:"]
    lines += [f"  {name}: {path}" for name, path in result.outputs.items()]
    lines += ["  - " + note.replace("\n", "\n    ") for note in result.notes]
    return "\n".join(lines)


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


def _load(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    sys.exit(main())
