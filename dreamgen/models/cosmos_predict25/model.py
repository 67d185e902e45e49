"""Cosmos Predict 2.5, loaded, behind the world model protocol.

Axes: B batch, C channels, T latent frames, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from diffusers.training_utils import free_memory

from dreamgen.config.settings import ModelSettings
from dreamgen.models.adapter_choice import AdapterChoice
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.before_loading import UnloadedCosmosPredict25
from dreamgen.models.cosmos_predict25.fp8 import Fp8Switch
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, KeysValues, compiled_parts, text_keys_values
from dreamgen.models.cosmos_predict25.latents import decode, encode_conditioning, use_channels_last
from dreamgen.models.cosmos_predict25.loading import load_text_encoder
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.solver import StepTable, step_table
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.world_model import Prediction, Rejected, WorldModelSource
from dreamgen.run.records import Job

NUM_TEXTS_KEPT = 4  # keys and values of a text take 0.1 GB in the 2B model, 0.4 GB in the 14B


class CosmosPredict25(UnloadedCosmosPredict25):
    """A loaded pipeline with what its clips share: compiled blocks, solver tables, texts, and the fused adapter.

    Args:
        pipe: From `load_pipeline`, without an adapter.
        source: Where it was loaded from.
        model: Settings that it was loaded with.
        compiled: Compile the blocks; the first clip then takes a minute longer.
        several_adapters: Whether more than one adapter will be used.
    """

    def __init__(
        self,
        pipe: Cosmos2_5_PredictBasePipeline,
        source: WorldModelSource,
        model: ModelSettings,
        compiled: bool = False,
        several_adapters: bool = False,
    ) -> None:
        self.pipe, self._source, self._model = pipe, source, model
        use_channels_last(pipe.vae)
        self.parts = compiled_parts() if compiled else BlockParts()
        self.adapters = AdapterSwitch(pipe, several_adapters)
        self.fp8 = Fp8Switch()
        self._tables: dict[int, StepTable] = {}
        self._texts: OrderedDict[tuple[str | None, str], list[KeysValues]] = OrderedDict()

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    @property
    def has_safety_checker(self) -> bool:
        return not isinstance(self.pipe.safety_checker, NoSafetyChecker)

    @property
    def has_text_encoder(self) -> bool:
        return self.pipe.text_encoder is not None

    def load_text_encoder(self) -> None:
        load_text_encoder(self.pipe, self._source, self._model)

    def unload_text_encoder(self) -> None:
        self.pipe.text_encoder = self.pipe.tokenizer = None
        free_memory()

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        return encode_text(self.pipe, prompt)

    def check_prompt(self, prompt: str) -> None:
        self.pipe.safety_checker.to(self.pipe.device)
        if not self.pipe.safety_checker.check_text_safety(prompt):
            raise Rejected("the guardrail found the prompt unsafe")

    def check_video(self, video_THWC: np.ndarray) -> np.ndarray:
        checked_THWC = self.pipe.safety_checker.check_video_safety(video_THWC)
        if checked_THWC is None:
            raise Rejected("the guardrail found the clip unsafe")
        return checked_THWC

    def prepare(self, adapter: AdapterChoice | None, sampling_options: str) -> None:
        uses_fp8 = StepSkipping.from_json(sampling_options).fp8
        if (adapter and adapter.sha256) != self.adapters.fused or not uses_fp8:
            self.fp8.off(self.pipe.transformer)
        self.adapters.to(adapter)
        if uses_fp8:
            self.fp8.on(self.pipe.transformer)

    def sample(
        self,
        job: Job,
        chunk: int,
        conditioning_THWC: np.ndarray | torch.Tensor | None,
        text_of: Callable[[str], torch.Tensor],
    ) -> Prediction:
        guidance = None
        if job.guidance_scale > 1:  # as the pipeline decides it
            guidance = Guidance(self._keys_values(job.negative_prompt, text_of), job.guidance_scale)
        latents_BCTHW = sample_latents(
            self.pipe.transformer,
            self._table(job.num_inference_steps),
            noise_for(job, chunk).to(self.pipe.device),
            None if conditioning_THWC is None else encode_conditioning(self.pipe, conditioning_THWC),
            self._keys_values(job.prompt, text_of),
            guidance,
            StepSkipping.from_json(job.step_skipping),
            self.parts,
        )
        return Prediction(decode(self.pipe, latents_BCTHW))

    def _table(self, num_steps: int) -> StepTable:
        if num_steps not in self._tables:
            self._tables[num_steps] = step_table(self.pipe.scheduler, num_steps)
        return self._tables[num_steps]

    @torch.no_grad()
    def _keys_values(self, prompt: str, text_of: Callable[[str], torch.Tensor]) -> list[KeysValues]:
        """Return a prompt's keys and values under the fused adapter; the last few are kept."""
        name = (self.adapters.fused, prompt)
        if name not in self._texts:
            self._texts[name] = text_keys_values(self.pipe.transformer, text_of(prompt))
        self._texts.move_to_end(name)
        while len(self._texts) > NUM_TEXTS_KEPT:
            self._texts.popitem(last=False)
        return self._texts[name]


def noise_for(job: Job, chunk: int = 0) -> torch.Tensor:
    """Draw a clip's noise from its id, so that it is the same on every worker and machine.

    Returns:
        latents_BCTHW, float32, on the CPU; each chunk has its own noise.
    """
    generator = torch.Generator("cpu").manual_seed((int(job.clip_id, 16) + chunk) & (2**63 - 1))
    return torch.randn(1, *latent_shape(job.frames_a_chunk, job.height, job.width), generator=generator)
