"""Saving, checking and loading adapters, in the format that diffusers' own LoRA loader reads.

If all weights were trained, the whole transformer takes the adapter's place: `transformer/`, as diffusers saves it.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import DISTILLED_KEY, FULL_NAME, WEIGHTS_NAME, is_full, weight_files
from dreamgen.models.cosmos_predict25.adapter_layouts import AdapterWeights, read_adapter
from dreamgen.models.loader_logging import quiet_loaders
from dreamgen.models.saved_config import forget_source

ADAPTER_NAME = "dreamgen"
UNCHANGED = 2**-7  # of a magnitude: what bfloat16 rounds


def add_adapter(
    transformer: CosmosTransformer3DModel,
    rank: int,
    alpha: int,
    target_modules: list[str],
    use_dora: bool,
    name: str = ADAPTER_NAME,
) -> list[torch.nn.Parameter]:
    """Add a fresh adapter in float32 to a frozen transformer.

    Args:
        transformer: Changed in place: the named linear layers get low-rank updates. Other adapters are kept, frozen.
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        target_modules: Suffixes of the layers' names.
        use_dora: Also train each layer's column norms.
        name: Of the adapter, which becomes the active one.

    Returns:
        The adapter's parameters, the only ones that require gradients.

    Raises:
        UserError: if a name matches no layer.
    """
    names = linear_layers(transformer)
    for target in target_modules:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise UserError("finetune.lora.target_modules names no layer of the model", actual=target)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=target_modules, use_dora=use_dora, init_lora_weights="gaussian"
    )
    transformer.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant to be there
        transformer.add_adapter(config, adapter_name=name)
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # small updates vanish in bfloat16
    return parameters


def save_adapter(transformer: CosmosTransformer3DModel, folder: Path, distilled_guidance: float | None = None) -> Path:
    """Write the adapter's weights in float32, with its configuration as metadata.

    Args:
        transformer: With an adapter from `add_adapter`, not wrapped. Without an adapter, all weights are written.
        folder: It must exist.
        distilled_guidance: Scale of the guidance that the adapter learned to predict in one pass.

    Returns:
        The safetensors file, or the folder `transformer`.
    """
    if not getattr(transformer, "peft_config", None):
        transformer.save_pretrained(folder / FULL_NAME, safe_serialization=True)
        forget_source(folder / FULL_NAME)
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
    further = {} if distilled_guidance is None else {DISTILLED_KEY: repr(distilled_guidance)}
    _write_metadata(folder / WEIGHTS_NAME, further)
    return folder / WEIGHTS_NAME


def load_adapter(pipe: Cosmos2_5_PredictBasePipeline, folder: Path, fuse: bool) -> None:
    """Load an adapter through diffusers' loader, after checking that it fits.

    Args:
        pipe: Changed in place.
        folder: The adapter's folder or file.
        fuse: Add the update to the base weights, so that generation takes no longer.

    Raises:
        UserError: if the file is missing or damaged, does not fit the model, or was not applied.
    """
    if is_full(folder):
        check_adapter_fits(pipe.transformer, folder)
        pipe.transformer = _load_full(folder / FULL_NAME, pipe.transformer)
        return
    load_update(pipe, folder, ADAPTER_NAME)
    if fuse:
        pipe.fuse_lora(adapter_names=[ADAPTER_NAME])
        pipe.unload_lora_weights()


def load_update(pipe: Cosmos2_5_PredictBasePipeline, folder: Path, name: str) -> None:
    """Load a low-rank adapter under a name, and check that every weight of its file is in the model.

    Raises:
        UserError: if the file is missing or damaged, does not fit the model, or was not applied.
    """
    adapter = read_adapter(folder, linear_layers(pipe.transformer))
    with quiet_loaders():
        pipe.transformer.load_lora_adapter(
            adapter.weights, prefix=None, adapter_name=name, metadata=adapter.lora_config(), _pipeline=pipe
        )
    _check_applied(pipe.transformer, adapter, name)
    _check_changes(pipe.transformer, adapter, name)


def check_adapter_fits(transformer: CosmosTransformer3DModel, folder: Path) -> None:
    """Compare the adapter with the model's layers before anything is loaded.

    Raises:
        UserError: naming the layers that do not fit, or the file that is not an adapter.
    """
    if is_full(folder):
        _check_same_sizes(transformer, folder / FULL_NAME)
        _check_same_weights(transformer, folder)
    else:
        read_adapter(folder, linear_layers(transformer))


def linear_layers(transformer: CosmosTransformer3DModel) -> dict[str, torch.nn.Linear]:
    """Return the layers that an adapter can change, by name; those of adapters that are loaded do not count."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    }


def _check_applied(transformer: CosmosTransformer3DModel, adapter: AdapterWeights, name: str) -> None:
    loaded = get_peft_model_state_dict(transformer, adapter_name=name)
    loaded = {key.removesuffix(".weight") if "magnitude" in key else key: value for key, value in loaded.items()}
    lost = [
        key
        for key, given in adapter.weights.items()
        if key not in loaded or not torch.equal(loaded[key].cpu(), given.to(loaded[key].dtype))
    ]
    for layer in adapter.layers:
        module = transformer.get_submodule(layer)
        assert isinstance(module, LoraLayer)
        if not math.isclose(module.scaling[name], adapter.scaling(layer), rel_tol=1e-6):
            lost.append(f"{layer}: scaled by {module.scaling[name]:g}, not {adapter.scaling(layer):g}")
    if lost:
        raise UserError(
            f"the adapter {adapter.path} was not applied to the model",
            actual=f"{len(lost)} of its {len(adapter.weights)} tensors: {'; '.join(lost[:3])}",
            allowed="every weight of the file in the model",
            next_step="save it again with diffusers' save_lora_weights",
        )


def _check_changes(transformer: CosmosTransformer3DModel, adapter: AdapterWeights, name: str) -> None:
    """Refuse a DoRA adapter as it is before training; the reader refuses such a LoRA, which needs no base weights."""
    if not adapter.use_dora or any(value.any() for key, value in adapter.weights.items() if ".lora_B." in key):
        return
    for layer in adapter.layers:
        magnitude_O = adapter.weights.get(f"{layer}.lora_magnitude_vector")
        module = transformer.get_submodule(layer)
        assert isinstance(module, LoraLayer)
        base = module.get_base_layer()
        assert isinstance(base, torch.nn.Linear)
        norm_O = torch.linalg.norm(base.weight.detach().float(), dim=1).cpu()
        if magnitude_O is not None and not torch.allclose(magnitude_O.float(), norm_O, rtol=UNCHANGED, atol=0):
            return
    raise UserError(
        f"the adapter {adapter.path} changes nothing: its update is zero and its magnitudes are the model's own",
        actual=f"{name}: {len(adapter.layers)} layers of DoRA",
        next_step="it was not trained; --plan.adapter=base uses the model without one",
    )


def _load_full(folder: Path, like: CosmosTransformer3DModel) -> CosmosTransformer3DModel:
    try:
        with quiet_loaders():
            loaded = CosmosTransformer3DModel.from_pretrained(folder, torch_dtype=like.dtype, use_safetensors=True)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from None
    return loaded.requires_grad_(False).eval().to(like.device)  # pyright: ignore[reportArgumentType]  # diffusers wraps `to`


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the weights in {path} are damaged",
        actual=str(error).splitlines()[0],
        next_step="copy them again from their source, or train them again",
    )


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


def _check_same_weights(transformer: CosmosTransformer3DModel, folder: Path) -> None:
    wanted = {name: list(tensor.shape) for name, tensor in transformer.state_dict().items()}
    stored: dict[str, list[int]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as stream:
                stored |= {key: stream.get_slice(key).get_shape() for key in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged(path, error) from None
    differing = [name for name in {**wanted, **stored} if wanted.get(name) != stored.get(name)]
    if differing:
        raise UserError(
            f"the weights in {folder / FULL_NAME} are not those of the model",
            actual=f"{len(differing)} tensors are missing, unknown or of another shape, such as {differing[0]}",
            allowed="every tensor of the model and no other",
            next_step="copy them again from their source, or train them again",
        )


def _write_metadata(path: Path, further: dict[str, str]) -> None:
    """Add to a weights file's metadata, and sort it."""
    # The library writes its metadata in a random order. Clips are named by the adapter's hash, so equal adapters have
    # to be equal files. Layout: 8 bytes of length, little-endian, then JSON padded with spaces to a multiple of 8.
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted({**header["__metadata__"], **further}.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
