"""What a training will take, told by `--dry_run` before anything is loaded: steps, disk, memory and time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.velocity import BlockForward
from dreamgen.progress import duration
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.activation_checkpointing import CheckpointPolicy, choose_policies, training_blocks
from finetune.flow import latent_shape
from finetune.memory import GIB, activation_gib, activations_of, check_fits, estimate_memory, fixed_gib
from finetune.metrics import peak_flops, training_flops
from finetune.sizes import NUM_TEXT_TOKENS, TransformerSize, find_size
from finetune.training_log import read_steps
from finetune.windows import TrainingClip, Window, num_windows

# Share of a GPU's peak that a step reaches: a compiled LoRA step of the 2B model on an H200 reached 0.37.
EFFICIENCY = 0.35
USABLE = 0.92  # of a GPU's memory: the rest is the driver's, and lost between tensors
ASSUMED_GPU, ASSUMED_GIB = "H100", 79.0  # of which an 80 GB card has a little more


def count(
    settings: Settings, clips: Sequence[TrainingClip], held_out: Sequence[Window], num_processes: int
) -> dict[str, Any]:
    """Count what the training will see.

    Args:
        settings: Of the run.
        clips: To train on.
        held_out: Windows kept for validation.
        num_processes: GPUs.
    """
    tune = settings.finetune
    num_samples = tune.num_steps * tune.batch_size * tune.gradient_accumulation_steps * num_processes
    counts = {
        "num_clips": len(clips),
        "num_windows": num_windows(list(clips), settings.video.num_frames),
        "num_steps": tune.num_steps,
        "num_samples": num_samples,
        "num_epochs": round(num_samples / len(clips), 2),
    }
    return counts | ({"num_validation_clips": len(held_out)} if held_out else {})


def describe(
    settings: Settings,
    counts: dict[str, Any],
    windows: Sequence[Window],
    prompts: Sequence[str],
    num_processes: int = 1,
) -> StageResult:
    """Say what a training would take, without loading the model or writing.

    Args:
        settings: Of the run.
        counts: From `count`.
        windows: All that would be cached.
        prompts: Theirs.
        num_processes: GPUs that would train.

    Returns:
        Figures, with three sample prompts among the notes.

    Raises:
        UserError: if the training cannot fit on the GPU of this machine.
    """
    metrics, size = {**counts, "dry_run": True}, find_size(settings.model)
    notes = [f"prompt: {prompt}" for prompt in list(dict.fromkeys(prompts))[:3]]
    if size is None:
        notes.append(
            f"the sizes of {settings.model.path} are not known here, as it has not been downloaded: no estimate of "
            "cache, memory and time"
        )
        return StageResult("finetune", {}, metrics, notes)
    if settings.finetune.cache == "disk":
        num_bytes = cache_bytes(size, settings, len(set(windows)), len(set(prompts)))
        metrics["cache_gib"] = round(num_bytes / GIB, 3)
    metrics["memory_gib"], told = memory(size, settings)
    notes.append(told)
    step_s, basis = seconds_a_step(size, settings, num_processes)
    metrics["hours"] = round(step_s * settings.finetune.num_steps / 3600, 3)
    total = duration(step_s * settings.finetune.num_steps)
    notes.append(f"time: about {total}, {step_s:.3g} s a step {basis}, without filling the cache")
    return StageResult("finetune", {}, metrics, notes)


def check_memory(settings: Settings) -> None:
    """Refuse a training that cannot fit on this machine's GPU; nothing is known without one or without the sizes.

    Raises:
        UserError: with the arithmetic.
    """
    size, gpu = find_size(settings.model), this_gpu(settings)
    if size is not None and gpu is not None:
        check_fits(size, settings, gpu.total_memory / GIB, gpu.name)


def policies_for(size: TransformerSize, settings: Settings, compiled: bool) -> list[CheckpointPolicy]:
    """Choose what each block keeps, by `fast_step.choose_levels`, within `memory_gib` and the GPU that is here.

    Args:
        size: Of the transformer.
        settings: Of the run.
        compiled: Whether the blocks are; what is not keeps more, so fewer of them can keep all.
    """
    gpu, memory_gib = this_gpu(settings), settings.finetune.memory_gib
    if gpu is not None:
        memory_gib = min(memory_gib, USABLE * gpu.total_memory / GIB)
    fixed, activations = sum(fixed_gib(size, settings)), activations_of(settings, compiled)
    return choose_policies(size.num_layers, activation_gib(size, settings), fixed, memory_gib, activations)


def blocks_for(transformer: CosmosTransformer3DModel, settings: Settings, device: torch.device) -> list[BlockForward]:
    """Return how each block runs in training: what it keeps by `memory_gib`, compiled on a GPU.

    Args:
        transformer: For its sizes.
        settings: Of the run.
        device: That it trains on.
    """
    compiled = settings.finetune.compile and device.type == "cuda"
    return training_blocks(policies_for(TransformerSize.from_config(transformer.config), settings, compiled), compiled)


def cache_bytes(size: TransformerSize, settings: Settings, num_windows: int, num_prompts: int) -> int:
    """Count a full cache's bytes: a latent a window, a projected text a prompt and one for the dropped text."""
    number = 2 if settings.model.dtype == "bfloat16" else 4
    texts = (num_prompts + 1) * NUM_TEXT_TOKENS * size.text_features
    return number * (num_windows * math.prod(latent_shape(settings.video)) + texts)


def memory(size: TransformerSize, settings: Settings) -> tuple[float, str]:
    """Estimate a GPU's peak, and say in words what it is made of; without a GPU here, for one of 80 GB.

    Returns:
        GiB, and the sentence.

    Raises:
        UserError: if the training cannot fit on the GPU that is here.
    """
    gpu = this_gpu(settings)
    memory_gib = gpu.total_memory / GIB if gpu is not None else ASSUMED_GIB
    name = gpu.name if gpu is not None else f"a GPU of {ASSUMED_GIB:.0f} GiB (there is none here)"
    doubt = ""
    try:
        check_fits(size, settings, memory_gib, name)
    except UserError as error:
        if gpu is not None:
            raise
        doubt = f"; {error.what}. {error.next_step}"
    levels = policies_for(size, settings, settings.finetune.compile)
    estimate = estimate_memory(size, settings, levels, settings.finetune.compile)
    kept = ", ".join(f"{level} in {levels.count(level)}" for level in dict.fromkeys(levels))
    return round(estimate.peak, 1), f"memory on {name}: about {estimate}; blocks keep: {kept}{doubt}"


def seconds_a_step(size: TransformerSize, settings: Settings, num_processes: int = 1) -> tuple[float, str]:
    """Estimate an optimizer step's time.

    Args:
        size: Of the transformer.
        settings: Of the run.
        num_processes: GPUs.

    Returns:
        Seconds, and in words where they come from: this run's own loss.csv, or the formula's operations at a share of
        the GPU's peak, an H100's where there is none here that is known.
    """
    tune = settings.finetune
    windows_a_step = tune.batch_size * tune.gradient_accumulation_steps * num_processes
    rows = read_steps(RunFolder.of(settings).finetune_logs / "loss.csv")
    measured = [float(row["samples_per_s"]) for row in rows if row.get("samples_per_s")]
    if measured:
        # The first line also holds what happens once, such as compiling.
        speed = statistics.median(measured[1:] or measured)
        return windows_a_step / speed, "as measured in this run's loss.csv"
    gpu = this_gpu(settings)
    peak = peak_flops(gpu.name) if gpu is not None else None
    name = gpu.name if peak is not None else f"an {ASSUMED_GPU}, as there is no GPU here whose peak is known"
    peak = peak or peak_flops(ASSUMED_GPU)
    flops = training_flops(size, settings.video, tune) * windows_a_step / num_processes
    return flops / (peak * EFFICIENCY), f"at {EFFICIENCY:.0%} of the peak of {name}"


def this_gpu(settings: Settings) -> Any | None:
    """Return the properties of the GPU that a training here would use, or None."""
    if settings.model.device == "cpu" or not torch.cuda.is_available():
        return None
    index = torch.device(settings.model.device).index if settings.model.device != "auto" else None
    return torch.cuda.get_device_properties(index if index is not None else torch.cuda.current_device())
