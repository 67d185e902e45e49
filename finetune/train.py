"""Training set -> adapter: LoRA or DoRA on the frozen world model, by the published recipe.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import CosmosTransformer3DModel
from torch.utils.data import DataLoader

from dreamgen.config.settings import FinetuneSettings, Settings
from dreamgen.models.cosmos_predict25.adapter import save_adapter
from dreamgen.models.cosmos_predict25.loading import WorldModelSource, load_transformer, resolve_world_model
from dreamgen.run.files import atomic_folder
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.batches import make_loader
from finetune.card import write_card
from finetune.checkpoint import TrainableState, TrainingState, load_checkpoint, write_checkpoint
from finetune.ema import ParameterAverage
from finetune.estimate import blocks_for, check_memory, count, describe
from finetune.flow import VelocityModel, flow_input, flow_loss
from finetune.hub import push_adapter
from finetune.inputs import StepInputs, prepare_inputs
from finetune.metrics import training_flops
from finetune.resume import checkpoints_of, find_checkpoint, fixed_values, interrupted, state_of
from finetune.samples import Samples
from finetune.schedule import learning_rate
from finetune.setup import check_can_start, end_logs, make_accelerator, make_trainable, start_logs
from finetune.sizes import TransformerSize
from finetune.stopping import on_main_process, stop_signals
from finetune.training_log import TrainingLog
from finetune.validate import Validation, hold_out
from finetune.windows import TrainingClip, Window, all_windows, read_training_set


@dataclass(frozen=True)
class Training:
    """All that the steps of a training need.

    Args:
        settings: Of the run.
        accelerator: That prepared the model, the optimizer and the loader.
        model: `VelocityModel`, as accelerate wrapped it.
        inputs: Gives clean latents and texts.
        loader: The batches that no step has seen.
        trained: What the steps change.
        start: Where they begin.
        checkpoint: That it goes on from.
        validation: Measures the held-out clips' loss.
        samples: Dreams from one of them.
    """

    settings: Settings
    accelerator: Accelerator
    model: torch.nn.Module
    inputs: StepInputs
    loader: DataLoader
    trained: TrainableState
    start: TrainingState
    checkpoint: Path | None
    validation: Validation
    samples: Samples


def finetune(settings: Settings, dry_run: bool = False, resume: bool = False) -> StageResult:
    """Train an adapter on the run's training set and write it to `adapter/`, whole or not at all.

    Args:
        settings: Of the run. Under `accelerate launch` every process calls this with the same settings.
        dry_run: Check the input and count, without loading the model or writing.
        resume: Go on from the last checkpoint where there is one.

    Returns:
        The adapter and its loss curve, with counts; or, after Ctrl-C or SIGTERM, the checkpoint to go on from, with
        `figures["interrupted"]`.

    Raises:
        UserError: if the training set, the output folder, a checkpoint or a setting cannot be used.
    """
    run, tune = RunFolder.of(settings), settings.finetune
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
    with accelerator.main_process_first():  # which builds the mini model where it is not there yet
        source = resolve_world_model(settings.model, run)
    start = state_of(checkpoint, fixed_values(settings, clips, source.sha256, accelerator.num_processes))
    transformer = load_transformer(source, settings.model, accelerator.device)
    inputs = prepare_inputs(settings, source, transformer, *needed(settings, clips, held_out), accelerator)
    parameters = make_trainable(transformer, settings)
    model = VelocityModel(transformer, blocks_for(transformer, settings, accelerator.device))
    counts = count(settings, clips, held_out, accelerator.num_processes)
    loader = make_loader(settings, clips, counts["num_samples"], inputs.read, accelerator.device, start.sample_index)
    optimizer = torch.optim.AdamW(
        parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay, fused=accelerator.device.type == "cuda"
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    trained = make_trainable_state(transformer, optimizer, tune)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, trained)
    notes = start_logs(accelerator, run, settings, start, checkpoint)
    validation = Validation(accelerator, model, trained, held_out, inputs, settings, start.step)
    samples = Samples(accelerator, model, trained, held_out, inputs, source, settings)
    training = Training(settings, accelerator, model, inputs, loader, trained, start, checkpoint, validation, samples)
    flops = training_flops(TransformerSize.from_config(transformer.config), settings.video, tune)
    with TrainingLog(
        accelerator, run.finetune_logs / "loss.csv", tune, flops, start.step, pending_losses=start.losses
    ) as log:
        stopped = take_steps(training, log)
    if stopped is not None:
        end_logs(accelerator)
        return interrupted(settings, stopped, accelerator.num_processes, notes)
    write_adapter(training, source, counts, log.last_loss)
    end_logs(accelerator)
    return finished(training, counts, log, notes)


def take_steps(training: Training, log: TrainingLog) -> Path | None:
    """Make the optimizer steps that are left, with a checkpoint every so often.

    Args:
        training: Its model, optimizer and average are changed.
        log: Told of every batch and step.

    Returns:
        The checkpoint that was written when a signal stopped the training; None when all steps are made.
    """
    accelerator, tune, optimizer = training.accelerator, training.settings.finetune, training.trained.optimizer
    parameters, average, step = (
        list(training.trained.parameters().values()),
        training.trained.average,
        training.start.step,
    )
    training.validation.step(step, log)
    with stop_signals(accelerator) as stop_asked:
        for batch in training.loader:
            with accelerator.accumulate(training.model):
                loss = batch_loss(batch, training.model, training.inputs, tune)
                accelerator.backward(loss)
                log.add(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(parameters, tune.max_grad_norm)
                    rate = learning_rate(step, tune)
                    set_learning_rate(optimizer, rate)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            if average is not None:
                average.update(step)
            log.step(step, rate, grad_norm)
            training.validation.step(step, log)
            training.samples.step(step, log)
            stop = stop_asked()
            if step < tune.num_steps and (stop or step % tune.checkpoint_every == 0):
                written = save_checkpoint(training, log, step)
                if stop:
                    return written
    return None


def save_checkpoint(training: Training, log: TrainingLog, step: int) -> Path:
    """Write a checkpoint after an optimizer step, and return it; every process calls this."""
    tune, accelerator = training.settings.finetune, training.accelerator
    samples_a_step = tune.batch_size * tune.gradient_accumulation_steps * accelerator.num_processes
    state = replace(training.start, step=step, sample_index=step * samples_a_step, losses=log.pending_losses())
    folder = checkpoints_of(RunFolder.of(training.settings))
    with log.paused():
        return write_checkpoint(
            accelerator, folder, state, training.trained, tune.keep_checkpoints, training.checkpoint
        )


def make_trainable_state(
    transformer: CosmosTransformer3DModel, optimizer: torch.optim.Optimizer, tune: FinetuneSettings
) -> TrainableState:
    """Put together what the steps change, with its moving average where one is asked for."""
    trained = TrainableState(transformer, optimizer)
    if tune.ema_decay is None:
        return trained
    return replace(trained, average=ParameterAverage(trained.parameters(), tune.ema_decay))


def batch_loss(
    batch: dict[str, Any], model: torch.nn.Module, inputs: StepInputs, tune: FinetuneSettings
) -> torch.Tensor:
    """Return the mean rectified-flow loss of a batch of windows, with its graph.

    Args:
        batch: From `BatchMaker`, its tensors on the model's device.
        model: `VelocityModel`, as accelerate prepared it.
        inputs: Gives clean latents and texts.
        tune: For the conditioning frames' time.

    Returns:
        A scalar, float32.
    """
    draws = batch["draws"]
    flow = flow_input(inputs.clean(batch["content"]), draws, tune.conditional_frame_timestep)
    prompts = zip(batch["prompt"], draws.drop_text, strict=True)
    text_BLD = inputs.texts([None if dropped else prompt for prompt, dropped in prompts])
    velocity_BCTHW = model(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
    return flow_loss(velocity_BCTHW, flow).mean()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the coming step; accelerate would step a prepared scheduler once for each GPU."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def write_adapter(training: Training, source: WorldModelSource, counts: dict[str, Any], final_loss: float) -> None:
    """Write the finished adapter, the average of its steps where one is kept, with its card, whole or not at all.

    Args:
        training: That is done; every process calls this and returns when the adapter is there.
        source: The base model.
        counts: Of what was seen.
        final_loss: Of the last line.
    """
    accelerator, settings = training.accelerator, training.settings

    def write() -> None:
        with atomic_folder(RunFolder.of(settings).adapter) as temporary, training.trained.averaged():
            save_adapter(training.trained.transformer, temporary)
            write_card(temporary, settings, source, accelerator.device.type, counts, final_loss)

    on_main_process(accelerator, write)


def finished(training: Training, counts: dict[str, Any], log: TrainingLog, notes: list[str]) -> StageResult:
    """Upload the adapter where that is asked for, and return the result; an upload that failed makes it partial."""
    run, tune = RunFolder.of(training.settings), training.settings.finetune
    metrics = {**counts, "final_loss": log.last_loss, "step_s": round(log.elapsed_s / tune.num_steps, 3)}
    told, is_whole = [], True
    if tune.push_to_hub is not None and training.accelerator.is_main_process:
        sentence, is_whole = push_adapter(run.adapter, tune.push_to_hub)
        told.append(sentence)
    outputs = {"adapter": run.adapter, "loss": run.finetune_logs / "loss.csv"}
    return StageResult("finetune", outputs, metrics, [*notes, *told], partial=not is_whole)


def needed(
    settings: Settings, clips: list[TrainingClip], held_out: Sequence[Window] = ()
) -> tuple[list[Window], list[str]]:
    """Return the windows that the training may read from the cache, the held-out ones too, and all prompts."""
    windows = all_windows(clips, settings.video.num_frames, settings.finetune.windows_per_clip)
    return [*windows, *held_out], [*(clip.prompt for clip in clips), *(window.clip.prompt for window in held_out)]
