"""Estimates of `--dry_run` before anything is loaded: steps, disk, memory and time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models import devices
from dreamgen.models.trainable import TrainingCost
from dreamgen.models.world_model import model_type
from dreamgen.progress import duration
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.metrics import peak_flops
from finetune.training_log import read_steps
from finetune.windows import TrainingClip, Window, num_windows

# Share of a GPU's peak that a step of the 2B model reaches. Compiled: LoRA 0.37 on an H200, 0.40 on an H100, DoRA 0.35.
# Not compiled: LoRA 0.26 and DoRA 0.24 on an H100.
EFFICIENCY, EFFICIENCY_NOT_COMPILED = 0.35, 0.25
ASSUMED_GPU, ASSUMED_GIB = "H100", 79.0  # an 80 GB card has slightly more
GIB = 2**30


def count(
    settings: Settings, clips: Sequence[TrainingClip], held_out: Sequence[Window], num_processes: int
) -> dict[str, Any]:
    """Count the clips, windows and samples of a training.

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
    """Estimate what a training takes, without loading the model or writing.

    Args:
        settings: Of the run.
        counts: From `count`.
        windows: All that would be cached.
        prompts: Theirs.
        num_processes: GPUs of the training.

    Returns:
        Metrics, with three sample prompts among the notes.

    Raises:
        UserError: if the training cannot fit on the GPU of this machine.
    """
    metrics, cost = {**counts, "dry_run": True}, training_cost(settings)
    notes = [f"prompt: {prompt}" for prompt in list(dict.fromkeys(prompts))[:3]]
    if cost is None:
        notes.append(
            f"the size of {settings.model.path} is not known, as it has not been downloaded: no estimate of cache, "
            "memory and time"
        )
        return StageResult("finetune", {}, metrics, notes)
    if settings.finetune.cache == "disk":
        num_bytes = len(set(windows)) * cost.window_bytes + (len(set(prompts)) + 1) * cost.prompt_bytes
        metrics["cache_gib"] = round(num_bytes / GIB, 3)
    metrics["memory_gib"], sentence = memory(cost, settings)
    notes.append(sentence)
    step_s, basis = seconds_a_step(cost, settings, num_processes)
    metrics["hours"] = round(step_s * settings.finetune.num_steps / 3600, 3)
    total = duration(step_s * settings.finetune.num_steps)
    notes.append(f"time: about {total}, {step_s:.3g} s a step {basis}, without filling the cache")
    return StageResult("finetune", {}, metrics, notes)


def check_memory(settings: Settings) -> None:
    """Refuse a training that cannot fit on this machine's GPU; without a GPU or the model's size, refuse nothing.

    Raises:
        UserError: with the estimate.
    """
    cost, gpu = training_cost(settings), devices.this_gpu(settings)
    if cost is not None and gpu is not None:
        cost.check_fits(gpu.total_memory / GIB, gpu.name)


def training_cost(settings: Settings) -> TrainingCost | None:
    """Return what training the settings' model takes; None if it is not known."""
    return model_type(settings.model).load_class().training_cost(settings)


def memory(cost: TrainingCost, settings: Settings) -> tuple[float, str]:
    """Estimate the peak memory of a GPU; on a machine without one, for a GPU with 80 GB.

    Returns:
        GiB, and a sentence that says what it consists of.

    Raises:
        UserError: if the training cannot fit on this machine's GPU.
    """
    gpu = devices.this_gpu(settings)
    memory_gib = gpu.total_memory / GIB if gpu is not None else ASSUMED_GIB
    name = gpu.name if gpu is not None else f"a GPU of {ASSUMED_GIB:.0f} GiB (there is none here)"
    doubt = ""
    try:
        cost.check_fits(memory_gib, name)
    except UserError as error:
        if gpu is not None:
            raise
        doubt = f"; {error.what}. {error.next_step}"
    peak_gib, sentence = cost.describe_memory()
    return round(peak_gib, 1), f"memory on {name}: {sentence}{doubt}"


def seconds_a_step(cost: TrainingCost, settings: Settings, num_processes: int = 1) -> tuple[float, str]:
    """Estimate an optimizer step's time.

    Args:
        cost: Of a window.
        settings: Of the run.
        num_processes: GPUs.

    Returns:
        Seconds, and what they are based on: this run's own loss.csv, or the operations at a share of the GPU's peak, or
        of an H100's if this machine has no GPU whose peak is known.
    """
    tune = settings.finetune
    windows_a_step = tune.batch_size * tune.gradient_accumulation_steps * num_processes
    rows = read_steps(RunFolder.of(settings).finetune_logs / "loss.csv")
    measured = [float(row["samples_per_s"]) for row in rows if row.get("samples_per_s")]
    if measured:
        # The first line includes one-time work, such as compilation.
        speed = statistics.median(measured[1:] or measured)
        return windows_a_step / speed, "as measured in this run's loss.csv"
    gpu = devices.this_gpu(settings)
    name, peak = (gpu.name, peak_flops(gpu.name)) if gpu is not None else ("", None)
    if peak is None:
        name, peak = f"an {ASSUMED_GPU}, as there is no GPU here whose peak is known", peak_flops(ASSUMED_GPU)
    assert peak is not None, "configs/hardware/gpus.yaml lists it"
    flops = cost.window_flops * windows_a_step / num_processes
    efficiency = EFFICIENCY if tune.compile else EFFICIENCY_NOT_COMPILED
    without = "" if tune.compile else ", without compilation"
    return flops / (peak * efficiency), f"at {efficiency:.0%} of the peak of {name}{without}"
