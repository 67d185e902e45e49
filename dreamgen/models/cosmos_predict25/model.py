"""Cosmos Predict 2.5 behind the world model protocol.

Axes: B batch, C channels, T latent frames, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT
from diffusers.training_utils import free_memory

from dreamgen.config.settings import ModelSettings, Settings
from dreamgen.errors import UserError
from dreamgen.models.adapter_choice import AdapterChoice
from dreamgen.models.cosmos_predict25.adapter import check_adapter_fits
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.fp8 import Fp8Switch
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, KeysValues, compiled_parts, text_keys_values
from dreamgen.models.cosmos_predict25.latents import decode, encode_conditioning, latent_shape, use_channels_last
from dreamgen.models.cosmos_predict25.loading import (
    empty_transformer,
    load_pipeline,
    load_text_encoder,
    load_tokenizer,
)
from dreamgen.models.cosmos_predict25.mini import ensure_mini
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker, require_safety_checker
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.snippet import loading_snippet
from dreamgen.models.cosmos_predict25.solver import StepTable, step_table
from dreamgen.models.cosmos_predict25.spec import is_random_mini, shipped_mini
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping, level_step_skipping
from dreamgen.models.cosmos_predict25.text import cut_prompts, encode_text
from dreamgen.models.cosmos_predict25.training import CosmosTraining
from dreamgen.models.cosmos_predict25.training_cost import CosmosTrainingCost
from dreamgen.models.cosmos_predict25.transformer_size import find_size
from dreamgen.models.fingerprint import folder_fingerprint
from dreamgen.models.prompt_length import CutPrompt
from dreamgen.models.world_model import Prediction, Rejected, WorldModel, WorldModelSource
from dreamgen.run.records import Job

NUM_TEXTS_KEPT = 4  # keys and values of a text take 0.1 GB in the 2B model, 0.4 GB in the 14B


class CosmosPredict25(WorldModel):
    """A loaded pipeline with what its clips share: compiled blocks, solver tables, texts, and the fused adapter.

    Args:
        pipe: From `load_pipeline`, without an adapter.
        source: Where it was loaded from.
        model: Settings that it was loaded with.
        compiled: Compile the blocks; the first clip then takes a minute longer.
        several_adapters: Whether more than one adapter will be used.
    """

    default_negative_prompt = DEFAULT_NEGATIVE_PROMPT

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

    @classmethod
    def resolve(cls, model: ModelSettings, build_folder: Path) -> WorldModelSource:
        if (shipped := shipped_mini(model.path)) is not None:
            return WorldModelSource("mini", str(shipped), None, folder_fingerprint(shipped))
        if is_random_mini(model.path):
            folder = ensure_mini(build_folder)
            return WorldModelSource("mini-random", str(folder), None, folder_fingerprint(folder))
        if Path(model.path).is_dir() and not (Path(model.path) / "model_index.json").is_file():
            raise UserError(
                f"{model.path} is not a saved pipeline: it has no model_index.json",
                allowed="a folder written by save_pretrained, a hub id, mini, or mini-random",
            )
        return super().resolve(model, build_folder)

    @classmethod
    def check_requirements(cls, model: ModelSettings) -> None:
        require_safety_checker(model.safety_checker)

    @classmethod
    def sampling_options(cls, settings: Settings) -> str:
        return level_step_skipping(settings.plan.level, settings.plan.fp8).to_json()

    @classmethod
    def cut_prompts(
        cls, model: ModelSettings, build_folder: Path, prompts: Sequence[str], may_download: bool
    ) -> list[CutPrompt] | None:
        tokenizer = load_tokenizer(model, build_folder, may_download)
        return None if tokenizer is None else cut_prompts(tokenizer, prompts)

    @classmethod
    def check_adapters(cls, source: WorldModelSource, folders: Sequence[Path]) -> None:
        transformer = empty_transformer(source)
        for folder in folders:
            check_adapter_fits(transformer, folder)

    @classmethod
    def training_cost(cls, settings: Settings) -> CosmosTrainingCost | None:
        size = find_size(settings.model)
        return None if size is None else CosmosTrainingCost(size, settings)

    @classmethod
    def for_training(cls, source: WorldModelSource, settings: Settings, device: torch.device) -> CosmosTraining:
        return CosmosTraining(source, settings, device)

    @classmethod
    def loading_snippet(cls, settings: Settings, source: WorldModelSource, adapter: Path | str, device: str) -> str:
        return loading_snippet(settings, source, adapter, device)

    @classmethod
    def from_source(
        cls,
        source: WorldModelSource,
        model: ModelSettings,
        *,
        device: torch.device | None = None,
        compiled: bool = False,
        several_adapters: bool = False,
    ) -> CosmosPredict25:
        pipe = load_pipeline(source, model, device=device, text_encoder=False)
        return cls(pipe, source, model, compiled and pipe.device.type == "cuda", several_adapters)

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
