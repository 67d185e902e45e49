"""Trainings of two processes in which one is stopped or fails; launched by test_two_processes.py.

All in one launch, as the imports take longer than the trainings. What each process met is written to outcome-RANK.json.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import finetune.train
from dreamgen.errors import UserError
from finetune.schedule import learning_rate
from tests.finetune.conftest import training_settings

RANK = int(os.environ["RANK"])
TUNE = {"num_steps": 4, "method": "dora", "ema_decay": 0.5, "log_every": 3, "gradient_accumulation_steps": 2}


def in_step(number: int, action) -> None:
    """Let this process do something in the middle of an optimizer step."""

    def rate(step, tune):
        if step == number - 1:
            action()
        return learning_rate(step, tune)

    finetune.train.learning_rate = rate


def stopped(root: Path, world: Path) -> dict:
    syncs, forward = [], torch.nn.parallel.DistributedDataParallel.forward

    def seen(model, *args, **named):
        syncs.append(model.require_backward_grad_sync)
        return forward(model, *args, **named)

    torch.nn.parallel.DistributedDataParallel.forward = seen
    if RANK == 1:
        in_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    result = finetune.train.finetune(training_settings(root / "stopped", world, finetune=TUNE))
    return {"partial": result.partial, "step": result.metrics["step"], "syncs": list(syncs)}


def full_disk(root: Path, world: Path) -> str:
    if RANK == 0:
        in_step(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY)))
    try:
        finetune.train.finetune(training_settings(root / "full_disk", world, finetune={**TUNE, "checkpoint_every": 2}))
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "trained"


def broken_clip(root: Path, world: Path) -> str:
    def damage():
        raise UserError("a clip is damaged")

    if RANK == 1:
        in_step(2, damage)
    try:
        finetune.train.finetune(training_settings(root / "broken_clip", world, finetune=TUNE))
    except UserError as error:
        return str(error)
    return "trained"


def main(root: Path, world: Path) -> None:
    # It would take down the connection between the processes, which the next training needs.
    Accelerator.end_training = lambda _: None
    outcomes = {}
    for meet in (stopped, full_disk, broken_clip):
        finetune.train.learning_rate = learning_rate
        outcomes[meet.__name__] = meet(root, world)
        (root / f"outcome-{RANK}.json").write_text(json.dumps(outcomes))
    sys.exit(2)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
