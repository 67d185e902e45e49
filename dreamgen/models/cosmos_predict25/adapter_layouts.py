"""Low-rank adapters as other programs write them: read into one form, or refused by the name of their layout.

Read are the keys of diffusers and PEFT, with and without the prefixes `base_model.model.` and `transformer.`, with the
name of a PEFT adapter in them, and with a tensor `alpha` for each layer.
Axes: R rank, I input features, O output features.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import adapter_config_file, adapter_file

KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?P<layer>.+?)\.(?:lora_(?P<part>A|B|magnitude_vector)(?P<tail>(?:\.\w+)*)|alpha)"
)
# Layouts that are recognized but not read, by a piece of their keys.
OTHER_LAYOUTS = (
    (r"^lora_unet_|^lora_te|^lora_transformer_|lora_down|lora_up|dora_scale", "Kohya (sd-scripts)"),
    (r"\.lora\.(down|up)|lora_linear_layer|\.processor\.", "diffusers' former attention processors"),
    (r"lokr_|hada_|oft_|\.diff(_b)?$", "LyCORIS (LoKr, LoHa, OFT)"),
    (r"^diffusion_model\.", "ComfyUI"),
    (r"^net\.|^model\.net\.", "Cosmos Predict's own training code"),
    (r"^text_encoder", "an adapter of the text encoder"),
)
# What the configuration may say that changes the result and is not applied here.
UNSUPPORTED = {"bias": (None, "none"), "lora_bias": (None, False), "fan_in_fan_out": (None, False),
               "use_qalora": (None, False), "layer_replication": (None,), "modules_to_save": (None, []),
               "trainable_token_indices": (None,), "arrow_config": (None,)}  # fmt: skip


class LinearSize(Protocol):
    """A linear layer, or its size."""

    @property
    def in_features(self) -> int:
        """Features of its input."""
        ...

    @property
    def out_features(self) -> int:
        """Features of its output."""
        ...


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in PEFT's form.

    Args:
        path: The file that it was read from.
        weights: `LAYER.lora_A.weight` RI, `LAYER.lora_B.weight` OR and, of DoRA, `LAYER.lora_magnitude_vector` O.
        alphas: The alpha of each layer.
        use_rslora: Whether the update is scaled by alpha / sqrt(rank) instead of alpha / rank.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    alphas: dict[str, float]
    use_rslora: bool = False

    @property
    def layers(self) -> list[str]:
        """Names of the layers that the adapter changes."""
        return list(self.alphas)

    @property
    def use_dora(self) -> bool:
        """Whether the adapter also changes the layers' column norms."""
        return any(key.endswith("magnitude_vector") for key in self.weights)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's update."""
        return {layer: len(self.weights[f"{layer}.lora_A.weight"]) for layer in self.layers}

    def scaling(self, layer: str) -> float:
        """Return the factor of a layer's update B A."""
        rank = self.ranks[layer]
        return self.alphas[layer] / (math.sqrt(rank) if self.use_rslora else rank)

    def lora_config(self) -> dict[str, Any]:
        """Return the arguments of PEFT's LoraConfig under which the weights mean what they meant to their trainer."""
        first = self.layers[0]
        return {
            "r": self.ranks[first],
            "lora_alpha": self.alphas[first],
            "rank_pattern": {f"^{layer}": rank for layer, rank in self.ranks.items()},
            "alpha_pattern": {f"^{layer}": alpha for layer, alpha in self.alphas.items()},
            "target_modules": self.layers,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        }


def read_adapter(folder: Path, linear_layers: Mapping[str, LinearSize]) -> AdapterWeights:
    """Read a low-rank adapter, and check that it fits a model and changes it.

    Args:
        folder: The adapter's folder or file.
        linear_layers: The model's, by name.

    Raises:
        UserError: naming the layout that is not read, the layers that do not fit, or what is damaged.
    """
    path = adapter_file(folder)
    tensors, header = _read_file(path)
    weights, alphas = _parse_keys(path, tensors)
    _check_shapes(path, weights, linear_layers)
    config = _configuration(path, header)
    layers = sorted({key.rpartition(".lora_")[0] for key in weights})
    if config.get("use_dora") and not any(key.endswith("magnitude_vector") for key in weights):
        raise UserError(f"{path}: the configuration says DoRA and the file holds no magnitude vectors")
    patterns, default = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    adapter = AdapterWeights(
        path,
        weights,
        {
            layer: float(alphas[layer] if layer in alphas else _configured(layer, patterns, default, weights))
            for layer in layers
        },
        bool(config.get("use_rslora")),
    )
    _check_values(adapter)
    return adapter


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as stream:
            keys = list(stream.keys())
            return {key: stream.get_tensor(key) for key in keys}, stream.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or is not a safetensors file",
            actual=str(error),
            next_step="copy it again from its source, or train the adapter again",
        ) from None


def _parse_keys(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the weights by their names in PEFT's form, and the alphas that are stored as tensors."""
    weights, alphas, misfits, adapters = {}, {}, [], set()
    for key, tensor in sorted(tensors.items()):
        for pattern, layout in OTHER_LAYOUTS:
            if re.search(pattern, key):
                raise UserError(
                    f"the adapter {path} has a layout that cannot be applied to this model",
                    actual=f"{layout}: {key}",
                    allowed="the keys of diffusers or PEFT: LAYER.lora_A.weight and LAYER.lora_B.weight",
                    next_step="convert its keys, or save it with diffusers' save_lora_weights",
                )
        match = KEY.fullmatch(key)
        tail = [word for word in (match["tail"] or "").split(".") if word] if match else []
        if tail and tail[-1] == "weight":
            tail.pop()
        if match is None or len(tail) > 1 or "bias" in tail:
            misfits.append(f"{key} is not a part of a LoRA or DoRA adapter")
        elif match["part"] is None:
            alphas[match["layer"]] = float(tensor)
        else:
            adapters.update(tail)
            ending = "" if match["part"] == "magnitude_vector" else ".weight"
            weights[f"{match['layer']}.lora_{match['part']}{ending}"] = tensor
    if len(adapters) > 1:
        raise UserError(
            f"{path} holds several adapters", actual=", ".join(sorted(adapters)), allowed="one in a file",
            next_step="save each by itself, and give them as FOLDER:WEIGHT,FOLDER:WEIGHT",
        )  # fmt: skip
    if not weights and not misfits:
        misfits.append("it holds no weights")
    _refuse(path, misfits, len(tensors))
    return weights, alphas


def _check_shapes(path: Path, weights: Mapping[str, torch.Tensor], linear_layers: Mapping[str, LinearSize]) -> None:
    misfits = []
    for key, tensor in weights.items():
        name, _, part = key.rpartition(".lora_")
        shape, other = list(tensor.shape), {"A.weight": "B.weight", "B.weight": "A.weight"}.get(part)
        if name not in linear_layers:
            misfits.append(f"the model has no linear layer {name}")
            continue
        layer = linear_layers[name]
        axis, wanted = (-1, layer.in_features) if part == "A.weight" else (0, layer.out_features)
        if len(shape) != (2 if other else 1) or shape[axis] != wanted:
            misfits.append(f"{key} has shape {shape} and the layer is {layer.in_features} -> {layer.out_features}")
        elif other and f"{name}.lora_{other}" not in weights:
            misfits.append(f"{name} has no lora_{other}")
        elif part == "B.weight" and shape[1] != len(weights[f"{name}.lora_A.weight"]):
            misfits.append(f"{name} has lora_A and lora_B of different ranks")
        elif part == "magnitude_vector" and f"{name}.lora_A.weight" not in weights:
            misfits.append(f"{name} has a magnitude vector and no lora_A")
    _refuse(path, misfits, len(weights))


def _refuse(path: Path, misfits: list[str], num_tensors: int) -> None:
    if misfits:
        named = "; ".join(misfits[:3]) + ("; ..." if len(misfits) > 3 else "")
        raise UserError(
            f"the adapter {path} does not fit the model",
            actual=f"{len(misfits)} of {num_tensors} tensors do not fit: {named}" if num_tensors else named,
            allowed="an adapter that was trained on this model",
            next_step="choose the adapter's own base model (its README.md names it), or train a new one",
        )


def _configuration(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """Return the adapter's configuration: diffusers' metadata in the file, or PEFT's file beside it."""
    beside, found = adapter_config_file(path), []
    if text := header.get("lora_adapter_metadata"):
        values = _json_object(path, text)
        found.append({name.removeprefix("transformer."): value for name, value in values.items()})
    if beside is not None:
        found.append(_json_object(beside, beside.read_text(encoding="utf-8", errors="replace")))
    for config in found:
        kind = config.get("peft_type") or "LORA"
        if kind != "LORA":
            raise UserError(f"the adapter {path} is not LoRA or DoRA", actual=str(kind), allowed="LORA")
        for name, plain in UNSUPPORTED.items():
            if config.get(name) not in plain:
                raise UserError(
                    f"the adapter {path} was trained with a setting that is not supported here",
                    actual=f"{name}={config[name]}", allowed=f"{name}={plain[-1]}",
                )  # fmt: skip
        patterns = config.get("alpha_pattern") or {}
        alphas = [config.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
        if bad := [alpha for alpha in alphas if alpha is not None and not _is_number(alpha)]:
            raise UserError(f"the configuration of {path}: alpha is not a number", actual=repr(bad[0])[:80])
    compared = ("lora_alpha", "alpha_pattern", "use_dora", "use_rslora")
    both = [name for name in compared if len(found) == 2 and all(name in config for config in found)]
    if differing := [name for name in both if found[0][name] != found[1][name]]:
        raise UserError(
            f"{path} and {beside} describe different adapters", actual=f"unlike {', '.join(sorted(differing))}",
            next_step="remove the one that does not belong to these weights",
        )  # fmt: skip
    return found[0] if found else {}


def _configured(
    layer: str, patterns: Mapping[str, float], default: float | None, weights: Mapping[str, torch.Tensor]
) -> float:
    """Return a layer's alpha by PEFT's rule; without a configuration it is the rank, as diffusers takes it."""
    alpha = default
    if patterns:
        from peft.utils.other import get_pattern_key  # importing it takes seconds, and few adapters have patterns

        try:
            alpha = patterns.get(get_pattern_key(list(patterns), layer), default)
        except re.error as error:
            raise UserError("alpha_pattern of an adapter is not a regular expression", actual=str(error)) from None
    return len(weights[f"{layer}.lora_A.weight"]) if alpha is None else alpha


def _check_values(adapter: AdapterWeights) -> None:
    bad = [key for key, tensor in adapter.weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(
            f"the adapter {adapter.path} holds values that are not finite",
            actual=f"{len(bad)} of {len(adapter.weights)} tensors, such as {bad[0]}",
            next_step="take an earlier checkpoint, or train again with a lower learning rate",
        )
    updates = [tensor for key, tensor in adapter.weights.items() if ".lora_B." in key]
    scaled = [adapter.scaling(layer) for layer in adapter.layers]
    if not adapter.use_dora and not (any(tensor.any() for tensor in updates) and any(scaled)):
        raise UserError(
            f"the adapter {adapter.path} changes nothing: its update is zero in every layer",
            actual="lora_B or alpha is zero everywhere",
            next_step="it was not trained; --plan.adapter=base uses the model without one",
        )


def _json_object(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"the configuration of the adapter {path} is not a JSON object", actual=text[:80])
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
