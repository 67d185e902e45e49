"""What stands before the first step of a training: checks, accelerator, adapter and logs."""

from __future__ import annotations

import importlib.util

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.core.config import get_path, setting_paths
from dreamgen.core.errors import Problems
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.models.adapter import add_adapter
from dreamgen.models.world import resolve_device
from finetune.seeds import derived_seed


def check_can_start(settings: Settings) -> None:
    """Refuse to train where an adapter lies already, or with settings that cannot work here.

    Raises:
        UserError: listing what stands in the way.
    """
    run, tune, problems = RunFolder.of(settings), settings.finetune, Problems()
    run.check_unchanged(settings, [])  # what earlier stages were made with
    if run.adapter.exists():
        problems.add(
            f"{run.adapter} already exists",
            allowed="a run without an adapter",
            next_step="choose another --out, or --resume to keep this adapter and go on",
        )
    if tune.tracker != "none" and importlib.util.find_spec(tune.tracker) is None:
        problems.add(
            f"finetune.tracker={tune.tracker} is not installed",
            next_step=f"pip install {tune.tracker}, or --tracker=none (loss.csv is written in any case)",
        )
    if tune.max_grad_norm <= 0:
        problems.add(
            "finetune.max_grad_norm clips every gradient to nothing",
            actual=tune.max_grad_norm,
            allowed="above 0; inf never clips",
        )
    problems.raise_if_any("the training cannot start")


def make_accelerator(settings: Settings, run: RunFolder) -> Accelerator:
    """Make the accelerator for the settings' device and precision: bf16 autocast over bfloat16 weights."""
    device = resolve_device(settings.model.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    tune = settings.finetune
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if settings.model.dtype == "bfloat16" else "no",
        # As a plugin: the bare number would yield to an environment variable.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=tune.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if tune.tracker == "none" else tune.tracker,
        project_dir=run.finetune_logs,
    )


def attach_adapter(pipe: Cosmos2_5_PredictBasePipeline, settings: Settings) -> list[torch.nn.Parameter]:
    """Put the settings' adapter on the transformer, its start drawn from the run's seed; return its parameters."""
    tune = settings.finetune
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, "adapter"))
        parameters = add_adapter(
            pipe.transformer, tune.lora.rank, tune.lora.alpha, tune.lora.target_modules, tune.method == "dora"
        )
    if tune.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    pipe.transformer.train()
    return parameters


def start_logs(accelerator: Accelerator, run: RunFolder, settings: Settings) -> list[str]:
    """Make `finetune/`, write run.yaml and start the trackers; an interrupted training's files are moved aside.

    Returns:
        Notes for the user.
    """
    notes = []
    if accelerator.is_main_process:
        if run.finetune_logs.exists():
            tried = len(list(run.root.glob("finetune.interrupted-*")))
            aside = run.finetune_logs.rename(run.root / f"finetune.interrupted-{tried + 1}")
            notes.append(f"an earlier training did not finish; its files are in {aside}")
        run.finetune_logs.mkdir(parents=True)
        run.record(settings, ["finetune"])
    accelerator.wait_for_everyone()
    paths = [path for path, _ in setting_paths(Settings) if path.startswith(("finetune.", "video.", "model."))]
    values = {path: get_path(settings, path) for path in [*paths, "seed"]}
    plain = {path: value if isinstance(value, int | float | str) else str(value) for path, value in values.items()}
    accelerator.init_trackers("tracker", config=plain)
    return notes
