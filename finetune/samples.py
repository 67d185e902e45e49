"""A short look at what the model dreams while it trains: a held-out clip's first frame and prompt, sampled and decoded.

Axes: B batch, C latent channels, T latent frames (frames in a video), H height, W width, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

from dreamgen.config.settings import Settings
from dreamgen.data.video import write_video
from dreamgen.models.cosmos_predict25.loading import WorldModelSource, latent_statistics, torch_dtype
from dreamgen.models.cosmos_predict25.safety import make_safety_checker
from dreamgen.models.quiet import quiet_loaders
from dreamgen.progress import log as tell
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainableState
from finetune.flow import NoiseSample, flow_input
from finetune.inputs import StepInputs, release_memory
from finetune.seeds import derived_seed
from finetune.stopping import on_main_process
from finetune.training_log import TrainingLog
from finetune.windows import Window


@torch.no_grad()
def sample_latents(
    model: torch.nn.Module,
    scheduler: UniPCMultistepScheduler,
    clean_BCTHW: torch.Tensor,
    text_BLD: torch.Tensor,
    noise_BCTHW: torch.Tensor,
    num_steps: int,
    conditional_frame_timestep: float,
) -> torch.Tensor:
    """Sample as `Cosmos2_5_PredictBasePipeline.__call__` does from an image, without guidance.

    Args:
        model: `VelocityModel`.
        scheduler: The world model's own; its state is set anew.
        clean_BCTHW: Of a window, float32; its first latent frame, which depends on the first frame alone, is given.
        text_BLD: The projected prompt.
        noise_BCTHW: What the sampling starts from, float32.
        num_steps: Denoising steps.
        conditional_frame_timestep: As in training.

    Returns:
        latents_BCTHW, float32.
    """
    scheduler.set_timesteps(num_steps, device=clean_BCTHW.device)
    latents_BCTHW, given = noise_BCTHW, torch.tensor([1])
    for index, timestep in enumerate(scheduler.timesteps):
        sigma_B = scheduler.sigmas[index].view(1).float()
        # Of what training mixes, only the conditioning is used: the noised frames are those that are being sampled.
        flow = flow_input(clean_BCTHW, NoiseSample(sigma_B, given, [False], noise_BCTHW), conditional_frame_timestep)
        mask_B1THW = flow.condition_mask_B1THW
        mixed_BCTHW = mask_B1THW * clean_BCTHW + (1 - mask_B1THW) * latents_BCTHW
        velocity_BCTHW = model(mixed_BCTHW, mask_B1THW, flow.timestep_BT, text_BLD)
        known_BCTHW = (noise_BCTHW - clean_BCTHW) * mask_B1THW
        velocity_BCTHW = known_BCTHW + velocity_BCTHW * (1 - mask_B1THW)
        latents_BCTHW = scheduler.step(velocity_BCTHW, timestep, latents_BCTHW, return_dict=False)[0]
    return latents_BCTHW


@torch.no_grad()
def decode_latents(
    source: WorldModelSource, settings: Settings, latents_BCTHW: torch.Tensor, device: torch.device
) -> np.ndarray:
    """Turn latents into pixels with a VAE that is loaded for this and let go of again.

    Returns:
        video_THWC, uint8, 0-255, RGB.
    """
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in latent_statistics(source))
    dtype = torch_dtype(settings.model.dtype)
    with quiet_loaders():
        vae = AutoencoderKLWan.from_pretrained(
            source.path, subfolder="vae", revision=source.revision, torch_dtype=dtype, use_safetensors=True
        )
    video_BCTHW = vae.to(device).decode((latents_BCTHW * std + mean).to(dtype), return_dict=False)[0]
    video_CTHW = (video_BCTHW[0].float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return video_CTHW.permute(1, 2, 3, 0).contiguous().cpu().numpy()


class Samples:
    """Writes `finetune/samples/step-NNNNNN.mp4` every so many steps, from the first held-out clip.

    The noise is the same each time, so that what changes from one to the next is what was learnt. What the guardrail
    refuses is not written.

    Args:
        accelerator: Of the training.
        model: `VelocityModel`, as accelerate prepared it.
        trained: Whose average is used where there is one.
        windows: From `validate.hold_out`.
        inputs: That the training reads.
        source: The world model.
        settings: Of the run; the number of denoising steps is that of `plan`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        trained: TrainableState,
        windows: Sequence[Window],
        inputs: StepInputs,
        source: WorldModelSource,
        settings: Settings,
    ) -> None:
        self._accelerator, self._model, self._trained = accelerator, model, trained
        self._windows, self._inputs, self._source, self._settings = windows, inputs, source, settings

    def step(self, step: int, log: TrainingLog) -> None:
        """Sample, where it is time to; the main process does it and the others wait.

        Args:
            step: Optimizer steps done.
            log: Its clock stands still meanwhile.
        """
        every = self._settings.finetune.sample_every
        if every and self._windows and step and step % every == 0:
            with log.paused():
                on_main_process(self._accelerator, lambda: self._write(step))

    def _write(self, step: int) -> None:
        settings, window, device = self._settings, self._windows[0], self._accelerator.device
        checker = make_safety_checker(settings.model.safety_checker)
        checker.to(device)
        if not checker.check_text_safety(window.clip.prompt):
            tell(f"no sample at step {step}: the guardrail found the prompt unsafe")
            return
        clean_BCTHW = self._inputs.clean(self._inputs.read(window)[None].to(device))
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "sample"))
        noise_BCTHW = torch.randn(clean_BCTHW.shape, generator=generator).to(device)
        with quiet_loaders():
            scheduler = UniPCMultistepScheduler.from_pretrained(
                self._source.path, subfolder="scheduler", revision=self._source.revision
            )
        with self._trained.averaged(), self._accelerator.autocast():
            latents_BCTHW = sample_latents(
                self._accelerator.unwrap_model(self._model),
                scheduler,
                clean_BCTHW,
                self._inputs.texts([window.clip.prompt]),
                noise_BCTHW,
                settings.plan.num_inference_steps,
                settings.finetune.conditional_frame_timestep,
            )
        video_THWC = checker.check_video_safety(decode_latents(self._source, settings, latents_BCTHW, device))
        release_memory()
        if video_THWC is None:
            tell(f"no sample at step {step}: the guardrail found the clip unsafe")
            return
        video = settings.video
        path = RunFolder.of(settings).finetune_logs / "samples" / f"step-{step:06d}.mp4"
        write_video(path, video_THWC, video.fps, video.codec, video.crf, video.gop)
