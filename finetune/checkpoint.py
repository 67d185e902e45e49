"""Checkpoints: `finetune/checkpoints/step-000500/`, all that a training needs to go on as if it had never stopped.

A folder of that name is whole, because it is renamed into place when everything in it is on the disk. So the highest
number is the one to go on from; no second record has to agree with it. The link `last` is for people and scripts.
Everything is a tensor in safetensors or a number in JSON: loading runs no code.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import CosmosTransformer3DModel
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import ADAPTER_NAME, FULL_NAME, WEIGHTS_NAME, is_full, save_adapter
from dreamgen.run.files import atomic_folder, read_json, write_json
from finetune.ema import ParameterAverage
from finetune.random_state import random_states, set_random_states
from finetune.stopping import on_main_process

STATE, OPTIMIZER, AVERAGE, RANDOM = "state.json", "optimizer.safetensors", "ema.safetensors", "random.safetensors"
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands between two optimizer steps, as far as no tensor holds it.

    Args:
        step: Optimizer steps done. The schedule follows from it.
        sample_index: The first sample that no step has seen.
        fixed: What may not change until the end, by name, as text.
        tracker_run: The tracker's id of this training.
        losses: Of the batches since the last line of loss.csv, in the order of their samples.
    """

    step: int = 0
    sample_index: int = 0
    fixed: Mapping[str, str] = field(default_factory=dict)
    tracker_run: str = ""
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainableState:
    """What the steps of a training change.

    Args:
        transformer: With its adapter if it has one, outside any wrapper.
        optimizer: Of the parameters that are trained.
        average: Their moving average, where one is kept.
    """

    transformer: CosmosTransformer3DModel
    optimizer: torch.optim.Optimizer
    average: ParameterAverage | None = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: value for name, value in self.transformer.named_parameters() if value.requires_grad}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average in place of the trained values, where there is one, while the body runs."""
        with nullcontext() if self.average is None else self.average.in_place():
            yield


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; what a killed process left unfinished is none."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def write_checkpoint(
    accelerator: Accelerator, folder: Path, state: TrainingState, trained: TrainableState, keep: int, spare: Path | None
) -> Path:
    """Write a checkpoint, then let go of old ones; all processes call it and return when it is there.

    Args:
        accelerator: Of the training.
        folder: Of all checkpoints.
        state: Where the training stands.
        trained: What its steps changed.
        keep: How many checkpoints to keep.
        spare: One that is never let go of: where this training went on from.

    Returns:
        The checkpoint's folder, whole.

    Raises:
        UserError: in all processes, if the main one cannot write.
    """
    path, states = folder / f"step-{state.step:06d}", random_states(accelerator)

    def write() -> None:
        with atomic_folder(path) as temporary:
            save_adapter(trained.transformer, temporary)
            _save(_optimizer_tensors(trained), temporary / OPTIMIZER)
            _save(states, temporary / RANDOM)
            if trained.average is not None:
                _save(trained.average.tensors(), temporary / AVERAGE)
            write_json(temporary / STATE, asdict(state))
        point_last(path)
        _prune(folder, keep, spare)

    on_main_process(accelerator, write)
    return path


def read_state(checkpoint: Path) -> TrainingState:
    """Read where a checkpoint stands.

    Raises:
        UserError: if the file is missing or damaged.
    """
    values = read_json(checkpoint / STATE)
    try:
        return TrainingState(**{**values, "losses": tuple(values["losses"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{checkpoint / STATE} is not a training's state", actual=str(error)) from None


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, trained: TrainableState) -> None:
    """Put a training back to where a checkpoint was written.

    Args:
        accelerator: Of the training. With another number of processes the random generators stay as they are.
        checkpoint: A whole one, of a training with the same settings.
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
    state = {index: moments[name] for index, name in enumerate(ordered)}
    trained.optimizer.load_state_dict({"state": state, "param_groups": groups})

    if trained.average is not None:
        averages = _load(checkpoint / AVERAGE)
        _check_fits(checkpoint / AVERAGE, averages.keys() ^ parameters.keys())
        trained.average.load(averages)
    states = _load(checkpoint / RANDOM)
    _check_fits(checkpoint / RANDOM, {"torch", "python", "numpy"} - states.keys())
    if len(states["torch"]) == accelerator.num_processes:
        set_random_states(states, accelerator.process_index, accelerator.device)


def point_last(checkpoint: Path) -> None:
    """Let the link `last` beside a checkpoint lead to it, in one step."""
    temporary = checkpoint.with_name(f".last.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name, target_is_directory=True)
    temporary.replace(checkpoint.with_name("last"))


def _load_weights(trained: TrainableState, checkpoint: Path) -> None:
    parameters = trained.parameters()
    if not is_full(checkpoint):
        path = checkpoint / WEIGHTS_NAME
        weights = {name.removeprefix("transformer."): value for name, value in _load(path).items()}
        report = set_peft_model_state_dict(trained.transformer, weights, adapter_name=ADAPTER_NAME)
        _check_fits(path, [*report.unexpected_keys, *(name for name in report.missing_keys if name in parameters)])
        return
    weights = {}
    for shard in sorted((checkpoint / FULL_NAME).glob("*.safetensors")):
        weights |= _load(shard)
    _check_fits(checkpoint / FULL_NAME, parameters.keys() - weights.keys())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _optimizer_tensors(trained: TrainableState) -> dict[str, torch.Tensor]:
    """Return the optimizer's moments and step counts as `PARAMETER/exp_avg`; its rates follow from the settings."""
    state = trained.optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in trained.parameters().items()
        for key, value in state[parameter].items()
    }


def _prune(folder: Path, keep: int, spare: Path | None) -> None:
    for old in whole_checkpoints(folder)[:-keep]:
        if spare is None or not old.samefile(spare):
            # Under its name it is whole; renamed first, so that a kill in between leaves nothing that looks so.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old.tmp")))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing or damaged",
            actual=str(error),
            next_step=f"go on from another checkpoint: --finetune.resume_from={path.parent.parent}/step-NNNNNN",
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
