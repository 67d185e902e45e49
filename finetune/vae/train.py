"""Training set -> VAE.

Axes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from torch.utils.data import DataLoader

from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.latents import use_channels_last
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.cosmos_predict25.vae_training import Reconstruction, make_norm_act, measure_latents
from dreamgen.models.devices import resolve_device
from dreamgen.models.saved_config import forget_source
from dreamgen.models.world_model import check_size
from dreamgen.run.files import atomic_folder
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainableState, TrainingState, load_checkpoint, whole_checkpoints, write_checkpoint
from finetune.ema import parameter_average
from finetune.resume import CHECKPOINTS, fixed_values, make_folder, resume_command, state_of
from finetune.schedule import learning_rate
from finetune.stopping import on_main_process, stop_signals
from finetune.time_limit import TimeLimit
from finetune.training_log import TrainingLog, read_steps
from finetune.vae.batches import Clips, decode_clips, make_loader, to_unit
from finetune.vae.losses import kl_divergence, reconstruction_loss
from finetune.vae.model import TrainedVae, make_vae
from finetune.vae.validate import VaeValidation
from finetune.validate import hold_out
from finetune.windows import TrainingClip, Window, read_training_set

MEASURED_CLIPS = 512  # for the latents' mean and deviation


@dataclass(frozen=True)
class VaeTraining:
    """Everything that the steps of a training need.

    Args:
        settings: Of the run.
        accelerator: Prepared the module, the optimizer and the loader.
        module: Of the VAE.
        forward_module: The module as accelerate wrapped it.
        loader: The batches that no step has used.
        trained: What the steps change.
        start: State before the first of them.
        checkpoint: The one that the training continues from.
        validation: Measures held-out clips.
        time_limit: Ends the training before its last step.
    """

    settings: Settings
    accelerator: Accelerator
    module: Reconstruction
    forward_module: torch.nn.Module
    loader: DataLoader
    trained: TrainableState[TrainedVae]
    start: TrainingState
    checkpoint: Path | None
    validation: VaeValidation
    time_limit: TimeLimit


def finetune_vae(settings: Settings, resume: bool = False) -> StageResult:
    """Train a VAE on the run's training set and write it to `vae/`, whole or not at all.

    Args:
        settings: Of the run.
        resume: Continue from the last checkpoint if there is one.

    Returns:
        The VAE, with the PSNR of held-out clips; or, after Ctrl-C or SIGTERM, the checkpoint to continue from.

    Raises:
        UserError: if the training set, the configuration or a checkpoint cannot be used.
    """
    start_s, run, tune = time.monotonic(), RunFolder.of(settings), settings.finetune_vae
    check_size(settings)
    if run.vae.exists():
        raise UserError(
            f"{run.vae} already exists",
            allowed="a run without a VAE",
            next_step="choose another --out, or --resume to keep it",
        )
    clips, held_out = hold_out(
        read_training_set(run, settings.video, tune.validation_clips), tune.validation_clips, settings.seed
    )
    logs = run.finetune_vae_logs
    checkpoints = whole_checkpoints(logs / CHECKPOINTS) if resume else []
    checkpoint = checkpoints[-1] if checkpoints else None
    accelerator = make_accelerator(settings)
    with accelerator.main_process_first():
        vae, base = make_vae(settings, accelerator.device)
    fixed = fixed_values(settings, clips, base, accelerator.num_processes, "finetune_vae")
    start = state_of(checkpoint, {**fixed, "video": repr(settings.video), "seed": repr(settings.seed)})
    notes: list[str] = []

    def write_folder() -> None:
        notes.extend(make_folder(logs, checkpoint))
        run.record(settings, ["finetune_vae"])

    on_main_process(accelerator, logs, write_folder)
    training = prepare(settings, accelerator, TrainedVae(vae), clips, held_out, start, checkpoint, start_s)
    with TrainingLog(accelerator, logs / "loss.csv", tune, None, start.step, start.losses, name="finetune_vae") as log:
        stopped, measured = take_steps(training, log)
    metrics: dict[str, Any] = {"num_clips": len(clips), "num_steps": log.last_step, "final_loss": log.last_loss}
    if stopped is not None:
        how = f"stopped; continue with:  {resume_command('finetune_vae', settings, accelerator.num_processes)}"
        accelerator.end_training()
        return StageResult("finetune_vae", {"checkpoint": stopped}, metrics, [*notes, how], partial=True)
    write_vae(training, clips)
    accelerator.end_training()  # leaves the process group
    outputs = {"vae": run.vae, "loss": logs / "loss.csv"}
    return StageResult("finetune_vae", outputs, metrics | measured, notes)


def make_accelerator(settings: Settings) -> Accelerator:
    """Create the accelerator: bf16 autocast over float32 weights on a GPU if `model.dtype` is bfloat16."""
    device = resolve_device(settings.model.device)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first training
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if settings.model.dtype == "bfloat16" else "no",
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def prepare(
    settings: Settings,
    accelerator: Accelerator,
    trained_vae: TrainedVae,
    clips: list[TrainingClip],
    held_out: list[Window],
    start: TrainingState,
    checkpoint: Path | None,
    start_s: float,
) -> VaeTraining:
    """Decode the clips, and create optimizer, loader and average, restored from the checkpoint if there is one."""
    tune, run, vae = settings.finetune_vae, RunFolder.of(settings), trained_vae.network
    use_channels_last(vae)
    read = decode_clips(settings, [*(window.clip for window in held_out), *clips])
    num_samples = tune.num_steps * tune.batch_size * accelerator.num_processes
    loader = make_loader(settings, clips, read, num_samples, accelerator.device, start.sample_index)
    is_gpu = accelerator.device.type == "cuda"
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=tune.learning_rate, betas=(0.9, 0.99), weight_decay=tune.weight_decay, fused=is_gpu
    )
    module = Reconstruction(vae, make_norm_act(tune.compile and is_gpu))
    forward_module, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    average = None if tune.ema_decay is None else parameter_average(parameters, tune.ema_decay)
    trained = TrainableState(trained_vae, optimizer, average)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, trained)
    logs = run.finetune_vae_logs
    validation = VaeValidation(accelerator, module, trained, held_out, read, tune, logs / "validation.csv", start.step)
    rows = read_steps(logs / "loss.csv", start.step) if start.step else []
    limit = TimeLimit(accelerator, tune.max_minutes, start_s, float(rows[-1]["seconds"]) if rows else 0.0)
    return VaeTraining(
        settings, accelerator, module, forward_module, loader, trained, start, checkpoint, validation, limit
    )


def take_steps(training: VaeTraining, log: TrainingLog) -> tuple[Path | None, dict[str, float]]:
    """Make the remaining optimizer steps, with a checkpoint every so many.

    Args:
        training: Its weights, optimizer and average are changed.
        log: Receives every loss and step.

    Returns:
        The checkpoint that was written when a signal stopped the training, None when it is done; and the last PSNRs.
    """
    accelerator, tune = training.accelerator, training.settings.finetune_vae
    optimizer, average = training.trained.optimizer, training.trained.average
    parameters = list(training.trained.parameters().values())
    noise = torch.Generator(accelerator.device)
    step, measured = training.start.step, {}
    with stop_signals(accelerator) as stop_requested:
        for video_BTHWC in training.loader:
            share = training.time_limit.share()
            noise.manual_seed(derived_seed(training.settings.seed, "vae noise", step, accelerator.process_index))
            loss = batch_loss(training, video_BTHWC, noise)
            accelerator.backward(loss)
            log.add(loss)
            grad_norm: Any = accelerator.clip_grad_norm_(parameters, tune.max_grad_norm)
            rate = learning_rate(step, tune, share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if average is not None:
                average.step(parameters)
            is_last = step == tune.num_steps or share >= 1
            log.step(step, rate, grad_norm, is_last)
            measured = training.validation.step(step, log, is_last) or measured
            if is_last:
                break
            stop = stop_requested()
            if stop or step % tune.checkpoint_every == 0:
                written = save_checkpoint(training, log, step)
                if stop:
                    return written, measured
    return None, measured


def batch_loss(training: VaeTraining, video_BTHWC: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Return the loss of a batch with its graph, a scalar."""
    tune, video = training.settings.finetune_vae, training.settings.video
    video_BCTHW = to_unit(video_BTHWC)
    shape = (len(video_BCTHW), *latent_shape(video.num_frames, video.height, video.width))
    noise_BCTHW = torch.randn(shape, generator=noise, device=video_BCTHW.device)
    with training.accelerator.autocast():
        decoded_BCTHW, mean_BCTHW, logvar_BCTHW = training.forward_module(video_BCTHW, noise_BCTHW)
    loss = reconstruction_loss(decoded_BCTHW.float(), video_BCTHW, tune)
    return loss + tune.kl_weight * kl_divergence(mean_BCTHW.float(), logvar_BCTHW.float())


def save_checkpoint(training: VaeTraining, log: TrainingLog, step: int) -> Path:
    """Write a checkpoint after an optimizer step, and return it; every process calls this."""
    tune, accelerator = training.settings.finetune_vae, training.accelerator
    num_samples = step * tune.batch_size * accelerator.num_processes
    state = replace(training.start, step=step, sample_index=num_samples, losses=log.pending_losses())
    folder = RunFolder.of(training.settings).finetune_vae_logs / CHECKPOINTS
    with log.paused():
        return write_checkpoint(
            accelerator, folder, state, training.trained, tune.keep_checkpoints, training.checkpoint
        )


def write_vae(training: VaeTraining, clips: list[TrainingClip]) -> None:
    """Write the finished VAE, or its moving average if there is one, with the measured statistics of its latents."""
    run, accelerator, vae = RunFolder.of(training.settings), training.accelerator, training.trained.model.network

    def videos() -> Iterator[torch.Tensor]:
        some = clips[:: -(-len(clips) // MEASURED_CLIPS)]
        read: Clips = training.loader.dataset.read  # pyright: ignore[reportAttributeAccessIssue]  # `WindowDataset`
        for clip in some:
            yield to_unit(read(Window(clip, 0))[None].to(accelerator.device))

    def write() -> None:
        with atomic_folder(run.vae) as temporary, training.trained.averaged():
            with accelerator.autocast():
                mean, std = measure_latents(training.module, videos())
            vae.register_to_config(latents_mean=mean, latents_std=std)
            vae.save_pretrained(temporary, safe_serialization=True)
            forget_source(temporary)
            training.validation.write_pictures(temporary / "held_out.png")

    on_main_process(accelerator, run.vae, write)
