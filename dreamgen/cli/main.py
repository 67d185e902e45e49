"""The commands: parse settings, call one stage, print its result. Heavy libraries are imported inside it only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dreamgen import __version__
from dreamgen.cli.help import command_help, overview
from dreamgen.cli.paths import check_command, convert_command, doctor_command
from dreamgen.cli.results import ALL_DONE, DONE_IN_PART, FAILED, WRONG_USAGE, show
from dreamgen.cli.table import COMMANDS
from dreamgen.config.loading import parse_settings
from dreamgen.errors import CannotWrite, UserError, closest_match
from dreamgen.progress import log


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
        return check_command(command, rest)
    if name == "convert":
        return convert_command(command, rest)
    if name == "doctor":
        return doctor_command(command, rest)
    if name == "demo":
        _only_out(rest)
    settings, switches = parse_settings(rest, command.section, (*command.flags, "json"))
    as_json = switches.pop("json")
    results = command.load()(settings, **switches)
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


if __name__ == "__main__":
    sys.exit(main())
