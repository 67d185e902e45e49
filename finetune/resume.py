"""Going on with an interrupted training: from which checkpoint, whether that is allowed, and what is cut off first."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamgen.config.paths import get_path, paths_that_invalidate
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import STATE, TrainingState, point_last, read_state, step_of, whole_checkpoints
from finetune.windows import TrainingClip


def checkpoints_of(run: RunFolder) -> Path:
    """Return the folder of a run's checkpoints."""
    return run.finetune_logs / "checkpoints"


def find_checkpoint(settings: Settings, resume: bool = False) -> Path | None:
    """Find the checkpoint that a training should go on from.

    Args:
        settings: `finetune.resume_from` is "latest", a folder, or None.
        resume: Go on from the latest one where there is one.

    Returns:
        A whole checkpoint, or None to begin at the beginning.

    Raises:
        UserError: if the settings name one that is not there.
    """
    folder, asked = checkpoints_of(RunFolder.of(settings)), settings.finetune.resume_from
    found = whole_checkpoints(folder)
    if asked == "latest" and not found:
        raise UserError(
            f"there is no checkpoint to go on from in {folder}",
            allowed="a run whose training was stopped after its first checkpoint",
            next_step=f"leave resume_from out to begin:  dreamgen finetune --out {settings.out}",
        )
    if asked not in (None, "latest"):
        checkpoint = Path(asked).resolve()  # `last` is a link
        if not (checkpoint / STATE).is_file():
            raise UserError(
                f"finetune.resume_from is not a checkpoint: it has no {STATE}",
                actual=asked,
                allowed=", ".join(["latest", *map(str, found)]),
            )
        return checkpoint
    return found[-1] if found and (resume or asked) else None


def fixed_values(
    settings: Settings, clips: Sequence[TrainingClip], base_sha256: str, num_processes: int
) -> dict[str, str]:
    """Return, by name and as text, what decides what a training learns.

    Args:
        settings: Of the run.
        clips: The training set.
        base_sha256: Fingerprint of the base model.
        num_processes: Of this training; half as many with twice the accumulation make the same steps.
    """
    seen = json.dumps([(clip.path.name, clip.prompt, clip.num_frames) for clip in clips])
    values = {path: get_path(settings, path) for path in paths_that_invalidate("finetune")} | {
        "processes x gradient_accumulation_steps": num_processes * settings.finetune.gradient_accumulation_steps,
        "base model": base_sha256,
        "training set": hashlib.sha256(seen.encode("utf-8")).hexdigest()[:16],
    }
    return {name: repr(value) for name, value in values.items()}


def state_of(checkpoint: Path | None, fixed: Mapping[str, str]) -> TrainingState:
    """Return where a training goes on, or the beginning where there is no checkpoint.

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
            allowed="the same, so that the training ends as it would have",
            next_step="undo the change, or train into a new --out",
        )
    return state


def make_folder(run: RunFolder, checkpoint: Path | None) -> list[str]:
    """Make `finetune/` ready for a training that begins, or goes on from a checkpoint in it.

    Files of a training that is not gone on with are renamed, never deleted, and so are checkpoints after the one to go
    on from. The log itself cuts its rows of steps that will be made again.

    Returns:
        Notes for the user.
    """
    folder, notes = checkpoints_of(run), []
    if checkpoint is not None and checkpoint.parent.resolve() == folder.resolve():
        _clear(folder)
        for later in whole_checkpoints(folder):
            if step_of(later) > step_of(checkpoint):
                number = 1 + len(list(folder.glob(f"{later.name}.left-*")))
                notes.append(f"a later checkpoint is now {later.rename(f'{later}.left-{number}')}")
        point_last(folder / checkpoint.name)
        notes.insert(0, f"went on from {checkpoint}")
    elif run.finetune_logs.exists():
        number = 1 + len(list(run.root.glob("finetune.interrupted-*")))
        aside = run.finetune_logs.rename(run.root / f"finetune.interrupted-{number}")
        notes.append(f"an earlier training did not finish; its files are in {aside}")
    folder.mkdir(parents=True, exist_ok=True)
    return notes


def interrupted(settings: Settings, checkpoint: Path, num_processes: int, notes: list[str]) -> StageResult:
    """Return the result of a training that a signal stopped: how far it is and the command to go on."""
    command = "dreamgen finetune" if num_processes == 1 else "accelerate launch -m finetune"
    step, num_steps = step_of(checkpoint), settings.finetune.num_steps
    metrics = {"interrupted": True, "step": step, "num_steps": num_steps}
    go_on = f"stopped after step {step} of {num_steps}; go on with:  {command} --out {settings.out} --resume"
    return StageResult("finetune", {"checkpoint": checkpoint}, metrics, [*notes, go_on], partial=True)


def _clear(folder: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for left in folder.glob(".*.tmp"):
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left)
