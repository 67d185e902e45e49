"""The transformer's size, from its configuration alone: its linear layers, parameters, tokens and operations.

All estimates before training (floating-point operations, memory, hours) are derived from here, so that no weights have
to be loaded for them. Operations are those that the mathematics needs, so that MFU (Chowdhery et al. 2022, PaLM, arXiv
2204.02311, appendix B) does not reward recomputation: a product of (m, k) and (k, n) is 2 m k n operations, once
forward; backward once more for the gradient of its input and once for that of its weight, if these are needed (Kaplan
et al. 2020, arXiv 2001.08361, section 2.1). Attention is two products forward and four backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.config.settings import FinetuneSettings, ModelSettings, VideoSettings
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, is_random_mini, latent_shape, shipped_mini
from dreamgen.models.world_model import WorldModelSource
from dreamgen.run.files import read_json

BLOCKS = "transformer_blocks"

Rows = Literal["tokens", "text", "frames", "prompts"]


@dataclass(frozen=True)
class Linear:
    """A linear layer of the transformer.

    Args:
        name: As the transformer names it; of the first block, where every block has one.
        num_in: Input features.
        num_out: Output features.
        num_layers: How many blocks have one.
        rows: What it is applied to in a step; `prompts`: once to each prompt, before the training.
        input_has_gradient: Whether the backward pass goes through its input.
    """

    name: str
    num_in: int
    num_out: int
    num_layers: int
    rows: Rows
    input_has_gradient: bool


@dataclass(frozen=True)
class LayerSize:
    """Features of a linear layer's input and output."""

    in_features: int
    out_features: int


@dataclass(frozen=True)
class TransformerSize:
    """The dimensions of a CosmosTransformer3DModel that its cost depends on."""

    num_layers: int
    num_heads: int
    head_features: int
    mlp_ratio: float
    adaln_features: int
    text_features: int
    raw_text_features: int | None
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TransformerSize:
        """Read a transformer's config.json or the `transformer` part of configs/models/NAME.yaml."""
        projects = config.get("use_crossattn_projection", False)
        return cls(
            num_layers=config["num_layers"],
            num_heads=config["num_attention_heads"],
            head_features=config["attention_head_dim"],
            mlp_ratio=config["mlp_ratio"],
            adaln_features=config["adaln_lora_dim"],
            text_features=config["text_embed_dim"],
            raw_text_features=config.get("crossattn_proj_in_channels") if projects else None,
            in_channels=config["in_channels"] + bool(config["concat_padding_mask"]),
            out_channels=config["out_channels"],
            patch_size=tuple(config["patch_size"]),
        )

    @property
    def num_features(self) -> int:
        """Features of a token."""
        return self.num_heads * self.head_features

    @property
    def num_hidden(self) -> int:
        """Features in the middle of a feed-forward layer."""
        return int(self.num_features * self.mlp_ratio)

    def linears(self) -> list[Linear]:
        """List the linear layers; see `CosmosTransformer3DModel` and `CosmosTransformerBlock` in diffusers."""
        wide, text, low = self.num_features, self.text_features, self.adaln_features
        patch = math.prod(self.patch_size)
        block, first = self.num_layers, f"{BLOCKS}.0"
        layers = [
            Linear("patch_embed.proj", self.in_channels * patch, wide, 1, "tokens", False),
            Linear("time_embed.t_embedder.linear_1", wide, wide, 1, "frames", False),
            Linear("time_embed.t_embedder.linear_2", wide, 3 * wide, 1, "frames", False),
            *(Linear(f"{first}.norm{n}.linear_1", wide, low, block, "frames", False) for n in (1, 2, 3)),
            *(Linear(f"{first}.norm{n}.linear_2", low, 3 * wide, block, "frames", False) for n in (1, 2, 3)),
            *(Linear(f"{first}.attn1.{n}", wide, wide, block, "tokens", True) for n in ("to_q", "to_k", "to_v")),
            Linear(f"{first}.attn1.to_out.0", wide, wide, block, "tokens", True),
            Linear(f"{first}.attn2.to_q", wide, wide, block, "tokens", True),
            *(Linear(f"{first}.attn2.{n}", text, wide, block, "text", False) for n in ("to_k", "to_v")),
            Linear(f"{first}.attn2.to_out.0", wide, wide, block, "tokens", True),
            Linear(f"{first}.ff.net.0.proj", wide, self.num_hidden, block, "tokens", True),
            Linear(f"{first}.ff.net.2", self.num_hidden, wide, block, "tokens", True),
            Linear("norm_out.linear_1", wide, low, 1, "frames", False),
            Linear("norm_out.linear_2", low, 2 * wide, 1, "frames", False),
            Linear("proj_out", wide, patch * self.out_channels, 1, "tokens", True),
        ]
        if self.raw_text_features is not None:
            layers.append(Linear("crossattn_proj.0", self.raw_text_features, text, 1, "prompts", False))
        return layers

    def layers_by_name(self) -> dict[str, LayerSize]:
        """Return every linear layer of the transformer, as `named_modules` would name it."""
        layers = {}
        for layer in self.linears():
            block, _, name = layer.name.partition(".0.")
            names = [f"{block}.{n}.{name}" for n in range(layer.num_layers)] if block == BLOCKS else [layer.name]
            layers |= dict.fromkeys(names, LayerSize(layer.num_in, layer.num_out))
        return layers

    @property
    def num_parameters(self) -> int:
        """Weights of the whole transformer."""
        matrices = sum(layer.num_in * layer.num_out * layer.num_layers for layer in self.linears())
        norms = self.num_features + 4 * self.head_features * self.num_layers  # of the timestep, of queries and keys
        bias = self.text_features if self.raw_text_features is not None else 0
        return matrices + norms + bias

    @property
    def num_projection_parameters(self) -> int:
        """Weights of the text projection, which always stays frozen."""
        return (self.raw_text_features + 1) * self.text_features if self.raw_text_features is not None else 0


def adapted(layers: Sequence[Linear], target_modules: Sequence[str]) -> list[Linear]:
    """Return the layers that an adapter on `target_modules` (name endings) changes."""
    return [
        layer
        for layer in layers
        if any(layer.name == target or layer.name.endswith("." + target) for target in target_modules)
    ]


def num_adapter_parameters(size: TransformerSize, rank: int, target_modules: Sequence[str], use_dora: bool) -> int:
    """Count an adapter's weights: two factors for each layer, and for DoRA a norm for each output."""
    layers = adapted(size.linears(), target_modules)
    return sum((rank * (at.num_in + at.num_out) + use_dora * at.num_out) * at.num_layers for at in layers)


def num_rows(size: TransformerSize, video: VideoSettings) -> dict[str, int]:
    """Count the rows that each kind of linear layer is applied to for one window: 31,104 tokens at 432x768x93."""
    _, num_frames, height, width = latent_shape(video.num_frames, video.height, video.width)
    return {
        "tokens": num_frames * height * width // math.prod(size.patch_size),
        "text": NUM_TEXT_TOKENS,
        "frames": num_frames,
        "prompts": 0,
    }


def forward_flops(size: TransformerSize, video: VideoSettings) -> float:
    """Return the operations of one forward pass of the frozen transformer on one window with projected text."""
    rows = num_rows(size, video)
    return sum(_product(layer, rows[layer.rows]) for layer in size.linears()) + _attention(size, rows["tokens"])


def training_flops(size: TransformerSize, video: VideoSettings, tune: FinetuneSettings) -> float:
    """Return the operations of training on one window.

    With an adapter the weights are frozen, so a linear layer costs one forward and one backward product instead of two,
    and no backward product if nothing before it is trained (the text's keys and values, the timestep's modulation).
    Each adapted layer adds its two thin products forward, the same for the gradients of their weights, and for those of
    their inputs. DoRA's norms are omitted: they do not grow with the tokens. Distilling guidance adds the teacher's two
    forward passes, without the thin products of its adapter.

    Args:
        size: Of the transformer.
        video: The window.
        tune: Method, rank and adapted layers.

    Returns:
        Operations, forward and backward.
    """
    rows, layers = num_rows(size, video), size.linears()
    total = 3 * _attention(size, rows["tokens"])
    for layer in layers:
        num_products = 1 + layer.input_has_gradient + (tune.method == "full")
        total += num_products * _product(layer, rows[layer.rows])
    if tune.method != "full":
        for layer in adapted(layers, tune.lora.target_modules):
            num_in, num_out = layer.num_in, layer.num_out
            features = 3 * num_out + (3 if layer.input_has_gradient else 2) * num_in
            total += 2 * rows[layer.rows] * tune.lora.rank * features * layer.num_layers
    return total if tune.distill_guidance is None else total + 2 * forward_flops(size, video)


def find_size(model: ModelSettings) -> TransformerSize | None:
    """Find the transformer's sizes without loading or downloading anything.

    Args:
        model: mini, mini-random, a local folder or a hub id.

    Returns:
        Its size, from the config.json of the folder or the hub cache, or from configs/models; None for a hub model that
        is neither cached nor known.
    """
    config = _config_file(str(shipped_mini(model.path) or model.path), model.revision)
    if config is not None:
        return TransformerSize.from_config(read_json(config))
    name = "mini" if is_random_mini(model.path) else model.path.split("/")[-1].lower().replace("-predict", "")
    known = configs_folder() / "models" / f"{name}.yaml"
    return TransformerSize.from_config(transformer_config(read_yaml(known))) if known.is_file() else None


def transformer_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the transformer's configuration; recipes may omit the text features, which the text encoder determines."""
    text = sizes["text_encoder"]
    return {"crossattn_proj_in_channels": text["hidden_size"] * text["num_hidden_layers"], **sizes["transformer"]}


def source_size(source: WorldModelSource) -> TransformerSize | None:
    """Read the transformer's size from the config.json that the source has on this machine.

    Returns:
        None if it has none, or one whose layers are not all known here: diffusers has to read it.
    """
    file = _config_file(source.path, source.revision)
    if file is None:
        return None
    config = read_json(file)
    if config.get("img_context_dim_in"):
        return None
    try:
        return TransformerSize.from_config(config)
    except (KeyError, TypeError):
        return None


def _config_file(path: str, revision: str | None) -> Path | None:
    local = Path(path) / "transformer" / "config.json"
    if local.is_file():
        return local
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "transformer/config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _product(layer: Linear, num_rows: int) -> float:
    return 2.0 * num_rows * layer.num_in * layer.num_out * layer.num_layers


def _attention(size: TransformerSize, num_tokens: int) -> float:
    # Scores and weighted values, for the tokens among themselves and with the text.
    return 4.0 * num_tokens * (num_tokens + NUM_TEXT_TOKENS) * size.num_features * size.num_layers
