"""Trains in children that kill themselves (SIGKILL) at one moment each, then goes on with each; run by test_resume.py.

The children are forked after the imports, so that ten killed processes cost little more than one.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import finetune.checkpoint
import finetune.train
from dreamgen.config.settings import Settings
from tests.finetune.conftest import training_settings
from tests.finetune.curves import checkpoint_names


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(module: object, name: str, when: Callable[..., bool]) -> None:
    """Die just before the first call of a function whose arguments pass `when`."""
    original = getattr(module, name)

    def replaced(*args, **named):
        if when(*args):
            kill()
        return original(*args, **named)

    setattr(module, name, replaced)


def kill_after(module: object, name: str, when: Callable[..., bool]) -> None:
    """Die just after the first such call."""
    original = getattr(module, name)

    def replaced(*args, **named):
        result = original(*args, **named)
        if when(*args):
            kill()
        return result

    setattr(module, name, replaced)


def third(path: Path) -> bool:
    return "step-000003" in str(path)


MOMENTS = {
    "optimizer": lambda: kill_before(finetune.checkpoint, "_save", lambda _, path: third(path)),
    "state": lambda: kill_before(finetune.checkpoint, "write_json", lambda path, _: third(path)),
    "rename": lambda: kill_before(Path, "rename", lambda _, target: third(target)),
    "renamed": lambda: kill_after(Path, "rename", lambda _, target: third(target)),
    "prune": lambda: kill_before(finetune.checkpoint, "_prune", lambda folder, *_: (folder / "step-000003").exists()),
    "pruned": lambda: kill_before(finetune.checkpoint.shutil, "rmtree", lambda path, *_: ".old" in str(path)),
    "log": lambda: kill_before(finetune.train, "learning_rate", lambda step, _: step == 2),
    "adapter": lambda: kill_before(Path, "rename", lambda _, target: target.name == "adapter"),
}


def in_child(settings: Settings, moment: str | None) -> int:
    """Train in a forked process and return how it ended, as waitpid says it."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            if moment is not None:
                MOMENTS[moment]()
            finetune.train.finetune(settings, resume=moment is None)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(process, 0)[1]


def main(root: Path, world: Path) -> None:
    left = {}
    for moment in MOMENTS:
        tune = {"num_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 2}
        settings = training_settings(root / moment, world, finetune=tune)
        assert in_child(settings, moment) == signal.SIGKILL, moment
        left[moment] = checkpoint_names(root / moment)
        assert in_child(settings, None) == 0, moment
    print(json.dumps(left))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
