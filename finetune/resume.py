"""Resuming an interrupted training: the checkpoint to continue from, whether it fits, and what is set aside."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from dreamgen.config.paths import get_path, paths_that_invalidate
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, quoted
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import STATE, TrainingState, point_last, read_state, step_of, whole_checkpoints
from finetune.windows import TrainingClip

CHECKPOINTS = "checkpoints"


def checkpoints_of(run: RunFolder) -> Path:
    """Return the folder of a run's checkpoints."""
    return run.finetune_logs / CHECKPOINTS


def find_checkpoint(settings: Settings, resume: bool = False) -> Path | None:
    """Find the checkpoint that a training continues from.

    Args:
        settings: `finetune.resume_from` is "latest", a folder, or None.
        resume: Continue from the latest one if there is one.

    Returns:
        A complete checkpoint, or None to start anew.

    Raises:
        UserError: if the settings name one that does not exist.
    """
    folder, wanted = checkpoints_of(RunFolder.of(settings)), settings.finetune.resume_from
    found = whole_checkpoints(folder)
    if wanted == "latest" and not found:
        raise UserError(
            f"there is no checkpoint to continue from in {folder}",
            allowed="a run whose training was stopped after its first checkpoint",
            next_step=f"omit resume_from to start anew:  dreamgen finetune --out {quoted(settings.out)}",
        )
    if wanted not in (None, "latest"):
        checkpoint = Path(wanted).resolve()  # `last` is a link
        if not (checkpoint / STATE).is_file():
            raise UserError(
                f"finetune.resume_from is not a checkpoint: it has no {STATE}",
                actual=wanted,
                allowed=", ".join(["latest", *map(str, found)]),
            )
        return checkpoint
    return found[-1] if found and (resume or wanted) else None


def fixed_values(
    settings: Settings,
    clips: Sequence[TrainingClip],
    base_sha256: str,
    num_processes: int,
    section: Literal["finetune", "finetune_vae", "idm"] = "finetune",
) -> dict[str, str]:
    """Return, by name and as text, the values that determine the result of a training.

    Args:
        settings: Of the run.
        clips: The training set.
        base_sha256: Fingerprint of the base model.
        num_processes: Of this training; half as many with twice the accumulation give the same steps.
        section: Whose settings they are.
    """
    tune = {"finetune": settings.finetune, "finetune_vae": settings.finetune_vae, "idm": settings.idm}[section]
    training_set = json.dumps([(clip.path.name, clip.prompt, clip.num_frames) for clip in clips])
    values = {path: get_path(settings, path) for path in paths_that_invalidate(section)} | {
        "processes x gradient_accumulation_steps": num_processes * tune.gradient_accumulation_steps,
        "base model": base_sha256,
        "training set": hashlib.sha256(training_set.encode("utf-8")).hexdigest()[:16],
    }
    return {name: repr(value) for name, value in values.items()}


def state_of(checkpoint: Path | None, fixed: Mapping[str, str]) -> TrainingState:
    """Return the state that a training continues from, or the initial state without a checkpoint.

    Args:
        checkpoint: From `find_checkpoint`.
        fixed: From `fixed_values`.

    Raises:
        UserError: if the checkpoint is damaged, or listing what changed since it was written.
    """
    if checkpoint is None:
        return TrainingState(fixed=fixed, tracker_run=secrets.token_hex(4))
    state = read_state(checkpoint)
    changes = [
        f"{name}: {before} -> {fixed[name]}"
        for name, before in state.fixed.items()
        if name in fixed and before != fixed[name]
    ]
    if changes:
        raise UserError(
            f"{checkpoint} was trained with other settings or data",
            actual="; ".join(changes),
            allowed="the same settings and data, so that the result is that of an uninterrupted training",
            next_step="undo the change, or train into a new --out",
        )
    return state


def make_folder(logs: Path, checkpoint: Path | None) -> list[str]:
    """Prepare the folder of logs and checkpoints for a new training, or for one that continues from one of them.

    Files of a training that is not resumed are renamed, never deleted, and so are checkpoints after the one to continue
    from. The log itself drops its rows of steps that will be repeated.

    Returns:
        Notes for the user.
    """
    folder, notes = logs / CHECKPOINTS, []
    if checkpoint is not None and checkpoint.parent.resolve() == folder.resolve():
        _clear(folder)
        for later in whole_checkpoints(folder):
            if step_of(later) > step_of(checkpoint):
                number = 1 + len(list(folder.glob(f"{later.name}.left-*")))
                notes.append(f"a later checkpoint is now {later.rename(f'{later}.left-{number}')}")
        point_last(folder / checkpoint.name)
        notes.insert(0, f"resumed from {checkpoint}")
    elif logs.exists():
        number = 1 + len(list(logs.parent.glob(f"{logs.name}.interrupted-*")))
        aside = logs.rename(logs.with_name(f"{logs.name}.interrupted-{number}"))
        notes.append(f"an earlier training did not finish; its files are in {aside}")
    folder.mkdir(parents=True, exist_ok=True)
    return notes


def interrupted(settings: Settings, checkpoint: Path, num_processes: int, notes: list[str]) -> StageResult:
    """Return the result of a training that a signal stopped: its progress, and the command that resumes it."""
    step, num_steps = step_of(checkpoint), settings.finetune.num_steps
    metrics = {"interrupted": True, "step": step, "num_steps": num_steps}
    command = resume_command("finetune", settings, num_processes)
    how_to_resume = f"stopped after step {step} of {num_steps}; continue with:  {command}"
    return StageResult("finetune", {"checkpoint": checkpoint}, metrics, [*notes, how_to_resume], partial=True)


def resume_command(stage: str, settings: Settings, num_processes: int) -> str:
    """Return the command that continues a training on as many processes as before.

    The run folder has its settings. On several machines, the user knows how accelerate was launched.
    """
    launcher, word = f"dreamgen {stage}", "" if stage == "finetune" else f" {stage}"
    if num_processes > 1:
        is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(num_processes)
        here = f"python -m finetune.launch --num_processes={num_processes}"
        launcher = (here if is_one_machine else "accelerate launch -m finetune") + word
    return f"{launcher} --out {quoted(settings.out)} --resume"


def _clear(folder: Path) -> None:
    """Remove what killed processes left half written or half deleted."""
    for left in folder.glob(".*.tmp"):
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left)
