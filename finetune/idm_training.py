"""The optimizer steps of inverse dynamics: on any number of GPUs, resumable, with a validation curve and early stop.

Axes: M networks, B windows, K frames of a window, H height, W width, C channels, P what the networks predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Sampler

from dreamgen.config.settings import IdmSettings, Settings
from dreamgen.cores import usable_cores
from dreamgen.data.seeds import derived_seed
from dreamgen.models.idm.model import WEIGHTS_NAME, InverseDynamics
from dreamgen.models.idm.network import to_unit, window_loss
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import IDM_NAME, TrainableState, TrainingState, load_checkpoint, write_checkpoint
from finetune.idm_batches import WindowSamples
from finetune.idm_episodes import IdmEpisode
from finetune.idm_errors import predict_pieces, standardized_r2
from finetune.idm_linear import episode_targets
from finetune.resume import CHECKPOINTS
from finetune.schedule import learning_rate
from finetune.stopping import stop_signals
from finetune.training_log import TrainingLog, append_row, read_steps, start_table

VALIDATION_FRAMES = 20_000  # of held-out episodes, for each point of the curve
NUM_AUGMENTING = 4  # processes for each GPU, as many as `finetune_vae` has
BEST = "best."  # prefix of the best weights so far in a checkpoint


class Ensemble(nn.Module):
    """The networks of a model, each with windows of its own."""

    def __init__(self, networks: nn.ModuleList) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, picture_MBKCHW: torch.Tensor, background_MBCHW: torch.Tensor) -> torch.Tensor:
        """Return outputs_MBKP of images in -1..1."""
        each = zip(self.networks, picture_MBKCHW, background_MBCHW, strict=True)
        return torch.stack([network(pictures, background) for network, pictures, background in each])


class TrainedIdm:
    """What a checkpoint holds: the networks, and their best weights so far where training may stop early.

    Args:
        model: Whose networks are trained.
    """

    def __init__(self, model: InverseDynamics) -> None:
        self.network: nn.Module = model.networks
        self.best: dict[str, torch.Tensor] = {}

    def save_adapter(self, folder: Path) -> None:
        """Write the weights into `idm/` of an existing folder."""
        best = {BEST + name: value for name, value in self.best.items()}
        tensors = {**self.network.state_dict(), **best}
        (folder / IDM_NAME).mkdir()
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, folder / IDM_NAME / WEIGHTS_NAME)

    def load_adapter(self, weights: dict[str, torch.Tensor]) -> list[str]:
        """Set the weights, and return the names that do not fit."""
        self.best = {name.removeprefix(BEST): value for name, value in weights.items() if name.startswith(BEST)}
        current = {name: value for name, value in weights.items() if not name.startswith(BEST)}
        report = self.network.load_state_dict(current, strict=False)
        return [*report.missing_keys, *report.unexpected_keys]

    def keep_best(self) -> None:
        """Remember the weights as the best so far."""
        self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def use_best(self) -> None:
        """Set the best weights, if any were remembered."""
        if self.best:
            self.network.load_state_dict(self.best)


class _Range(Sampler[int]):
    """The indices from the first sample that no step has used."""

    def __init__(self, start: int, stop: int) -> None:
        self._range = range(start, stop)

    def __iter__(self):
        return iter(self._range)

    def __len__(self) -> int:
        return len(self._range)


@dataclass(frozen=True)
class IdmTraining:
    """Everything that the steps of a training need.

    Args:
        settings: Of the run.
        accelerator: Prepared the module, the optimizer and the loader.
        model: That is trained.
        forward_module: Its networks as accelerate wrapped them.
        loader: The batches that no step has used.
        trained: What the steps change.
        start: State before the first of them.
        checkpoint: The one that the training continues from.
        validation: Held-out episodes for the curve and early stop.
    """

    settings: Settings
    accelerator: Accelerator
    model: InverseDynamics
    forward_module: nn.Module
    loader: DataLoader
    trained: TrainableState[TrainedIdm]
    start: TrainingState
    checkpoint: Path | None
    validation: Sequence[IdmEpisode]

    @property
    def logs(self) -> Path:
        """Return the folder of logs and checkpoints."""
        return RunFolder.of(self.settings).finetune_idm_logs


def prepare_training(
    settings: Settings,
    accelerator: Accelerator,
    model: InverseDynamics,
    train: Sequence[IdmEpisode],
    validation: Sequence[IdmEpisode],
    start: TrainingState,
    checkpoint: Path | None,
) -> IdmTraining:
    """Create batches and optimizer, restored from the checkpoint if there is one."""
    idm, config = settings.idm, model.config
    targets = [episode_targets(config, episode) for episode in train]
    samples = WindowSamples(train, targets, config.horizon, settings.video.num_frames, idm.augment, settings.seed)
    per_step = idm.batch_size * config.num_models
    stop = idm.num_steps * per_step * accelerator.num_processes
    loader = window_loader(samples, per_step, start.sample_index, stop, num_loading_processes(idm, accelerator.device))
    parameters = [value for value in model.networks.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=idm.learning_rate, weight_decay=idm.weight_decay)
    forward_module, optimizer, loader = accelerator.prepare(Ensemble(model.networks), optimizer, loader)
    trained = TrainableState(TrainedIdm(model), optimizer)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, trained)
    return IdmTraining(settings, accelerator, model, forward_module, loader, trained, start, checkpoint, validation)


def window_loader(samples: WindowSamples, per_step: int, start: int, stop: int, num_workers: int) -> DataLoader:
    """Return the batches of samples `start` to `stop` - 1.

    Args:
        samples: All.
        per_step: Samples of a batch; a last one that is smaller is left out.
        start, stop: Numbers of samples.
        num_workers: Processes that augment. They are forked, as others would copy the frames, and use no GPU. OpenCV's
            number of threads cannot be set there: it would wait for threads that a fork does not have.
    """
    context = "fork" if num_workers else None
    order = _Range(start, stop)
    return DataLoader(
        samples, per_step, sampler=order, num_workers=num_workers, drop_last=True, multiprocessing_context=context
    )


def num_loading_processes(settings: IdmSettings, device: torch.device) -> int:
    """Return how many processes augment windows; by default none but this one, unless a GPU would wait for it."""
    if settings.num_workers is not None:
        return settings.num_workers
    return min(NUM_AUGMENTING, usable_cores()) if settings.augment and device.type == "cuda" else 0


def take_steps(training: IdmTraining, log: TrainingLog) -> tuple[Path | None, int]:
    """Make the remaining optimizer steps; at the end the model has the best weights if it may stop early.

    Returns:
        The checkpoint that was written when a signal stopped the training, None when it is done; and the step whose
        weights the model has.
    """
    accelerator, idm, trained = training.accelerator, training.settings.idm, training.trained
    parameters, step = list(trained.parameters().values()), training.start.step
    with stop_signals(accelerator) as stop_requested, ValidationCurve(training) as curve:
        if curve.is_over:
            return None, curve.best_step
        for pictures, background, target in training.loader:
            training.model.networks.train()
            # For dropout: of the step, so that a resumed training draws the same.
            torch.manual_seed(derived_seed(training.settings.seed, "idm", "step", step, accelerator.process_index))
            loss = batch_loss(training, pictures, background, target)
            accelerator.backward(loss)
            log.add(loss)
            grad_norm: Any = accelerator.clip_grad_norm_(parameters, idm.max_grad_norm)
            rate = learning_rate(step, idm)
            for group in trained.optimizer.param_groups:
                group["lr"] = rate
            trained.optimizer.step()
            trained.optimizer.zero_grad()
            step += 1
            is_last = step == idm.num_steps
            log.step(step, rate, grad_norm, is_last)
            if step % idm.validate_every == 0 or is_last:
                with log.paused():
                    curve.add(step)
            if is_last or curve.is_over:
                break
            stop = stop_requested()
            if stop or step % idm.checkpoint_every == 0:
                written = save_checkpoint(training, log, step)
                if stop:
                    return written, step
        best_step = curve.best_step
    if idm.patience:
        trained.model.use_best()
        return None, best_step
    return None, step


def batch_loss(
    training: IdmTraining, pictures: torch.Tensor, background: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Return the loss of a batch with its graph, a scalar; each network gets its own windows."""
    config, device = training.model.config, training.accelerator.device
    shape = (config.num_models, training.settings.idm.batch_size)
    binary_P = torch.from_numpy(config.binary_outputs()).to(device)
    picture_MBKCHW = to_unit(pictures.to(device)).unflatten(0, shape)
    background_MBCHW = to_unit(background.to(device)).unflatten(0, shape)
    with training.accelerator.autocast():
        outputs_MBKP = training.forward_module(picture_MBKCHW, background_MBCHW)
    return window_loss(outputs_MBKP.float(), target.to(device).unflatten(0, shape), binary_P)


def save_checkpoint(training: IdmTraining, log: TrainingLog, step: int) -> Path:
    """Write a checkpoint after an optimizer step, and return it; every process calls this."""
    idm, accelerator = training.settings.idm, training.accelerator
    num_samples = step * idm.batch_size * training.model.config.num_models * accelerator.num_processes
    state = replace(training.start, step=step, sample_index=num_samples, losses=log.pending_losses())
    with log.paused():
        return write_checkpoint(
            accelerator, training.logs / CHECKPOINTS, state, training.trained, idm.keep_checkpoints,
            training.checkpoint,
        )  # fmt: skip


class ValidationCurve:
    """The R^2 of held-out episodes by step, in validation.csv, and when it has stopped rising.

    Every process measures the same, so that all stop at the same step; the main one writes.
    """

    def __init__(self, training: IdmTraining) -> None:
        self._training, self._patience = training, training.settings.idm.patience
        path, done = training.logs / "validation.csv", training.start.step
        rows = read_steps(path, done)
        self._values = [(int(row["step"]), float(row["r2"])) for row in rows]
        is_main = training.accelerator.is_main_process
        self._stream = start_table(path, ("step", "r2", "mae"), rows) if is_main else None

    @property
    def best_step(self) -> int:
        """Return the step with the highest R^2."""
        return max(self._values, key=lambda value: value[1])[0] if self._values else 0

    @property
    def is_over(self) -> bool:
        """Return whether the last `patience` points brought nothing."""
        if not self._patience or not self._values:
            return False
        return len([step for step, _ in self._values if step > self.best_step]) >= self._patience

    def add(self, step: int) -> None:
        """Measure one point, and remember the weights if they are the best."""
        training, stats = self._training, self._training.model.config.actions
        truths, guesses, left = [], [], VALIDATION_FRAMES
        for episode in training.validation:
            if left > 0:
                truths.append(episode.action_TA)
                guesses.append(predict_pieces(training.model, episode, training.settings.video.num_frames)["action"])
                left -= len(episode.action_TA)
        truth_TD, guess_TD = np.concatenate(truths), np.concatenate(guesses)
        r2 = standardized_r2(truth_TD, guess_TD, stats, stats.moving().tolist()) or 0.0
        mae = float(np.abs(truth_TD - guess_TD)[:, stats.moving()].mean())
        self._values.append((step, round(r2, 6)))
        if self._patience and self.best_step == step:
            training.trained.model.keep_best()
        if self._stream is not None:
            append_row(self._stream, (step, round(r2, 6), f"{mae:.6g}"))

    def __enter__(self) -> ValidationCurve:
        return self

    def __exit__(self, *details: Any) -> None:
        if self._stream is not None:
            self._stream.close()
