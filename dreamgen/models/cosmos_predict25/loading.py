"""Loading the pipeline or its parts from a hub id, a local folder, or the mini model; one path for all three."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    CosmosTransformer3DModel,
    UniPCMultistepScheduler,
)
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import load_adapter
from dreamgen.models.cosmos_predict25.mini import byte_tokenizer
from dreamgen.models.cosmos_predict25.safety import make_safety_checker
from dreamgen.models.cosmos_predict25.spec import is_random_mini, shipped_mini
from dreamgen.models.devices import resolve_device, torch_dtype
from dreamgen.models.loader_logging import quiet_loaders
from dreamgen.models.saved_config import forget_source
from dreamgen.models.world_model import WorldModelSource
from dreamgen.run.files import read_json

# diffusers accepts None for every part of a pipeline and does not say so in its types.
WITHOUT_TEXT_ENCODER: dict[str, Any] = {"text_encoder": None, "tokenizer": None}


def load_pipeline(
    source: WorldModelSource,
    model: ModelSettings,
    adapter: Path | None = None,
    device: torch.device | None = None,
    transformer: CosmosTransformer3DModel | None = None,
    text_encoder: bool = True,
) -> Cosmos2_5_PredictBasePipeline:
    """Load the pipeline, frozen, with an adapter fused into it.

    Args:
        source: From `resolve_world_model`.
        model: Precision, device and guardrail.
        adapter: Folder of an adapter; None for the base model.
        device: Overrides the device of the settings.
        transformer: A loaded one to use, unchanged, instead of loading a second copy.
        text_encoder: False omits the text encoder and its tokenizer.

    Returns:
        The pipeline in eval mode on the device.

    Raises:
        UserError: if the model cannot be loaded, the guardrail is missing, or the adapter does not fit.
    """
    checker = make_safety_checker(model.safety_checker)
    with _loading(source):
        # Part by part: model_index.json may name a safety checker of a package that is not installed, and then the
        # pipeline's own from_pretrained fails even if another checker is given.
        pipe = Cosmos2_5_PredictBasePipeline(
            transformer=transformer or _load_part(CosmosTransformer3DModel, "transformer", source, model),
            vae=_load_part(AutoencoderKLWan, "vae", source, model),
            scheduler=_from_pretrained(UniPCMultistepScheduler, "scheduler", source),
            safety_checker=checker,
            **WITHOUT_TEXT_ENCODER,
        )
    for component in (pipe.transformer, pipe.vae):
        if component is not transformer:
            component.requires_grad_(False).eval()
    if adapter is not None:
        load_adapter(pipe, adapter, fuse=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device or resolve_device(model.device))
    if text_encoder:
        load_text_encoder(pipe, source, model)
    return pipe


def load_text_encoder(pipe: Cosmos2_5_PredictBasePipeline, source: WorldModelSource, model: ModelSettings) -> None:
    """Load the text encoder and its tokenizer into a pipeline without them, on its device.

    Raises:
        UserError: if the model cannot be loaded.
    """
    with _loading(source):
        encoder = _load_part(Qwen2_5_VLForConditionalGeneration, "text_encoder", source, model)
        tokenizer = _from_pretrained(AutoTokenizer, "tokenizer", source)
    pipe.text_encoder = encoder.requires_grad_(False).eval().to(pipe.vae.device)
    pipe.tokenizer = tokenizer


def load_tokenizer(model: ModelSettings, build_folder: Path, may_download: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer alone; None if it is not there, or may not or cannot be downloaded.

    That of a mini model with random weights is made anew where the model has not been built yet.
    """
    if is_random_mini(model.path) and not build_folder.exists():
        return byte_tokenizer()
    path = build_folder if is_random_mini(model.path) else shipped_mini(model.path) or Path(model.path)
    local = path.is_dir()
    path, revision = (path, None) if local else (model.path, model.revision)
    try:
        with quiet_loaders():
            return AutoTokenizer.from_pretrained(
                path, subfolder="tokenizer", revision=revision, local_files_only=local or not may_download
            )
    except (OSError, ValueError):
        return None


def load_transformer(
    source: WorldModelSource, model: ModelSettings, device: torch.device | None = None
) -> CosmosTransformer3DModel:
    """Load the transformer alone, frozen and in eval mode.

    Raises:
        UserError: if the model cannot be loaded.
    """
    with _loading(source):
        transformer = _load_part(CosmosTransformer3DModel, "transformer", source, model)
    return transformer.requires_grad_(False).eval().to(device or resolve_device(model.device))


def load_vae(source: WorldModelSource) -> AutoencoderKLWan:
    """Load the VAE alone, in float32 on the CPU.

    Raises:
        UserError: if the model cannot be loaded.
    """
    with _loading(source):
        return _from_pretrained(AutoencoderKLWan, "vae", source, torch_dtype=torch.float32, use_safetensors=True)


def empty_transformer(source: WorldModelSource) -> CosmosTransformer3DModel:
    """Create the transformer's layers without their weights, to compare shapes with.

    Raises:
        UserError: if the model cannot be loaded.
    """
    with _loading(source), init_empty_weights():
        transformer = CosmosTransformer3DModel.from_config(_config(CosmosTransformer3DModel, "transformer", source))
    assert isinstance(transformer, CosmosTransformer3DModel)
    return transformer


def latent_statistics(source: WorldModelSource) -> tuple[list[float], list[float]]:
    """Return the VAE's mean and standard deviation of each latent channel, from its configuration alone.

    Raises:
        UserError: if the model cannot be loaded.
    """
    with _loading(source):
        config = _config(AutoencoderKLWan, "vae", source)
    return config["latents_mean"], config["latents_std"]


def save_other_parts(source: WorldModelSource, folder: Path) -> None:
    """Copy everything of a pipeline except its transformer.

    Args:
        source: Its model_index.json, VAE, text encoder, tokenizer and scheduler are copied.
        folder: With `transformer/`; it becomes a pipeline that `from_pretrained` loads.

    Raises:
        UserError: if the model cannot be read.
    """
    with _loading(source):
        root = Path(source.path)
        if not root.is_dir():
            root = Path(Cosmos2_5_PredictBasePipeline.download(source.path, revision=source.revision))
        for name, entry in read_json(root / "model_index.json").items():
            if isinstance(entry, list) and entry[0] is not None and name != "transformer" and (root / name).is_dir():
                shutil.copytree(root / name, folder / name)
        shutil.copyfile(root / "model_index.json", folder / "model_index.json")
        forget_source(folder)


def _load_part(cls: Any, name: str, source: WorldModelSource, model: ModelSettings) -> Any:
    return _from_pretrained(cls, name, source, torch_dtype=torch_dtype(model.dtype), use_safetensors=True)


def _from_pretrained(cls: Any, name: str, source: WorldModelSource, **options: Any) -> Any:
    return cls.from_pretrained(source.path, subfolder=name, revision=source.revision, **options)


def _config(cls: Any, name: str, source: WorldModelSource) -> dict[str, Any]:
    return cls.load_config(source.path, subfolder=name, revision=source.revision)


@contextmanager
def _loading(source: WorldModelSource) -> Iterator[None]:
    try:
        with quiet_loaders():
            yield
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"the world model {source.name} could not be loaded",
            actual=str(error).splitlines()[0],
            next_step="check the id, accept the model's license on the hub, log in (dreamgen doctor), or give a folder",
        ) from None
