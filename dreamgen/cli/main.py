"""The command line: parse settings, call one stage, print its result. Heavy libraries are imported by stages only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from dreamgen import __version__
from dreamgen.cli.results import ALL_DONE, DONE_IN_PART, FAILED, WRONG_USAGE, show
from dreamgen.errors import CannotWrite, ClusterLost, UserError, closest_match
from dreamgen.progress import log
from dreamgen.run.signals import sigterm_interrupts
from dreamgen.run.write_errors import NO_ROOM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `dreamgen`; those of the process when not given.

    Returns:
        Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 partly done.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with sigterm_interrupts():
            status = _dispatch(words)
        sys.stdout.flush()
        return status
    except UserError as error:
        log(f"error: {error}")
        return FAILED if isinstance(error, CannotWrite | ClusterLost) else WRONG_USAGE
    except KeyboardInterrupt:
        log("stopped. Finished work is kept; the same command continues, with --resume if it has it.")
        return DONE_IN_PART
    except BrokenPipeError:
        _forget_output()  # the reader of stdout (head, less) has closed it
        return FAILED
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        # No space, no permission: a traceback would not help. Stages name their files, so without a name it is stdout.
        log(f"error: {error.filename or 'stdout'}: {error.strerror}")
        _forget_output()
        return FAILED


def _forget_output() -> None:
    """Send what stdout still holds nowhere: Python would fail to write it at its end."""
    with suppress(OSError, ValueError):  # a stdout without a file, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    # Imported here because settings and help read extensions of other packages, whose errors are the user's to see.
    from dreamgen.cli.arguments import read_arguments
    from dreamgen.cli.help import command_help, overview
    from dreamgen.pipeline import run_stage
    from dreamgen.stages import COMMANDS

    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return ALL_DONE if words else WRONG_USAGE
    if words[0] in ("-V", "--version"):
        print(f"dreamgen {__version__}")
        return ALL_DONE
    name, *rest = words
    if name not in COMMANDS:
        near = closest_match(name, COMMANDS)
        next_step = f"did you mean dreamgen {near}?" if near else "dreamgen --help"
        raise UserError(f"unknown command: {name}", allowed=", ".join(COMMANDS), next_step=next_step)
    stage = COMMANDS[name]
    if "-h" in rest or "--help" in rest:
        print(command_help(stage))
        return ALL_DONE
    given = read_arguments(stage, rest)
    as_json = given.switches.pop("json")
    if stage.paths:
        results = [stage.call(*call, **given.switches) for call in given.calls]
    elif stage.section:
        results = run_stage(name, given.settings, **given.switches)
    else:
        results = stage.call(given.settings, **given.switches)
    return show(results if isinstance(results, list) else [results], as_json)


if __name__ == "__main__":
    sys.exit(main())
