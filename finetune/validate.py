"""The held-out clips' loss at fixed noise levels, so that two adapters, or two moments of one, can be compared.

Axes: B batch, C latent channels, T latent frames, H height, W width, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator

from dreamgen.config.settings import Settings
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainableState
from finetune.flow import NoiseSample, flow_input, flow_loss
from finetune.inputs import StepInputs
from finetune.seeds import derived_seed
from finetune.training_log import TrainingLog, append_row, read_steps, start_table
from finetune.windows import TrainingClip, Window

# The training draws sigma = 5 t / (1 + 4 t), t = sigmoid(normal): a tenth of it below 0.58, half above 0.83. The low
# levels show texture, the high ones whether the motion is right.
SIGMAS = (0.2, 0.5, 0.8, 0.95)
COLUMNS = ("step", "sigma", "loss")


def hold_out(clips: Sequence[TrainingClip], num_held_out: int, seed: int) -> tuple[list[TrainingClip], list[Window]]:
    """Choose the clips that are kept out of training.

    A video that the training set names twice, with two prompts, is held out or trained on as a whole.

    Args:
        clips: The whole training set.
        num_held_out: How many videos are held out.
        seed: Of the run.

    Returns:
        The clips to train on, in their order, and the first window of each held-out one.
    """
    videos = list(dict.fromkeys(clip.path for clip in clips))
    assert num_held_out < len(videos), "read_training_set refuses this"
    order = np.random.default_rng(derived_seed(seed, "held out")).permutation(len(videos))
    held_out = {videos[index] for index in order[:num_held_out]}
    kept = [clip for clip in clips if clip.path not in held_out]
    return kept, [Window(clip, 0) for clip in clips if clip.path in held_out]


@torch.no_grad()
def validation_losses(
    model: torch.nn.Module, windows: Sequence[Window], inputs: StepInputs, settings: Settings, accelerator: Accelerator
) -> dict[float, float]:
    """Measure the mean loss of held-out windows at each of `SIGMAS`; every process takes its share of the windows.

    A window's noise is its own and always the same, its first latent frame is given, its text is there. So equal
    weights give equal numbers, on any number of GPUs.

    Args:
        model: `VelocityModel`, prepared by accelerate or not.
        windows: From `hold_out`.
        inputs: That the training reads.
        settings: Of the run.
        accelerator: Every process calls this.

    Returns:
        Sigma -> mean loss.
    """
    # Without the wrapper that averages gradients: it makes processes wait for one another, whose shares may differ.
    plain, device = accelerator.unwrap_model(model), accelerator.device
    loss_NS = torch.zeros(len(windows), len(SIGMAS), device=device)  # N windows, S sigmas
    for index in range(accelerator.process_index, len(windows), accelerator.num_processes):
        window = windows[index]
        clean_BCTHW = inputs.clean(inputs.read(window)[None].to(device))
        text_BLD = inputs.texts([window.clip.prompt])
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "validation", index))
        noise_BCTHW = torch.randn(clean_BCTHW.shape, generator=generator)
        for column, sigma in enumerate(SIGMAS):
            draws = NoiseSample(torch.tensor([sigma]), torch.tensor([1]), [False], noise_BCTHW)
            flow = flow_input(clean_BCTHW, draws, settings.finetune.conditional_frame_timestep)
            with accelerator.autocast():
                velocity_BCTHW = plain(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
            loss_NS[index, column] = flow_loss(velocity_BCTHW, flow)[0]
    means_S = accelerator.reduce(loss_NS, "sum").mean(dim=0)  # all but one process add zeros
    return dict(zip(SIGMAS, means_S.tolist(), strict=True))


class Validation:
    """Measures the held-out loss before the first step, every so many steps and after the last one.

    The main process writes `finetune/validation.csv` (step, sigma, loss) and the trackers' curves.

    Args:
        accelerator: Of the training.
        model: `VelocityModel`, as accelerate prepared it.
        trained: Whose average is measured where there is one, as it is what will be written.
        windows: From `hold_out`; without any, nothing is measured.
        inputs: That the training reads.
        settings: Of the run.
        done_steps: Steps of the training that is resumed; the file's lines up to there are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        trained: TrainableState,
        windows: Sequence[Window],
        inputs: StepInputs,
        settings: Settings,
        done_steps: int = 0,
    ) -> None:
        self._accelerator, self._model, self._trained, self._windows = accelerator, model, trained, windows
        self._inputs, self._settings = inputs, settings
        self._path = RunFolder.of(settings).finetune_logs / "validation.csv"
        self._measured = done_steps or None  # a step is measured before its checkpoint is written
        if windows and accelerator.is_main_process:
            start_table(self._path, COLUMNS, read_steps(self._path, done_steps)).close()

    def step(self, step: int, log: TrainingLog) -> None:
        """Measure, where it is time to, with the weights as they are.

        Args:
            step: Optimizer steps done, 0 before the first.
            log: Its clock stands still meanwhile.
        """
        tune = self._settings.finetune
        is_due = step % tune.validate_every == 0 or step == tune.num_steps
        if not self._windows or not is_due or step == self._measured:
            return
        self._measured = step
        with log.paused(), self._trained.averaged():
            losses = validation_losses(self._model, self._windows, self._inputs, self._settings, self._accelerator)
        if self._accelerator.is_main_process:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                for sigma, loss in losses.items():
                    append_row(stream, (step, sigma, loss))
        named = {f"validation/sigma_{sigma:g}": loss for sigma, loss in losses.items()}
        named["validation/loss"] = sum(losses.values()) / len(losses)
        self._accelerator.log(named, step=step)
