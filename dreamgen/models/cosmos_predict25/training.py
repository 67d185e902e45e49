"""Training of Cosmos Predict 2.5: a LoRA or DoRA adapter, or all weights, by rectified flow.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
from diffusers.training_utils import free_memory
from peft import set_peft_model_state_dict

from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.models.cosmos_predict25.activation_checkpointing import training_block, training_blocks
from dreamgen.models.cosmos_predict25.adapter import ADAPTER_NAME, add_adapter, save_adapter
from dreamgen.models.cosmos_predict25.dora import use_closed_form
from dreamgen.models.cosmos_predict25.flow import NoiseSample, VelocityModel, flow_input, flow_loss, sample_noise
from dreamgen.models.cosmos_predict25.guidance_distillation import (
    add_teacher,
    read_init_adapter,
    set_weights,
    teacher_flow,
)
from dreamgen.models.cosmos_predict25.latents import LatentScale, decode, vae_means
from dreamgen.models.cosmos_predict25.loading import (
    latent_statistics,
    load_pipeline,
    load_transformer,
    save_other_parts,
)
from dreamgen.models.cosmos_predict25.safety import make_safety_checker
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, latent_shape
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.cosmos_predict25.training_cost import policies_for
from dreamgen.models.cosmos_predict25.transformer_size import TransformerSize
from dreamgen.models.devices import torch_dtype
from dreamgen.models.trainable import Forward, TrainableWorldModel
from dreamgen.models.world_model import Rejected, WorldModelSource


class CosmosTraining(TrainableWorldModel):
    """The transformer on its device, and the frozen encoders while they are needed.

    An encoded window is the VAE's mean in its own dtype, not normalized. The training draws
    sigma = 5 t / (1 + 4 t), t = sigmoid(normal): a tenth of it below 0.58, half above 0.83. Of the noise levels that
    are validated, the low ones show texture and the high ones whether the motion is right.

    Args:
        source: The world model.
        settings: Of the run.
        device: To train on.
    """

    can_distill = True

    def __init__(self, source: WorldModelSource, settings: Settings, device: torch.device) -> None:
        self._source, self._settings, self._device = source, settings, device
        self.network: CosmosTransformer3DModel = load_transformer(source, settings.model, device)
        self._init_adapter = read_init_adapter(self.network, settings.finetune)
        self.forward_module = self._teacher = VelocityModel(self.network)
        self._scale = LatentScale(*latent_statistics(source), device)
        self._pipe: Cosmos2_5_PredictBasePipeline | None = None
        video = settings.video
        self._shape_CTHW = latent_shape(video.num_frames, video.height, video.width)

    def load_encoders(self, text_encoder: bool) -> None:
        # Nothing is generated with these, so no guardrail is needed.
        model = replace(self._settings.model, safety_checker=False)
        self._pipe = load_pipeline(
            self._source, model, device=self._device, transformer=self.network, text_encoder=text_encoder
        )

    def unload_encoders(self) -> None:
        self._pipe = None
        free_memory()

    def encode_windows(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        vae = self._encoders().vae
        return vae_means(vae, video_BTHWC.to(vae.device))

    def encode_prompt(self, prompt: str | None) -> torch.Tensor:
        return encode_text(self._encoders(), prompt)

    def is_encoded_window(self, tensor: torch.Tensor) -> bool:
        return (tuple(tensor.shape), tensor.dtype) == (self._shape_CTHW, torch_dtype(self._settings.model.dtype))

    def is_encoded_prompt(self, tensor: torch.Tensor) -> bool:
        dtype = torch_dtype(self._settings.model.dtype)
        return (tensor.ndim, *tensor.shape[:2], tensor.dtype) == (3, 1, NUM_TEXT_TOKENS, dtype)

    def make_trainable(self) -> list[torch.nn.Parameter]:
        transformer, tune = self.network, self._settings.finetune
        transformer.train()
        if tune.method == "full":
            parameters = unfreeze(transformer)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self._settings.seed, "adapter"))
                if self._init_adapter is not None and tune.distill_guidance is not None:
                    add_teacher(transformer, tune, self._init_adapter)
                parameters = add_adapter(
                    transformer,
                    tune.lora.rank,
                    tune.lora.alpha_or_rank,
                    tune.lora.target_modules,
                    tune.method == "dora",
                )
            if self._init_adapter is not None:
                set_weights(transformer, self._init_adapter, ADAPTER_NAME)
            use_closed_form(transformer)
        compiled = tune.compile and self._device.type == "cuda"
        policies = policies_for(TransformerSize.from_config(transformer.config), self._settings, compiled)
        self.forward_module = VelocityModel(transformer, training_blocks(policies, compiled, tune.cuda_graphs))
        self._teacher = VelocityModel(transformer, training_block("all", compiled))  # it keeps nothing for a gradient
        return parameters

    def noise_sampler(self) -> Callable[[Sequence[int]], NoiseSample]:
        return partial(sample_noise, self._settings.seed, self._shape_CTHW, self._settings.finetune)

    def validation_noise(self, seed: int, noise_level: float) -> NoiseSample:
        generator = torch.Generator().manual_seed(seed)
        noise_BCTHW = torch.randn(1, *self._shape_CTHW, generator=generator)
        return NoiseSample(torch.tensor([noise_level]), torch.tensor([1]), [False], noise_BCTHW)

    def loss(
        self, forward: Forward, encoded_B: torch.Tensor, text_BLD: torch.Tensor, noise: NoiseSample
    ) -> torch.Tensor:
        flow = flow_input(self._scale(encoded_B), noise, self._settings.finetune.conditional_frame_timestep)
        velocity_BCTHW = forward(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
        return flow_loss(velocity_BCTHW, flow)

    def distillation_loss(
        self,
        forward: Forward,
        encoded_B: torch.Tensor,
        text_BLD: torch.Tensor,
        negative_1LD: torch.Tensor,
        noise: NoiseSample,
    ) -> torch.Tensor:
        tune = self._settings.finetune
        assert tune.distill_guidance is not None
        flow = flow_input(self._scale(encoded_B), noise, tune.conditional_frame_timestep)
        flow = teacher_flow(self._teacher, flow, text_BLD, negative_1LD, tune.distill_guidance)
        velocity_BCTHW = forward(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
        return flow_loss(velocity_BCTHW, flow)

    @torch.no_grad()
    def sample(
        self,
        forward: Forward,
        encoded_B: torch.Tensor,
        prompt: str,
        text_BLD: torch.Tensor,
        seed: int,
        num_inference_steps: int,
    ) -> np.ndarray:
        checker = make_safety_checker(self._settings.model.safety_checker)
        checker.to(self._device)
        if not checker.check_text_safety(prompt):
            raise Rejected("the guardrail found the prompt unsafe")
        was_loaded = self._pipe is not None
        if not was_loaded:
            self.load_encoders(text_encoder=False)
        try:
            clean_BCTHW, pipe = self._scale(encoded_B), self._encoders()
            generator = torch.Generator().manual_seed(seed)
            noise_BCTHW = torch.randn(clean_BCTHW.shape, generator=generator).to(self._device)
            timestep = self._settings.finetune.conditional_frame_timestep
            latents_BCTHW = sample_latents(
                forward, pipe.scheduler, clean_BCTHW, text_BLD, noise_BCTHW, num_inference_steps, timestep
            )
            video_THWC = checker.check_video_safety(decode(pipe, latents_BCTHW).cpu().numpy())
        finally:
            if not was_loaded:
                self.unload_encoders()
        if video_THWC is None:
            raise Rejected("the guardrail found the clip unsafe")
        return video_THWC

    def save_adapter(self, folder: Path) -> None:
        save_adapter(self.network, folder, self._settings.finetune.distill_guidance)

    def save_other_parts(self, folder: Path) -> None:
        save_other_parts(self._source, folder)

    def load_adapter(self, weights: dict[str, torch.Tensor]) -> list[str]:
        parameters = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        if getattr(self.network, "peft_config", None):
            weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
            report = set_peft_model_state_dict(self.network, weights, adapter_name=ADAPTER_NAME)
            return [*report.unexpected_keys, *(name for name in report.missing_keys if name in parameters)]
        missing = sorted(parameters.keys() - weights.keys())
        if not missing:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])
        return missing

    def _encoders(self) -> Cosmos2_5_PredictBasePipeline:
        assert self._pipe is not None, "load_encoders was not called"
        return self._pipe


def unfreeze(transformer: CosmosTransformer3DModel) -> list[torch.nn.Parameter]:
    """Make all weights trainable except the text projection, whose output is cached.

    Returns:
        The parameters, now in float32: small updates vanish in bfloat16.
    """
    parameters = [p for name, p in transformer.named_parameters() if not name.startswith("crossattn_proj.")]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


@torch.no_grad()
def sample_latents(
    forward: Forward,
    scheduler: UniPCMultistepScheduler,
    clean_BCTHW: torch.Tensor,
    text_BLD: torch.Tensor,
    noise_BCTHW: torch.Tensor,
    num_steps: int,
    conditional_frame_timestep: float,
) -> torch.Tensor:
    """Sample as `Cosmos2_5_PredictBasePipeline.__call__` does from an image, without guidance.

    Args:
        forward: `VelocityModel`, perhaps wrapped.
        scheduler: The world model's own; its state is reset.
        clean_BCTHW: Of a window, float32; its first latent frame, which depends on the first frame alone, is given.
        text_BLD: The projected prompt.
        noise_BCTHW: Initial noise, float32.
        num_steps: Denoising steps.
        conditional_frame_timestep: As in training.

    Returns:
        latents_BCTHW, float32.
    """
    scheduler.set_timesteps(num_steps, device=clean_BCTHW.device)
    latents_BCTHW, num_conditioned_B = noise_BCTHW, torch.tensor([1])
    for index, timestep in enumerate(scheduler.timesteps):
        noise = NoiseSample(scheduler.sigmas[index].view(1).float(), num_conditioned_B, [False], noise_BCTHW)
        # Only the conditioning of this input is used: the noisy frames are those that are being sampled.
        flow = flow_input(clean_BCTHW, noise, conditional_frame_timestep)
        mask_B1THW = flow.condition_mask_B1THW
        mixed_BCTHW = mask_B1THW * clean_BCTHW + (1 - mask_B1THW) * latents_BCTHW
        velocity_BCTHW = forward(mixed_BCTHW, mask_B1THW, flow.timestep_BT, text_BLD)
        known_BCTHW = (noise_BCTHW - clean_BCTHW) * mask_B1THW
        velocity_BCTHW = known_BCTHW + velocity_BCTHW * (1 - mask_B1THW)
        latents_BCTHW = scheduler.step(velocity_BCTHW, timestep, latents_BCTHW, return_dict=False)[0]
    return latents_BCTHW
