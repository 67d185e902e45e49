"""The loss of held-out clips at fixed noise levels, so that adapters, or steps of one training, can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.run.run_folder import RunFolder
from finetune.best_weights import mean_of_levels
from finetune.checkpoint import TrainableState
from finetune.distillation import losses
from finetune.inputs import StepInputs
from finetune.training_log import TrainingLog, append_row, read_steps, start_table
from finetune.windows import TrainingClip, Window

COLUMNS = ("step", "sigma", "loss")


def hold_out(clips: Sequence[TrainingClip], num_held_out: int, seed: int) -> tuple[list[TrainingClip], list[Window]]:
    """Choose the clips that are held out of training.

    A video that the training set lists twice, with two prompts, is held out or trained on as a whole.

    Args:
        clips: The whole training set.
        num_held_out: Number of videos to hold out.
        seed: Of the run.

    Returns:
        The clips to train on, in their order, and the first window of each held-out one.
    """
    videos = list(dict.fromkeys(clip.path for clip in clips))
    assert num_held_out < len(videos), "read_training_set checks this"
    order = np.random.default_rng(derived_seed(seed, "held out")).permutation(len(videos))
    held_out = {videos[index] for index in order[:num_held_out]}
    kept = [clip for clip in clips if clip.path not in held_out]
    return kept, [Window(clip, 0) for clip in clips if clip.path in held_out]


@torch.no_grad()
def validation_losses(
    model: TrainableWorldModel,
    forward_module: torch.nn.Module,
    windows: Sequence[Window],
    inputs: StepInputs,
    settings: Settings,
    accelerator: Accelerator,
) -> dict[float, float]:
    """Measure the mean loss of held-out windows at each noise level; every process takes its share of the windows.

    Each window has its own constant noise, is conditioned on its first frame, and has its prompt. So equal weights give
    equal losses, on any number of GPUs.

    Args:
        model: Computes the loss.
        forward_module: Of the model, prepared by accelerate or not.
        windows: From `hold_out`.
        inputs: Of the training.
        settings: Of the run.
        accelerator: Every process calls this.

    Returns:
        Noise level -> mean loss.
    """
    # Without the wrapper that averages gradients: it makes processes wait for each other, whose shares may differ.
    plain, device, levels = accelerator.unwrap_model(forward_module), accelerator.device, model.noise_levels

    def forward(*tensors: Any) -> torch.Tensor:
        with accelerator.autocast():
            return plain(*tensors)

    loss_NS = torch.zeros(len(windows), len(levels), device=device)  # N windows, S noise levels
    for index in range(accelerator.process_index, len(windows), accelerator.num_processes):
        window, seed = windows[index], derived_seed(settings.seed, "validation", index)
        encoded_B = inputs.encode(inputs.read(window)[None].to(device))
        for column, level in enumerate(levels):
            noise = model.validation_noise(seed, level)
            loss_NS[index, column] = losses(model, forward, encoded_B, [window.clip.prompt], noise, inputs)[0]
    sums_NS: Any = accelerator.reduce(loss_NS, "sum")  # all but one process add zeros
    means_S = sums_NS.mean(dim=0)
    return dict(zip(levels, means_S.tolist(), strict=True))


class Validation:
    """Measures the loss of held-out clips before the first step, every so many steps and after the last one.

    The main process writes `finetune/validation.csv` (step, sigma, loss) and the trackers' curves.

    Args:
        accelerator: Of the training.
        forward_module: As accelerate prepared it.
        trained: Its average is measured if there is one, as that is what will be written.
        windows: From `hold_out`; without any, nothing is measured.
        inputs: Of the training.
        settings: Of the run.
        done_steps: Steps that a resumed training has done; the file's lines up to there are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        forward_module: torch.nn.Module,
        trained: TrainableState[TrainableWorldModel],
        windows: Sequence[Window],
        inputs: StepInputs,
        settings: Settings,
        done_steps: int = 0,
    ) -> None:
        self._accelerator, self._forward_module, self._windows = accelerator, forward_module, windows
        self._trained, self._inputs, self._settings = trained, inputs, settings
        self._path = RunFolder.of(settings).finetune_logs / "validation.csv"
        self._last_step = done_steps or None  # a step is measured before its checkpoint is written
        if windows and accelerator.is_main_process:
            start_table(self._path, COLUMNS, read_steps(self._path, done_steps)).close()

    def step(self, step: int, log: TrainingLog, is_last: bool = False) -> dict[float, float] | None:
        """Measure if it is due, with the weights as they are.

        Args:
            step: Optimizer steps done, 0 before the first.
            log: Its clock stops meanwhile.
            is_last: Whether the training ends with it.

        Returns:
            Noise level -> loss, in every process; None if nothing was measured.
        """
        tune = self._settings.finetune
        is_due = step % tune.validate_every == 0 or is_last or step == tune.num_steps
        if not self._windows or not is_due or step == self._last_step:
            return None
        self._last_step = step
        with log.paused(), self._trained.averaged():
            measured = validation_losses(
                self._trained.model, self._forward_module, self._windows, self._inputs, self._settings,
                self._accelerator,
            )  # fmt: skip
        if self._accelerator.is_main_process:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                for sigma, loss in measured.items():
                    append_row(stream, (step, sigma, loss))
        named = {f"validation/sigma_{sigma:g}": loss for sigma, loss in measured.items()}
        named["validation/loss"] = sum(measured.values()) / len(measured)
        named["validation/geometric_mean"] = mean_of_levels(measured)
        self._accelerator.log(named, step=step)
        return measured
