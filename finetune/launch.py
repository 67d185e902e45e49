"""`python -m finetune.launch --out runs/NAME ...`: a training on all GPUs of this machine.

Like `accelerate launch -m finetune`, which ends a failed training with status 1 and a traceback: here an error is
printed once, and the exit status is the training's.
"""

from __future__ import annotations

import logging
import signal
import sys

from dreamgen.errors import UserError
from finetune.__main__ import USAGE

FLAG = "--num_processes"


def main(words: list[str]) -> int:
    """Start one process for each GPU, wait for them, and return the status of the first that failed.

    Args:
        words: Arguments of `python -m finetune`, and `--num_processes=N`.

    Returns:
        Exit status: 0 done, 1 for a full disk, 2 for an error in settings or data, 3 for a training that was stopped
        and can be resumed; 128 and more for a process that a signal ended.
    """
    if {"-h", "--help"} & set(words):
        print(USAGE.replace("accelerate launch -m finetune", f"python -m finetune.launch [{FLAG}=N]"), end="")
        return 0
    try:
        num_processes, rest = take_number(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    num_processes = num_processes or max(1, torch.cuda.device_count())
    # The processes have printed the error; the launcher would add where it noticed it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launcher = ["--standalone", f"--nproc_per_node={num_processes}", "-m", "finetune", *rest]
    try:
        run(get_args_parser().parse_args(launcher))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status  # as a shell reports a signal
    except SignalException as error:  # the processes got the signal too, and 30 s to save their step
        name = signal.Signals(error.sigval).name
        print(f"stopped by {name}; the same command with --resume continues from the last checkpoint", file=sys.stderr)
        return 3
    except KeyboardInterrupt:  # before there are processes
        return 3
    return 0


def take_number(words: list[str]) -> tuple[int | None, list[str]]:
    """Remove the number of processes from the words; None if it is not given.

    Raises:
        UserError: if it is not a positive number.
    """
    queue, number, rest = list(words), None, []
    while queue:
        word = queue.pop(0)
        name, has_value, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        value = value if has_value else queue.pop(0) if queue else ""
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{FLAG} is not a number of processes", actual=value or "nothing", allowed="1 or more")
        number = int(value)
    return number, rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
