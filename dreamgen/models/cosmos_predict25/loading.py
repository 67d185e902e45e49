"""Loading the world model: a hub id with revision, a local folder, or the mini model; one path for all three."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import load_adapter
from dreamgen.models.cosmos_predict25.mini import ensure_mini
from dreamgen.models.cosmos_predict25.safety import make_safety_checker
from dreamgen.models.quiet import quiet_loaders
from dreamgen.run.files import sha256_of_file
from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class WorldModelSource:
    """Where a world model is loaded from.

    Args:
        name: What provenance calls it: `ID@REVISION`, or the folder's name.
        path: Hub id or local folder.
        revision: Of a hub model; None for a folder.
        sha256: Fingerprint of a folder's weights and configuration; `ID@REVISION` for a hub model.
    """

    name: str
    path: str
    revision: str | None
    sha256: str


def resolve_world_model(model: ModelSettings, run: RunFolder) -> WorldModelSource:
    """Find the model that the settings name, building the mini model in the run folder where that is asked for.

    Raises:
        UserError: if a path is given and is not a saved pipeline.
    """
    if model.path == "mini":
        folder = ensure_mini(run.model)
        return WorldModelSource("mini", str(folder), None, folder_fingerprint(folder))
    if Path(model.path).is_dir():
        folder = Path(model.path)
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"{folder} is not a saved pipeline: it has no model_index.json",
                allowed="a folder written by save_pretrained, a hub id, or mini",
            )
        return WorldModelSource(folder.resolve().name, str(folder), None, folder_fingerprint(folder))
    if model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
        raise UserError("model folder does not exist", actual=model.path, allowed="a folder, a hub id, or mini")
    name = f"{model.path}@{model.revision or 'main'}"
    return WorldModelSource(name, model.path, model.revision, name)


def load_world_model(
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
        adapter: Folder with `pytorch_lora_weights.safetensors`; None for the base model.
        device: Overrides the settings' device.
        transformer: One that is loaded already, to be used instead of a second copy and left as it is.
        text_encoder: False leaves the text encoder and its tokenizer out.

    Returns:
        The pipeline in eval mode on the device.

    Raises:
        UserError: if the model cannot be had, the guardrail is missing, or the adapter does not fit.
    """
    checker = make_safety_checker(model.safety_checker)
    with _loading(source):
        # Part by part, for model_index.json may name a safety checker of a package that is not installed, which keeps
        # the pipeline's own from_pretrained from loading even where another checker is given.
        pipe = Cosmos2_5_PredictBasePipeline(
            transformer=transformer or _load_part(CosmosTransformer3DModel, "transformer", source, model),
            vae=_load_part(AutoencoderKLWan, "vae", source, model),
            text_encoder=None,
            tokenizer=None,
            scheduler=UniPCMultistepScheduler.from_pretrained(
                source.path, subfolder="scheduler", revision=source.revision
            ),
            safety_checker=checker,
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
    """Put the text encoder and its tokenizer into a pipeline without them, on its device.

    Raises:
        UserError: if the model cannot be had.
    """
    with _loading(source):
        encoder = _load_part(Qwen2_5_VLForConditionalGeneration, "text_encoder", source, model)
        tokenizer = AutoTokenizer.from_pretrained(source.path, subfolder="tokenizer", revision=source.revision)
    pipe.text_encoder = encoder.requires_grad_(False).eval().to(pipe.vae.device)
    pipe.tokenizer = tokenizer


def drop_text_encoder(pipe: Cosmos2_5_PredictBasePipeline) -> None:
    """Let go of the text encoder, and give its memory back to the GPU."""
    pipe.text_encoder = pipe.tokenizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_transformer(
    source: WorldModelSource, model: ModelSettings, device: torch.device | None = None
) -> CosmosTransformer3DModel:
    """Load the transformer alone, frozen and in eval mode, as the pipeline would hold it.

    Raises:
        UserError: if the model cannot be had.
    """
    with _loading(source):
        transformer = _load_part(CosmosTransformer3DModel, "transformer", source, model)
    return transformer.requires_grad_(False).eval().to(device or resolve_device(model.device))


def empty_transformer(source: WorldModelSource) -> CosmosTransformer3DModel:
    """Make the transformer's layers without their weights, to compare shapes with.

    Raises:
        UserError: if the model cannot be had.
    """
    with _loading(source), init_empty_weights():
        config = CosmosTransformer3DModel.load_config(source.path, subfolder="transformer", revision=source.revision)
        return CosmosTransformer3DModel.from_config(config)


def latent_statistics(source: WorldModelSource) -> tuple[list[float], list[float]]:
    """Return the VAE's mean and standard deviation of each latent channel, from its configuration alone.

    Raises:
        UserError: if the model cannot be had.
    """
    with _loading(source):
        config = AutoencoderKLWan.load_config(source.path, subfolder="vae", revision=source.revision)
    return config["latents_mean"], config["latents_std"]


def _load_part(cls: Any, name: str, source: WorldModelSource, model: ModelSettings) -> Any:
    return cls.from_pretrained(
        source.path,
        subfolder=name,
        revision=source.revision,
        torch_dtype=torch_dtype(model.dtype),
        use_safetensors=True,
    )


@contextmanager
def _loading(source: WorldModelSource) -> Iterator[None]:
    try:
        with quiet_loaders():
            yield
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"the world model {source.name} could not be loaded",
            actual=str(error).splitlines()[0],
            next_step="check the id, accept the model's licence on the hub, log in (dreamgen doctor), or give a folder",
        ) from None


def resolve_device(name: str) -> torch.device:
    """Return the device that `model.device` names; auto takes the first GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("model.device is not a device", actual=name, allowed="auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device asks for a GPU and none is visible", actual=name, next_step="dreamgen doctor")
    return device


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type for `model.dtype`."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def folder_fingerprint(folder: Path) -> str:
    """Hash a saved pipeline's weights and configuration, so that equal models have equal names on every machine.

    Configuration keys that begin with an underscore hold paths and library versions and are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            digest.update(f"{name}:{sha256_of_file(path)}\n".encode())
        elif path.suffix == ".json" and path.name != "tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = {k: v for k, v in values.items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(f"{name}:{json.dumps(kept, sort_keys=True)}\n".encode())
        elif path.name in ("tokenizer.json", "merges.txt", "chat_template.jinja"):
            digest.update(f"{name}:{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()
