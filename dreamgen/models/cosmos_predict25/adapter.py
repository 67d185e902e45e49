"""Saving, checking and loading adapters, in the format that diffusers' own LoRA loader reads.

If all weights were trained, the whole transformer takes the adapter's place: `transformer/`, as diffusers saves it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import FULL_NAME, WEIGHTS_NAME, adapter_file, is_full
from dreamgen.models.loader_logging import quiet_loaders

ADAPTER_NAME = "dreamgen"


def add_adapter(
    transformer: CosmosTransformer3DModel, rank: int, alpha: int, target_modules: list[str], use_dora: bool
) -> list[torch.nn.Parameter]:
    """Add a fresh adapter in float32 to a frozen transformer.

    Args:
        transformer: Changed in place: the named linear layers get low-rank updates.
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        target_modules: Suffixes of the layers' names.
        use_dora: Also train each layer's column norms.

    Returns:
        The adapter's parameters, the only ones that require gradients.

    Raises:
        UserError: if a name matches no layer.
    """
    names = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in target_modules:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise UserError("finetune.lora.target_modules names no layer of the model", actual=target)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=target_modules, use_dora=use_dora, init_lora_weights="gaussian"
    )
    transformer.requires_grad_(False)
    transformer.add_adapter(config, adapter_name=ADAPTER_NAME)
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # small updates vanish in bfloat16
    return parameters


def save_adapter(transformer: CosmosTransformer3DModel, folder: Path) -> Path:
    """Write the adapter's weights in float32, with its configuration as metadata.

    Args:
        transformer: With an adapter from `add_adapter`, not wrapped. Without an adapter, all weights are written.
        folder: It must exist.

    Returns:
        The safetensors file, or the folder `transformer`.
    """
    if not getattr(transformer, "peft_config", None):
        transformer.save_pretrained(folder / FULL_NAME, safe_serialization=True)
        return folder / FULL_NAME
    weights: dict[str, torch.nn.Module | torch.Tensor] = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in get_peft_model_state_dict(transformer, adapter_name=ADAPTER_NAME).items()
    }
    config = transformer.peft_config[ADAPTER_NAME].to_dict()
    Cosmos2_5_PredictBasePipeline.save_lora_weights(
        folder,
        transformer_lora_layers=weights,
        weight_name=WEIGHTS_NAME,
        safe_serialization=True,
        # Without its configuration the loader takes alpha for equal to rank.
        transformer_lora_adapter_metadata={**config, "target_modules": sorted(config["target_modules"])},
    )
    _sort_header(folder / WEIGHTS_NAME)
    return folder / WEIGHTS_NAME


def load_adapter(pipe: Cosmos2_5_PredictBasePipeline, folder: Path, fuse: bool) -> None:
    """Load an adapter through diffusers' loader, after checking that it fits.

    Args:
        pipe: Changed in place.
        folder: With `pytorch_lora_weights.safetensors`.
        fuse: Add the update to the base weights, so that generation takes no longer.

    Raises:
        UserError: if the file is missing or damaged, or does not fit the model.
    """
    check_adapter_fits(pipe.transformer, folder)
    if is_full(folder):
        pipe.transformer = _load_full(folder / FULL_NAME, pipe.transformer)
        return
    pipe.load_lora_weights(str(folder), weight_name=WEIGHTS_NAME, adapter_name=ADAPTER_NAME)
    if fuse:
        pipe.fuse_lora(adapter_names=[ADAPTER_NAME])
        pipe.unload_lora_weights()


def check_adapter_fits(transformer: CosmosTransformer3DModel, folder: Path) -> None:
    """Compare the adapter's shapes with the model's layers before anything is loaded.

    Raises:
        UserError: naming the layers that do not fit, or the file that is not an adapter.
    """
    if is_full(folder):
        _check_same_sizes(transformer, folder / FULL_NAME)
        return
    path = adapter_file(folder)
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    try:
        with safe_open(path, framework="pt") as stream:
            shapes = {key: stream.get_slice(key).get_shape() for key in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or is not a safetensors file",
            actual=str(error),
            next_step="copy it again from its source, or train the adapter again",
        ) from None
    misfits = [misfit for key, shape in sorted(shapes.items()) if (misfit := _misfit(key, shape, layers))]
    if misfits or not shapes:
        named = "; ".join(misfits[:3]) + ("; ..." if len(misfits) > 3 else "")
        raise UserError(
            f"the adapter {path} does not fit the model",
            actual=f"{len(misfits)} of {len(shapes)} tensors do not fit: {named}" if shapes else "it holds no weights",
            allowed="an adapter that was trained on this model",
            next_step="choose the adapter's own base model (its README.md names it), or train a new one",
        )


def _load_full(folder: Path, like: CosmosTransformer3DModel) -> CosmosTransformer3DModel:
    try:
        with quiet_loaders():
            loaded = CosmosTransformer3DModel.from_pretrained(folder, torch_dtype=like.dtype, use_safetensors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the weights in {folder} are damaged",
            actual=str(error).splitlines()[0],
            next_step="copy them again from their source, or train them again",
        ) from None
    return loaded.requires_grad_(False).eval().to(like.device)  # pyright: ignore[reportArgumentType]  # diffusers wraps `to`


def _check_same_sizes(transformer: CosmosTransformer3DModel, folder: Path) -> None:
    stored = CosmosTransformer3DModel.load_config(folder)
    wanted = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    differing = [
        f"{name} is {stored[name]}, not {value}"
        for name, value in wanted.items()
        # JSON has no tuples.
        if name in stored and stored[name] != (list(value) if isinstance(value, tuple) else value)
    ]
    if differing:
        raise UserError(
            f"the transformer in {folder} is not of the model's size",
            actual="; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else ""),
            allowed="weights that were trained on this model",
            next_step="choose the model that its README.md names, or train a new one",
        )


def _misfit(key: str, shape: list[int], layers: dict[str, torch.nn.Linear]) -> str | None:
    name, found, part = key.removeprefix("transformer.").rpartition(".lora_")
    if not found:
        return f"{key} is not a part of a LoRA or DoRA adapter"
    if name not in layers:
        return f"the model has no linear layer {name}"
    layer = layers[name]
    axis, wanted = {
        "A.weight": (-1, layer.in_features),
        "B.weight": (0, layer.out_features),
        "magnitude_vector": (0, layer.out_features),
    }.get(part, (0, None))
    if wanted is None or not shape or shape[axis] != wanted:
        return f"{name}.lora_{part} has shape {shape} and the layer is {layer.in_features} -> {layer.out_features}"
    return None


def _sort_header(path: Path) -> None:
    # The library writes its metadata in a random order. Clips are named by the adapter's hash, so equal adapters have
    # to be equal files. Layout: 8 bytes of length, little-endian, then JSON padded with spaces to a multiple of 8.
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
