"""Before the first step of a training: checks, accelerator and logs."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, GradientAccumulationPlugin

from dreamgen.config.paths import all_settings, get_path
from dreamgen.config.settings import Settings
from dreamgen.errors import Problems
from dreamgen.models.devices import resolve_device
from dreamgen.models.world_model import model_type
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainingState
from finetune.distillation import check_distillation
from finetune.hub import check_can_push
from finetune.resume import make_folder
from finetune.stopping import on_main_process


def check_can_start(settings: Settings) -> None:
    """Refuse to train if the run has an adapter already, or with settings that cannot work on this machine.

    Raises:
        UserError: listing every problem.
    """
    run, tune, problems = RunFolder.of(settings), settings.finetune, Problems()
    run.check_unchanged(settings, [])
    if run.adapter.exists():
        problems.add(
            f"{run.adapter} already exists",
            allowed="a run without an adapter",
            next_step="choose another --out, or --resume to keep this adapter and continue",
        )
    if tune.tracker != "none" and importlib.util.find_spec(tune.tracker) is None:
        problems.add(
            f"finetune.tracker={tune.tracker} is not installed",
            next_step=f"pip install {tune.tracker}, or --tracker=none (loss.csv is written in any case)",
        )
    if tune.max_grad_norm <= 0:
        problems.add(
            "finetune.max_grad_norm clips every gradient to zero",
            actual=tune.max_grad_norm,
            allowed="above 0; inf turns clipping off",
        )
    if tune.windows_per_clip < 1:
        problems.add("finetune.windows_per_clip leaves no window", actual=tune.windows_per_clip, allowed="at least 1")
    if tune.cuda_graphs and tune.compile and tune.gradient_accumulation_steps > 1:
        problems.add(
            "finetune.cuda_graphs cannot accumulate gradients: the next batch's graph reuses their memory",
            actual=f"gradient_accumulation_steps={tune.gradient_accumulation_steps}",
            allowed="1",
            next_step="set a larger --batch_size, or leave --cuda_graphs out",
        )
    if tune.keep_best and not tune.validation_clips:
        problems.add(
            "finetune.keep_best needs held-out clips to find the best weights with", next_step="--validation_clips=4"
        )
    if tune.sample_every and not tune.validation_clips:
        problems.add("finetune.sample_every needs a held-out clip to generate from", next_step="--validation_clips=1")
    if tune.sample_every:
        with problems.collected():
            model_type(settings.model).load_class().check_requirements(settings.model)
    check_distillation(settings, problems)
    check_can_push(tune.push_to_hub, problems)
    problems.raise_if_any("the training cannot start")


def make_accelerator(settings: Settings, run: RunFolder) -> Accelerator:
    """Create the accelerator for the device and precision of the settings: bf16 autocast over bfloat16 weights."""
    device = resolve_device(settings.model.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    tune = settings.finetune
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first training
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if settings.model.dtype == "bfloat16" else "no",
        # As a plugin: an environment variable would override the plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=tune.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        # The frozen model's buffers are the same everywhere; broadcasting them at every step would only cost time.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        log_with=None if tune.tracker == "none" else tune.tracker,
        project_dir=run.finetune_logs,
    )


def start_logs(
    accelerator: Accelerator, run: RunFolder, settings: Settings, start: TrainingState, checkpoint: Path | None
) -> list[str]:
    """Create `finetune/`, write run.yaml and start or resume the trackers.

    Args:
        accelerator: Every process calls this.
        run: Of the training.
        settings: Of the run.
        start: State of the training.
        checkpoint: The one that it continues from; None for a new training.

    Returns:
        Notes for the user.
    """
    notes = []

    def write() -> None:
        notes.extend(make_folder(run.finetune_logs, checkpoint))
        run.record(settings, ["finetune"])

    on_main_process(accelerator, run.finetune_logs, write)
    paths = [path for path in all_settings() if path.startswith(("finetune.", "video.", "model."))]
    values = {path: get_path(settings, path) for path in [*paths, "seed"]}
    plain = {path: value if isinstance(value, int | float | str) else str(value) for path, value in values.items()}
    resumed = {
        "tensorboard": {"purge_step": start.step + 1 if start.step else None},  # hides points that are logged again
        "wandb": {
            "name": run.root.resolve().name, "id": start.tracker_run, "resume": "allow",
            "dir": str(run.finetune_logs),  # not the working directory
        },
        "trackio": {"name": start.tracker_run, "resume": "allow"},
    }  # fmt: skip
    # For tensorboard the name is a folder beside loss.csv, for the others a project of many runs.
    name = "tracker" if settings.finetune.tracker == "tensorboard" else "dreamgen"
    with redirect_stdout(sys.stderr):  # trackio prints much, and stdout is for results
        accelerator.init_trackers(name, config=plain, init_kwargs=resumed)
    return notes


def end_logs(accelerator: Accelerator) -> None:
    """Flush the trackers, and leave the process group."""
    with redirect_stdout(sys.stderr):
        accelerator.end_training()
