"""Training set -> adapter of a world model.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from dreamgen.config.settings import FinetuneSettings, Settings
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.models.world_model import WorldModelSource, check_size, resolve_world_model
from dreamgen.run.files import atomic_folder
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.batches import make_loader
from finetune.best_weights import BestWeights
from finetune.card import write_card
from finetune.checkpoint import TrainableState, TrainingState, load_checkpoint, write_checkpoint
from finetune.distillation import check_model, fixed_by_teacher, losses, teacher_prompt
from finetune.ema import parameter_average
from finetune.estimate import check_memory, count, describe
from finetune.hub import push_adapter
from finetune.inputs import StepInputs, prepare_inputs
from finetune.resume import checkpoints_of, find_checkpoint, fixed_values, interrupted, state_of
from finetune.samples import Samples
from finetune.schedule import learning_rate
from finetune.setup import check_can_start, end_logs, make_accelerator, start_logs
from finetune.stopping import on_main_process, stop_signals
from finetune.time_limit import TimeLimit
from finetune.training_log import TrainingLog, read_steps
from finetune.validate import Validation, hold_out
from finetune.windows import TrainingClip, Window, all_windows, read_training_set


@dataclass(frozen=True)
class Training:
    """Everything that the steps of a training need.

    Args:
        settings: Of the run.
        accelerator: Prepared the module, the optimizer and the loader.
        forward_module: Of the model, as accelerate wrapped it.
        inputs: Encoded windows and prompts.
        loader: The batches that no step has used.
        trained: What the steps change.
        start: State before the first of them.
        checkpoint: The one that the training continues from.
        validation: Measures the loss of held-out clips.
        samples: Generates from one of them.
        time_limit: Ends the training before its last step.
    """

    settings: Settings
    accelerator: Accelerator
    forward_module: torch.nn.Module
    inputs: StepInputs
    loader: DataLoader
    trained: TrainableState[TrainableWorldModel]
    start: TrainingState
    checkpoint: Path | None
    validation: Validation
    samples: Samples
    time_limit: TimeLimit


def finetune(settings: Settings, dry_run: bool = False, resume: bool = False) -> StageResult:
    """Train an adapter on the run's training set and write it to `adapter/`, whole or not at all.

    Args:
        settings: Of the run. Under `accelerate launch` every process calls this with the same settings.
        dry_run: Check the input and count, without loading the model or writing.
        resume: Continue from the last checkpoint if there is one.

    Returns:
        The adapter and its loss curve, with counts; or, after Ctrl-C or SIGTERM, the checkpoint to continue from, with
        `metrics["interrupted"]`.

    Raises:
        UserError: if the training set, the output folder, a checkpoint or a setting cannot be used.
    """
    start_s, run, tune = time.monotonic(), RunFolder.of(settings), settings.finetune
    check_size(settings)
    check_can_start(settings)
    clips = read_training_set(run, settings.video, tune.validation_clips)
    clips, held_out = hold_out(clips, tune.validation_clips, settings.seed)
    if dry_run:
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        counts = count(settings, clips, held_out, num_processes)
        return describe(settings, counts, *needed(settings, clips, held_out), num_processes)
    check_memory(settings)
    checkpoint = find_checkpoint(settings, resume)
    accelerator = make_accelerator(settings, run)
    with accelerator.main_process_first():  # it builds the mini model if it does not exist yet
        source = resolve_world_model(settings.model, run)
    fixed = fixed_values(settings, clips, source.sha256, accelerator.num_processes) | fixed_by_teacher(settings)
    start = state_of(checkpoint, fixed)
    model = source.load_class().for_training(source, settings, accelerator.device)
    check_model(model, settings)
    texts = dropped_text(source, tune), teacher_prompt(settings)
    inputs = prepare_inputs(settings, source, model, *needed(settings, clips, held_out), accelerator, *texts)
    parameters = model.make_trainable()
    counts = count(settings, clips, held_out, accelerator.num_processes)
    loader = make_loader(
        settings, model, clips, counts["num_samples"], inputs.read, accelerator.device, start.sample_index
    )
    optimizer = torch.optim.AdamW(
        parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay, fused=accelerator.device.type == "cuda"
    )
    forward_module, optimizer, loader = accelerator.prepare(model.forward_module, optimizer, loader)
    trained = make_trainable_state(model, optimizer, tune)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, trained)
    notes = start_logs(accelerator, run, settings, start, checkpoint)
    watched = (accelerator, forward_module, trained, held_out, inputs, settings)
    training = Training(
        settings, accelerator, forward_module, inputs, loader, trained, start, checkpoint,
        Validation(*watched, start.step), Samples(*watched),
        TimeLimit(accelerator, tune.max_minutes, start_s, seconds_before(run, start.step)),
    )  # fmt: skip
    cost = source.load_class().training_cost(settings)
    flops = None if cost is None else cost.window_flops
    with TrainingLog(
        accelerator, run.finetune_logs / "loss.csv", tune, flops, start.step, pending_losses=start.losses
    ) as log:
        stopped = take_steps(training, log)
    if stopped is not None:
        end_logs(accelerator)
        return interrupted(settings, stopped, accelerator.num_processes, notes)
    if log.last_step < tune.num_steps:
        notes.append(f"the time was up after {log.last_step} of {tune.num_steps} steps")
        settings = replace(settings, finetune=replace(tune, num_steps=log.last_step))
        training = replace(training, settings=settings)
        counts = count(settings, clips, held_out, accelerator.num_processes)
    if trained.best is not None and trained.best.step:
        counts["best_step"] = trained.best.step
    write_adapter(training, source, counts, log.last_loss)
    end_logs(accelerator)
    return finished(training, counts, log, notes)


def take_steps(training: Training, log: TrainingLog) -> Path | None:
    """Make the remaining optimizer steps, with a checkpoint every so many.

    Args:
        training: Its model, optimizer, average and best weights are changed.
        log: Receives every loss and step.

    Returns:
        The checkpoint that was written when a signal stopped the training; None when all steps are made.
    """
    accelerator, tune, optimizer = training.accelerator, training.settings.finetune, training.trained.optimizer
    parameters, average = list(training.trained.parameters().values()), training.trained.average
    step, rate = training.start.step, 0.0
    grad_norm: Any = None
    measure(training, log, step)
    with stop_signals(accelerator) as stop_requested:
        for batch in training.loader:
            time_share = training.time_limit.share()
            with accelerator.accumulate(training.forward_module):
                loss = batch_loss(batch, training.trained.model, training.forward_module, training.inputs)
                accelerator.backward(loss)
                log.add(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(parameters, tune.max_grad_norm)
                    rate = learning_rate(step, tune, time_share) if time_share else learning_rate(step, tune)
                    set_learning_rate(optimizer, rate)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            if average is not None:
                average.step(parameters)
            is_last = step == tune.num_steps or time_share >= 1
            log.step(step, rate, grad_norm, is_last)
            measure(training, log, step, is_last)
            training.samples.step(step, log)
            stop = stop_requested()
            if is_last:
                return None
            if stop or step % tune.checkpoint_every == 0:
                written = save_checkpoint(training, log, step)
                if stop:
                    return written
    return None


def measure(training: Training, log: TrainingLog, step: int, is_last: bool = False) -> None:
    """Measure held-out clips if it is due, and keep the weights if they are the best; every process calls this."""
    measured, trained = training.validation.step(step, log, is_last), training.trained
    if measured is None or trained.best is None or not trained.best.add(step, measured):
        return
    if training.accelerator.is_main_process:  # it writes the checkpoints and the adapter
        with log.paused(), trained.averaged():
            trained.best.keep(trained.parameters())


def save_checkpoint(training: Training, log: TrainingLog, step: int) -> Path:
    """Write a checkpoint after an optimizer step, and return it; every process calls this."""
    tune, accelerator = training.settings.finetune, training.accelerator
    samples_a_step = tune.batch_size * tune.gradient_accumulation_steps * accelerator.num_processes
    state = replace(training.start, step=step, sample_index=step * samples_a_step, losses=log.pending_losses())
    best = training.trained.best
    state = replace(state, best_step=best.step if best else 0, best_loss=best.loss if best else None)
    folder = checkpoints_of(RunFolder.of(training.settings))
    with log.paused():
        return write_checkpoint(
            accelerator, folder, state, training.trained, tune.keep_checkpoints, training.checkpoint
        )


def make_trainable_state(
    model: TrainableWorldModel, optimizer: torch.optim.Optimizer, tune: FinetuneSettings
) -> TrainableState[TrainableWorldModel]:
    """Return what the steps change, with its moving average and its best weights if the settings want them."""
    trained = TrainableState(model, optimizer, best=BestWeights() if tune.keep_best else None)
    if tune.ema_decay is None:
        return trained
    return replace(trained, average=parameter_average(trained.parameters().values(), tune.ema_decay))


def batch_loss(
    batch: dict[str, Any], model: TrainableWorldModel, forward_module: torch.nn.Module, inputs: StepInputs
) -> torch.Tensor:
    """Return the mean loss of a batch of windows, with its graph.

    Args:
        batch: From `Collate`, its tensors on the model's device.
        model: Computes the loss.
        forward_module: Of the model, as accelerate prepared it.
        inputs: Encoded windows and prompts.

    Returns:
        A scalar, float32.
    """
    noise, prompts = batch["noise"], batch["prompt"]
    if inputs.negative is None:  # a student of guidance is never asked without its prompt
        pairs = zip(prompts, noise.drop_text, strict=True)
        prompts = [inputs.dropped if is_dropped else prompt for prompt, is_dropped in pairs]
    return losses(model, forward_module, inputs.encode(batch["content"]), prompts, noise, inputs).mean()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step; accelerate would step a prepared scheduler once for each GPU."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def write_adapter(training: Training, source: WorldModelSource, counts: dict[str, Any], final_loss: float) -> None:
    """Write the finished adapter with its card, whole or not at all.

    It is the best one if the settings want that, or the last one; of its moving average if there is one.

    Args:
        training: A finished one; every process calls this and returns when the adapter is written.
        source: The base model.
        counts: From `count`.
        final_loss: Loss of the last line of loss.csv.
    """
    accelerator, settings = training.accelerator, training.settings

    def write() -> None:
        with atomic_folder(RunFolder.of(settings).adapter) as temporary, training.trained.finished():
            training.trained.model.save_adapter(temporary)
            if settings.finetune.save_pipeline and settings.finetune.method == "full":
                training.trained.model.save_other_parts(temporary)
            write_card(temporary, settings, source, accelerator.device.type, counts, final_loss)

    on_main_process(accelerator, RunFolder.of(settings).adapter, write)


def finished(training: Training, counts: dict[str, Any], log: TrainingLog, notes: list[str]) -> StageResult:
    """Upload the adapter if the settings want it, and return the result; a failed upload makes it partial."""
    run, tune = RunFolder.of(training.settings), training.settings.finetune
    metrics = {**counts, "final_loss": log.last_loss, "step_s": round(log.elapsed_s / max(log.last_step, 1), 3)}
    upload_notes, is_uploaded = [], True
    if tune.push_to_hub is not None and training.accelerator.is_main_process:
        note, is_uploaded = push_adapter(run.adapter, tune.push_to_hub)
        upload_notes.append(note)
    if tune.distill_guidance is not None:
        notes = [*notes, "guidance is folded into the adapter: plan and generate with --plan.guidance_scale=1"]
    outputs = {"adapter": run.adapter, "loss": run.finetune_logs / "loss.csv"}
    return StageResult("finetune", outputs, metrics, [*notes, *upload_notes], partial=not is_uploaded)


def dropped_text(source: WorldModelSource, tune: FinetuneSettings) -> str | None:
    """Return the prompt that stands for a dropped one; None: zeros."""
    return source.load_class().default_negative_prompt if tune.dropped_text == "negative_prompt" else None


def seconds_before(run: RunFolder, step: int) -> float:
    """Return the seconds that a resumed training has taken up to a step."""
    rows = read_steps(run.finetune_logs / "loss.csv", step) if step else []
    return float(rows[-1]["seconds"]) if rows else 0.0


def needed(
    settings: Settings, clips: list[TrainingClip], held_out: Sequence[Window] = ()
) -> tuple[list[Window], list[str]]:
    """Return the windows that the training and its validation may read, and all prompts."""
    windows = all_windows(clips, settings.video.num_frames, settings.finetune.windows_per_clip)
    return [*windows, *held_out], [*(clip.prompt for clip in clips), *(window.clip.prompt for window in held_out)]
