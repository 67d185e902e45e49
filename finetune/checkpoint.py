"""Checkpoints, `finetune/checkpoints/step-000500/`: everything that a training needs to continue exactly.

A folder of that name is complete, because it is renamed into place when everything in it is on the disk. So training
continues from the highest number, without a second record that would have to agree. The link `last` is for people and
scripts. Everything is a tensor in safetensors or a number in JSON: loading runs no code.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import weight_files
from dreamgen.run.files import atomic_folder, read_json, visible_files, write_json
from finetune.best_weights import BestWeights
from finetune.ema import averaged
from finetune.random_state import random_states, set_random_states
from finetune.stopping import on_main_process

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

STATE, OPTIMIZER, RANDOM = "state.json", "optimizer.safetensors", "random.safetensors"
AVERAGE, BEST = "ema.safetensors", "best.safetensors"
VAE_NAME, IDM_NAME = "vae", "idm"  # their folders, in place of an adapter's file
NAME = re.compile(r"step-(\d{6,})")
OLD = ".old.tmp"  # end of the name of one that is being deleted


@dataclass(frozen=True)
class TrainingState:
    """The state of a training between two optimizer steps, except for tensors.

    Args:
        step: Optimizer steps done. It determines the learning rate.
        sample_index: The first sample that no step has used.
        fixed: Values that may not change until the end, by name, as text.
        tracker_run: The tracker's id of this training.
        losses: Losses of the batches since the last line of loss.csv, in the order of their samples.
        best_step: Of the weights with the lowest held-out loss so far; 0 if none are kept.
        best_loss: Their loss.
    """

    step: int = 0
    sample_index: int = 0
    fixed: Mapping[str, str] = field(default_factory=dict)
    tracker_run: str = ""
    losses: tuple[float, ...] = ()
    best_step: int = 0
    best_loss: float | None = None


class TrainedNetwork(Protocol):
    """A model whose weights go into a checkpoint: `TrainableWorldModel`, or a VAE."""

    network: torch.nn.Module

    def save_adapter(self, folder: Path) -> None:
        """Write the trained weights into an existing folder."""

    def load_adapter(self, weights: dict[str, torch.Tensor]) -> list[str]:
        """Set the trained weights, and return the names that do not fit."""
        ...


@dataclass(frozen=True)
class TrainableState[Model: TrainedNetwork]:
    """What optimizer steps change.

    Args:
        model: Its `network` holds the trained parameters.
        optimizer: Of the trained parameters.
        average: Their moving average, if there is one.
        best: Their best values so far, if those are wanted; of the average if there is one.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    average: EMAModel | None = None
    best: BestWeights | None = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: value for name, value in self.model.network.named_parameters() if value.requires_grad}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the trained parameters by their average, if there is one, while the body runs."""
        with nullcontext() if self.average is None else averaged(self.average, self.parameters().values()):
            yield

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Replace the trained parameters by those that the training writes at its end, while the body runs."""
        if self.best is not None and self.best.step:
            with self.best.in_place_of(self.parameters()):
                yield
        else:
            with self.averaged():
                yield


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def write_checkpoint(
    accelerator: Accelerator, folder: Path, state: TrainingState, trained: TrainableState, keep: int, spare: Path | None
) -> Path:
    """Write a checkpoint, then delete old ones; all processes call it and return when it is written.

    Args:
        accelerator: Of the training.
        folder: Of all checkpoints.
        state: State of the training.
        trained: What its steps changed.
        keep: Number of checkpoints to keep.
        spare: A checkpoint that is never deleted: the one that this training continued from.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: in all processes, if the main one cannot write.
    """
    path, states = folder / f"step-{state.step:06d}", random_states(accelerator)

    def write() -> None:
        with atomic_folder(path) as temporary:
            trained.model.save_adapter(temporary)
            _save(_optimizer_tensors(trained), temporary / OPTIMIZER)
            _save(states, temporary / RANDOM)
            if trained.average is not None:
                averages = dict(zip(trained.parameters(), trained.average.shadow_params, strict=True))
                _save(averages, temporary / AVERAGE)
            if trained.best is not None and trained.best.step:
                _save(trained.best.tensors, temporary / BEST)
            write_json(temporary / STATE, asdict(state))
        point_last(path)
        _prune(folder, keep, spare)

    on_main_process(accelerator, folder, write)
    return path


def read_state(checkpoint: Path) -> TrainingState:
    """Read the state of a checkpoint.

    Raises:
        UserError: if the file is missing or damaged.
    """
    values = read_json(checkpoint / STATE)
    try:
        return TrainingState(**{**values, "losses": tuple(values["losses"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{checkpoint / STATE} is not the state of a training", actual=str(error)) from None


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, trained: TrainableState) -> None:
    """Restore a training from a checkpoint.

    Args:
        accelerator: Of the training. With another number of processes the random generators are not restored.
        checkpoint: Of a training with the same settings.
        trained: Changed in place; accelerate may have wrapped it already, as its parameters stay the same objects.

    Raises:
        UserError: if a file is missing, damaged or does not fit.
    """
    parameters = trained.parameters()
    _load_weights(trained, checkpoint)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in _load(checkpoint / OPTIMIZER).items():
        moments.setdefault(name.rpartition("/")[0], {})[name.rpartition("/")[2]] = value
    _check_fits(checkpoint / OPTIMIZER, moments.keys() ^ parameters.keys())
    names = {id(parameter): name for name, parameter in parameters.items()}
    ordered = [names[id(value)] for group in trained.optimizer.param_groups for value in group["params"]]
    groups = trained.optimizer.state_dict()["param_groups"]
    in_order = {index: moments[name] for index, name in enumerate(ordered)}
    trained.optimizer.load_state_dict({"state": in_order, "param_groups": groups})

    if trained.average is not None:
        averages = _load(checkpoint / AVERAGE)
        _check_fits(checkpoint / AVERAGE, averages.keys() ^ parameters.keys())
        for name, shadow in zip(parameters, trained.average.shadow_params, strict=True):
            shadow.copy_(averages[name])
        trained.average.optimization_step = read_state(checkpoint).step
    if trained.best is not None and (state := read_state(checkpoint)).best_step:
        best = _load(checkpoint / BEST)
        known = {name for name, value in best.items() if name in parameters and value.shape == parameters[name].shape}
        _check_fits(checkpoint / BEST, (best.keys() | parameters.keys()) - known)
        trained.best.restore(state.best_step, state.best_loss, best if accelerator.is_main_process else {})
    states = _load(checkpoint / RANDOM)
    _check_fits(checkpoint / RANDOM, {"torch", "python", "numpy"} - states.keys())
    if len(states["torch"]) == accelerator.num_processes:
        set_random_states(states, accelerator.process_index, accelerator.device)


def point_last(checkpoint: Path) -> None:
    """Point the link `last` beside a checkpoint to it, atomically."""
    temporary = checkpoint.with_name(f".last.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name, target_is_directory=True)
    temporary.replace(checkpoint.with_name("last"))


def _load_weights(trained: TrainableState, checkpoint: Path) -> None:
    folders = (checkpoint / VAE_NAME, checkpoint / IDM_NAME)
    files = [path for folder in folders for path in visible_files(folder, "*.safetensors")] or weight_files(checkpoint)
    weights: dict[str, torch.Tensor] = {}
    for path in files:
        weights |= _load(path)
    _check_fits(files[0], trained.model.load_adapter(weights))


def _optimizer_tensors(trained: TrainableState) -> dict[str, torch.Tensor]:
    """Return the optimizer's moments and step counts as `PARAMETER/exp_avg`; its rates follow from the settings."""
    state = trained.optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in trained.parameters().items()
        for key, value in state[parameter].items()
    }


def _prune(folder: Path, keep: int, spare: Path | None) -> None:
    for left in folder.glob(f".step-*{OLD}"):  # of a process that was killed while it deleted
        shutil.rmtree(left)
    for old in whole_checkpoints(folder)[:-keep]:
        if spare is None or not old.samefile(spare):
            # Renamed first, so that a kill in between leaves no incomplete folder with a checkpoint's name.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}{OLD}")))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing or damaged",
            actual=str(error),
            next_step=f"continue from another checkpoint: --finetune.resume_from={path.parent.parent}/step-NNNNNN",
        ) from None


def _check_fits(path: Path, misfits: Iterable[str]) -> None:
    named = sorted(misfits)
    if named:
        shown = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
        raise UserError(
            f"{path} does not fit the model",
            actual=f"{len(named)} tensors differ: {shown}",
            allowed="a checkpoint of this training",
        )
