"""`accelerate launch -m finetune [finetune_idm | finetune_vae] --out runs/NAME`: training on many GPUs.

Of the adapter, or with one of these words of the inverse-dynamics model or the VAE.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from datetime import timedelta

from dreamgen.config.loading import parse_settings
from dreamgen.environment import set_library_defaults
from dreamgen.errors import CannotWrite, UserError
from dreamgen.run.lease import hold_command
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.signals import sigterm_interrupts
from dreamgen.run.write_errors import storage_errors_as_user_errors
from dreamgen.stages import STAGES, imported

USAGE = """\
accelerate launch -m finetune --out runs/NAME [--config_path FILE] [--setting=value ...] [--dry_run] [--resume]
accelerate launch -m finetune finetune_idm --out runs/NAME [--config_path FILE] [--setting=value ...] [--resume]
accelerate launch -m finetune finetune_vae --out runs/NAME [--config_path FILE] [--setting=value ...] [--resume]
The settings are those of `dreamgen finetune --help`, `dreamgen finetune_idm --help` and `dreamgen finetune_vae --help`.
--resume continues from the last checkpoint if there is one; for the adapter, --resume latest, or --resume with a
checkpoint's folder, requires it.
"""

OTHER_TRAININGS = ("finetune_idm", "finetune_vae")  # named by the first word; without one it is the adapter's


def main(tokens: list[str]) -> int:
    """Train in this process, one of those that accelerate launched; the first one of each machine prints.

    Returns:
        Exit status: 0 done, 1 for a full disk, 2 for an error in settings or data, 3 for a training that was stopped
        and can be resumed.
    """
    if {"-h", "--help"} & set(tokens):
        print(USAGE, end="")
        return 0
    try:
        with sigterm_interrupts():
            lines, status = train(tokens)
    except UserError as error:
        if is_first_to_report(str(error)):
            print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, CannotWrite) else 2
    except KeyboardInterrupt:
        lines, status = ["stopped; the same command with --resume continues from the last checkpoint"], 3
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("\n".join(lines))
    return status


def train(tokens: list[str]) -> tuple[list[str], int]:
    """Run the training that the command line names.

    Returns:
        The lines to print, and the exit status.
    """
    name, words = (tokens[0], tokens[1:]) if tokens[:1] and tokens[0] in OTHER_TRAININGS else ("finetune", tokens)
    stage = STAGES[name]
    settings, switches = parse_settings(words, stage.section, flags=stage.flags)
    set_library_defaults()
    run = RunFolder.of(settings)
    if switches["resume"] and stage.is_done(run) and stage.output is not None:
        return [f"{stage.output(run)}: done before, kept"], 0
    function = imported(stage.function)
    # One of the processes of a training holds the lease for all of them.
    is_first = os.environ.get("RANK", "0") == "0" and not switches.get("dry_run")
    lease = hold_command(run.root, stage.locks) if is_first else nullcontext()
    with storage_errors_as_user_errors(run.root), lease:
        result = function(settings, **switches)
    lines = [f"{name}: {value}" for name, value in {**result.outputs, **result.metrics}.items()]
    return [*lines, *result.notes], 3 if result.partial else 0


def is_first_to_report(message: str) -> bool:
    """Return whether no other process of this training has reported the same error.

    An error in the settings stops all processes; a damaged clip stops one, and not always the first.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from torch.distributed import TCPStore

    try:
        # The store of the launcher outlives the processes.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5)).add(message, 1) == 1
    except (KeyError, RuntimeError):
        return True  # reporting twice is better than not at all


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
