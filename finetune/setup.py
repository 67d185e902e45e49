"""What stands before the first step of a training: checks, accelerator, adapter and logs."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, GradientAccumulationPlugin
from diffusers import CosmosTransformer3DModel

from dreamgen.config.paths import all_settings, get_path
from dreamgen.config.settings import Settings
from dreamgen.errors import Problems, UserError
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.loading import resolve_device
from dreamgen.models.cosmos_predict25.safety import require_safety_checker
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainingState
from finetune.dora import use_closed_form
from finetune.hub import check_can_push
from finetune.resume import make_folder
from finetune.seeds import derived_seed
from finetune.stopping import on_main_process


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
    if tune.windows_per_clip < 1:
        problems.add("finetune.windows_per_clip leaves no window", actual=tune.windows_per_clip, allowed="at least 1")
    if tune.sample_every and not tune.validation_clips:
        problems.add("finetune.sample_every needs a held-out clip to dream from", next_step="--validation_clips=1")
    if tune.sample_every:
        try:
            require_safety_checker(settings.model.safety_checker)
        except UserError as error:
            problems.errors.append(error)
    check_can_push(tune.push_to_hub, problems)
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
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        # The frozen model's buffers are the same everywhere; sent at every step they would only cost time.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        log_with=None if tune.tracker == "none" else tune.tracker,
        project_dir=run.finetune_logs,
    )


def make_trainable(transformer: CosmosTransformer3DModel, settings: Settings) -> list[torch.nn.Parameter]:
    """Put an adapter on the transformer, its start drawn from the run's seed, or free the weights for `full`.

    Returns:
        The parameters that are trained, in float32.
    """
    tune = settings.finetune
    transformer.train()
    if tune.method == "full":
        return free_weights(transformer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, "adapter"))
        parameters = add_adapter(
            transformer, tune.lora.rank, tune.lora.alpha, tune.lora.target_modules, tune.method == "dora"
        )
    use_closed_form(transformer)
    return parameters


def free_weights(transformer: CosmosTransformer3DModel) -> list[torch.nn.Parameter]:
    """Let all weights be trained except the text's projection, which stands before the cache.

    Returns:
        The parameters, now in float32: small updates vanish in bfloat16.
    """
    parameters = [p for name, p in transformer.named_parameters() if not name.startswith("crossattn_proj.")]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def start_logs(
    accelerator: Accelerator, run: RunFolder, settings: Settings, start: TrainingState, checkpoint: Path | None
) -> list[str]:
    """Make `finetune/` ready, write run.yaml and start the trackers, or go on with them.

    Args:
        accelerator: Every process calls this.
        run: Of the training.
        settings: Of the run.
        start: Where the training stands.
        checkpoint: That it goes on from; None for a training that begins.

    Returns:
        Notes for the user.
    """
    notes = []

    def write() -> None:
        notes.extend(make_folder(run, checkpoint))
        run.record(settings, ["finetune"])

    on_main_process(accelerator, write)
    paths = [path for path in all_settings() if path.startswith(("finetune.", "video.", "model."))]
    values = {path: get_path(settings, path) for path in [*paths, "seed"]}
    plain = {path: value if isinstance(value, int | float | str) else str(value) for path, value in values.items()}
    resumed = {
        "tensorboard": {"purge_step": start.step + 1 if start.step else None},  # hides points that are made again
        "wandb": {
            "name": run.root.resolve().name, "id": start.tracker_run, "resume": "allow",
            "dir": str(run.finetune_logs),  # not wherever the command was typed
        },
        "trackio": {"name": start.tracker_run, "resume": "allow"},
    }  # fmt: skip
    # For tensorboard the name is a folder beside loss.csv, for the others a project that many runs share.
    name = "tracker" if settings.finetune.tracker == "tensorboard" else "dreamgen"
    with redirect_stdout(sys.stderr):  # trackio has much to say where only results belong
        accelerator.init_trackers(name, config=plain, init_kwargs=resumed)
    return notes


def end_logs(accelerator: Accelerator) -> None:
    """Let the trackers write what they still hold, and leave the process group."""
    with redirect_stdout(sys.stderr):
        accelerator.end_training()
