"""Sample clips during training: a held-out clip's first frame and prompt, with the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.data.video import write_video
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.models.world_model import Rejected
from dreamgen.progress import log as log_message
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainableState
from finetune.inputs import StepInputs
from finetune.stopping import on_main_process
from finetune.training_log import TrainingLog
from finetune.windows import Window


class Samples:
    """Writes `finetune/samples/step-NNNNNN.mp4` every so many steps, from the first held-out clip.

    The noise is the same each time, so that the samples differ only by what was trained. A clip that the safety checker
    rejects is not written.

    Args:
        accelerator: Of the training.
        forward_module: As accelerate prepared it.
        trained: Its average is used if there is one.
        windows: From `validate.hold_out`.
        inputs: Of the training.
        settings: Of the run; the number of denoising steps is that of `plan`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        forward_module: torch.nn.Module,
        trained: TrainableState[TrainableWorldModel],
        windows: Sequence[Window],
        inputs: StepInputs,
        settings: Settings,
    ) -> None:
        self._accelerator, self._forward_module, self._trained = accelerator, forward_module, trained
        self._windows, self._inputs, self._settings = windows, inputs, settings

    def step(self, step: int, log: TrainingLog) -> None:
        """Sample if it is due; the main process does it and the others wait.

        Args:
            step: Optimizer steps done.
            log: Its clock stops meanwhile.
        """
        every = self._settings.finetune.sample_every
        if every and self._windows and step and step % every == 0:
            with log.paused():
                folder = RunFolder.of(self._settings).finetune_logs
                on_main_process(self._accelerator, folder, lambda: self._write(step))

    def _write(self, step: int) -> None:
        settings, window, video = self._settings, self._windows[0], self._settings.video
        encoded_B = self._inputs.encode(self._inputs.read(window)[None].to(self._accelerator.device))
        forward = self._accelerator.unwrap_model(self._forward_module)

        def forward_in_autocast(*inputs: Any) -> torch.Tensor:
            with self._accelerator.autocast():
                return forward(*inputs)

        try:
            with self._trained.averaged():
                video_THWC = self._trained.model.sample(
                    forward_in_autocast,
                    encoded_B,
                    window.clip.prompt,
                    self._inputs.prompts([window.clip.prompt]),
                    derived_seed(settings.seed, "sample"),
                    settings.plan.num_inference_steps,
                )
        except Rejected as reason:
            log_message(f"no sample at step {step}: {reason}")
            return
        path = RunFolder.of(settings).finetune_logs / "samples" / f"step-{step:06d}.mp4"
        write_video(path, video_THWC, video.fps, video.codec, video.crf, video.gop)
