"""Training set -> adapter: LoRA or DoRA on the frozen world model, by the published recipe.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import Cosmos2_5_PredictBasePipeline
from torch.utils.data import DataLoader

from dreamgen.core.files import atomic_folder, write_text
from dreamgen.core.records import StageResult
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.models.adapter import save_adapter
from dreamgen.models.world import load_world_model, resolve_world_model, torch_dtype
from finetune.card import adapter_card
from finetune.flow import draw_batch, drop_texts, encode_windows, flow_input, flow_loss, predict_velocity
from finetune.schedule import learning_rate
from finetune.setup import attach_adapter, check_can_start, make_accelerator, start_logs
from finetune.text import PromptFeatures
from finetune.training_log import TrainingLog
from finetune.windows import TrainingClip, WindowDataset, collate_windows, num_windows, read_training_set


def finetune(settings: Settings, dry_run: bool = False) -> StageResult:
    """Train an adapter on the run's training set and write it to `adapter/`, whole or not at all.

    Args:
        settings: Of the run. Under `accelerate launch` every process calls this with the same settings.
        dry_run: Check the input and count, without loading the model or writing.

    Returns:
        The adapter and its loss curve, with counts.

    Raises:
        UserError: if the training set, the output folder or a setting cannot be used.
    """
    run, tune = RunFolder.of(settings), settings.finetune
    check_can_start(settings)
    clips = read_training_set(run, settings.video)
    if dry_run:
        return describe(settings, clips)
    accelerator = make_accelerator(settings, run)
    with accelerator.main_process_first():  # which builds the mini model where it is not there yet
        source = resolve_world_model(settings.model, run)
    # Nothing is dreamed here, so the guardrail has nothing to guard.
    pipe = load_world_model(source, replace(settings.model, safety_checker=False), device=accelerator.device)
    parameters = attach_adapter(pipe, settings)
    counts = count(settings, clips, accelerator.num_processes)
    windows = WindowDataset(clips, settings.video.num_frames, counts["num_samples"], settings.seed)
    loader = DataLoader(windows, tune.batch_size, shuffle=False, collate_fn=collate_windows)
    optimizer = torch.optim.AdamW(parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay)
    transformer, optimizer, loader = accelerator.prepare(pipe.transformer, optimizer, loader)
    texts, notes, step = PromptFeatures(pipe), start_logs(accelerator, run, settings), 0
    with TrainingLog(accelerator, run.finetune_logs / "loss.csv", tune) as log:
        for batch in loader:
            with accelerator.accumulate(transformer):
                loss = batch_loss(batch, pipe, transformer, texts, settings)
                accelerator.backward(loss)
                log.add(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(parameters, tune.max_grad_norm)
                    set_learning_rate(optimizer, learning_rate(step, tune))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                log.step(step + 1, learning_rate(step, tune), grad_norm)
                step += 1
                if step % tune.checkpoint_every == 0 and step < tune.num_steps:
                    write_adapter(accelerator, transformer, run.finetune_logs / f"checkpoints/step-{step:06d}")
    card = adapter_card(settings, source, run.adapter, accelerator.device.type, counts, log.last_loss)
    write_adapter(accelerator, transformer, run.adapter, card)
    accelerator.end_training()
    figures = {**counts, "final_loss": log.last_loss, "step_s": round(log.elapsed_s / tune.num_steps, 3)}
    return StageResult("finetune", {"adapter": run.adapter, "loss": run.finetune_logs / "loss.csv"}, figures, notes)


def batch_loss(
    batch: dict[str, Any],
    pipe: Cosmos2_5_PredictBasePipeline,
    transformer: torch.nn.Module,
    texts: PromptFeatures,
    settings: Settings,
) -> torch.Tensor:
    """Return the mean rectified-flow loss of a batch of windows, with its graph.

    Args:
        batch: From `collate_windows`, its video on the model's device.
        pipe: For its frozen VAE.
        transformer: As accelerate prepared it.
        texts: Encodes the prompts.
        settings: Of the run.

    Returns:
        A scalar, float32.
    """
    tune, video = settings.finetune, settings.video
    clean_BCTHW = encode_windows(pipe, batch["video_BTHWC"])
    draws = draw_batch(settings.seed, batch["sample_index"], clean_BCTHW.shape[1:], tune)
    flow = flow_input(clean_BCTHW, draws, tune.conditional_frame_timestep)
    text_BLD = drop_texts(texts(batch["prompt"], clean_BCTHW.device), draws.drop_text)
    size_px, dtype = (video.height, video.width), torch_dtype(settings.model.dtype)
    return flow_loss(predict_velocity(transformer, flow, text_BLD, size_px, dtype), flow).mean()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the coming step; accelerate would step a prepared scheduler once for each GPU."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def write_adapter(
    accelerator: Accelerator, transformer: torch.nn.Module, folder: Path, card: str | None = None
) -> None:
    """Write the adapter as it is now, from the main process; every process returns when it is there.

    Args:
        accelerator: That prepared the transformer.
        transformer: With the adapter.
        folder: It must not exist; it appears whole.
        card: Text of its README.md.
    """
    if accelerator.is_main_process:
        with atomic_folder(folder) as temporary:
            save_adapter(accelerator.unwrap_model(transformer), temporary)
            if card is not None:
                write_text(temporary / "README.md", card)
    accelerator.wait_for_everyone()


def count(settings: Settings, clips: list[TrainingClip], num_processes: int) -> dict[str, Any]:
    """Count what the training will see."""
    tune = settings.finetune
    num_samples = tune.num_steps * tune.batch_size * tune.gradient_accumulation_steps * num_processes
    return {
        "num_clips": len(clips),
        "num_windows": num_windows(clips, settings.video.num_frames),
        "num_steps": tune.num_steps,
        "num_samples": num_samples,
        "num_epochs": round(num_samples / len(clips), 2),
    }


def describe(settings: Settings, clips: list[TrainingClip]) -> StageResult:
    """Return the counts and three sample prompts of a training that is not run."""
    counts = count(settings, clips, int(os.environ.get("WORLD_SIZE", "1")))
    prompts = list(dict.fromkeys(clip.prompt for clip in clips))[:3]
    return StageResult("finetune", {}, {**counts, "dry_run": True}, [f"prompt: {prompt}" for prompt in prompts])
