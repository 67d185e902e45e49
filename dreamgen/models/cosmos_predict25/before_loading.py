"""What is asked of Cosmos Predict 2.5 before it is loaded; torch and diffusers are imported only where they are used.

`dreamgen plan` and the driver of `dreamgen generate` would otherwise wait seconds for libraries that only their workers
need.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.config.settings import ModelSettings, Settings
from dreamgen.errors import UserError
from dreamgen.models.adapter_files import is_full
from dreamgen.models.cosmos_predict25.safety import require_safety_checker
from dreamgen.models.cosmos_predict25.snippet import loading_snippet
from dreamgen.models.cosmos_predict25.spec import is_random_mini, shipped_mini
from dreamgen.models.cosmos_predict25.step_skipping import level_step_skipping
from dreamgen.models.cosmos_predict25.transformer_size import find_size, source_size
from dreamgen.models.fingerprint import folder_fingerprint
from dreamgen.models.prompt_length import CutPrompt
from dreamgen.models.world_model import WorldModel, WorldModelSource

if TYPE_CHECKING:
    import torch

    from dreamgen.models.cosmos_predict25.model import CosmosPredict25
    from dreamgen.models.cosmos_predict25.training import CosmosTraining
    from dreamgen.models.cosmos_predict25.training_cost import CosmosTrainingCost


def pipeline_negative_prompt() -> str:
    """Return the default negative prompt of the installed pipeline, from its source file.

    Importing the pipeline takes seconds; where its source is elsewhere, it is imported.
    """
    name, package = "DEFAULT_NEGATIVE_PROMPT", importlib.util.find_spec("diffusers")
    origin = package.origin if package is not None else None
    file = Path(origin or "").parent / "pipelines" / "cosmos" / "pipeline_cosmos2_5_predict.py"
    if file.is_file():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                with suppress(ValueError):  # it is no literal
                    return ast.literal_eval(node.value)
    from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict

    return pipeline_cosmos2_5_predict.DEFAULT_NEGATIVE_PROMPT


DEFAULT_NEGATIVE_PROMPT = pipeline_negative_prompt()


class UnloadedCosmosPredict25(WorldModel):
    """The model as a class, without an instance; `from_source` loads a `CosmosPredict25`."""

    default_negative_prompt = DEFAULT_NEGATIVE_PROMPT

    @classmethod
    def resolve(cls, model: ModelSettings, build_folder: Path) -> WorldModelSource:
        if (shipped := shipped_mini(model.path)) is not None:
            return WorldModelSource("mini", str(shipped), None, folder_fingerprint(shipped))
        if is_random_mini(model.path):
            if not build_folder.exists():
                from dreamgen.models.cosmos_predict25.mini import ensure_mini

                ensure_mini(build_folder)
            return WorldModelSource("mini-random", str(build_folder), None, folder_fingerprint(build_folder))
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
        from dreamgen.models.cosmos_predict25.loading import load_tokenizer
        from dreamgen.models.cosmos_predict25.text import cut_prompts

        tokenizer = load_tokenizer(model, build_folder, may_download)
        return None if tokenizer is None else cut_prompts(tokenizer, prompts)

    @classmethod
    def check_adapters(cls, source: WorldModelSource, folders: Sequence[Path]) -> None:
        size = source_size(source)
        if size is not None and not any(is_full(folder) for folder in folders):
            from dreamgen.models.cosmos_predict25.adapter_layouts import read_adapter

            for folder in folders:
                read_adapter(folder, size.layers_by_name())
            return
        from dreamgen.models.cosmos_predict25.adapter import check_adapter_fits
        from dreamgen.models.cosmos_predict25.loading import empty_transformer

        transformer = empty_transformer(source)
        for folder in folders:
            check_adapter_fits(transformer, folder)

    @classmethod
    def training_cost(cls, settings: Settings) -> CosmosTrainingCost | None:
        from dreamgen.models.cosmos_predict25.training_cost import CosmosTrainingCost

        size = find_size(settings.model)
        return None if size is None else CosmosTrainingCost(size, settings)

    @classmethod
    def for_training(cls, source: WorldModelSource, settings: Settings, device: torch.device) -> CosmosTraining:
        from dreamgen.models.cosmos_predict25.training import CosmosTraining

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
        from dreamgen.models.cosmos_predict25.loading import load_pipeline
        from dreamgen.models.cosmos_predict25.model import CosmosPredict25

        kind = cls if issubclass(cls, CosmosPredict25) else CosmosPredict25
        pipe = load_pipeline(source, model, device=device, text_encoder=False)
        return kind(pipe, source, model, compiled and pipe.device.type == "cuda", several_adapters)
