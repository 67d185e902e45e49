"""The transformer in numbers, from its configuration alone: its matrix products, parameters and tokens.

Everything that is said before training (floating-point operations, memory, hours) is counted from here, so that no
weight has to be loaded for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.config.settings import ModelSettings, VideoSettings
from dreamgen.data.timeline import num_latent_frames
from dreamgen.run.files import read_json

NUM_TEXT_TOKENS = 512  # the pipeline pads every prompt to this
LATENT_CHANNELS, LATENT_STRIDE_PX = 16, 8  # of the Wan VAE, which every Cosmos Predict 2.5 model uses
Rows = Literal["tokens", "text", "frames", "prompts"]


@dataclass(frozen=True)
class Linear:
    """A linear layer of the transformer.

    Args:
        name: As the transformer names it; of the first block, where every block has one.
        num_in: Input features.
        num_out: Output features.
        num_layers: How many blocks have one.
        rows: What it is applied to in a step; `prompts`: to a prompt once, before the training.
        input_has_gradient: Whether the backward pass goes through its input.
    """

    name: str
    num_in: int
    num_out: int
    num_layers: int
    rows: Rows
    input_has_gradient: bool


@dataclass(frozen=True)
class TransformerSize:
    """The numbers of a CosmosTransformer3DModel that its cost depends on."""

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
        block, first = self.num_layers, "transformer_blocks.0"
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

    @property
    def num_parameters(self) -> int:
        """Weights of the whole transformer."""
        matrices = sum(layer.num_in * layer.num_out * layer.num_layers for layer in self.linears())
        norms = self.num_features + 4 * self.head_features * self.num_layers  # of the timestep, of queries and keys
        bias = self.text_features if self.raw_text_features is not None else 0
        return matrices + norms + bias

    @property
    def num_projection_parameters(self) -> int:
        """Weights of the text's projection, which stays frozen whatever is trained."""
        return (self.raw_text_features + 1) * self.text_features if self.raw_text_features is not None else 0


def adapted(layers: Sequence[Linear], target_modules: Sequence[str]) -> list[Linear]:
    """Return the layers that an adapter on `target_modules` (name endings) changes."""
    return [
        layer
        for layer in layers
        if any(layer.name == target or layer.name.endswith("." + target) for target in target_modules)
    ]


def num_adapter_parameters(size: TransformerSize, rank: int, target_modules: Sequence[str], use_dora: bool) -> int:
    """Count an adapter's weights: two factors a layer, and for DoRA a norm for each output."""
    layers = adapted(size.linears(), target_modules)
    return sum((rank * (at.num_in + at.num_out) + use_dora * at.num_out) * at.num_layers for at in layers)


def latent_shape(video: VideoSettings) -> tuple[int, int, int, int]:
    """Return a window's clean latent as channels, frames, height and width."""
    size = (video.height // LATENT_STRIDE_PX, video.width // LATENT_STRIDE_PX)
    return LATENT_CHANNELS, num_latent_frames(video.num_frames), *size


def num_rows(size: TransformerSize, video: VideoSettings) -> dict[str, int]:
    """Count the rows that each kind of linear layer is applied to for one window: 31,104 tokens at 432x768x93."""
    _, num_frames, height, width = latent_shape(video)
    return {
        "tokens": num_frames * height * width // math.prod(size.patch_size),
        "text": NUM_TEXT_TOKENS,
        "frames": num_frames,
        "prompts": 0,
    }


def find_size(model: ModelSettings) -> TransformerSize | None:
    """Find the transformer's sizes without loading or downloading anything.

    Args:
        model: mini, a local folder or a hub id.

    Returns:
        Its size: from the folder's or the hub cache's config.json, else from configs/models for a model of ours;
        None for a hub model that is neither cached nor known.
    """
    config = _config_file(model)
    if config is not None:
        return TransformerSize.from_config(read_json(config))
    name = model.path.split("/")[-1].lower().replace("-predict", "")
    known = configs_folder() / "models" / f"{name}.yaml"
    return TransformerSize.from_config(_sizes(known)) if known.is_file() else None


def _config_file(model: ModelSettings) -> Path | None:
    local = Path(model.path) / "transformer" / "config.json"
    if local.is_file():
        return local
    if model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        return None
    cached = try_to_load_from_cache(model.path, "transformer/config.json", revision=model.revision)
    return Path(cached) if isinstance(cached, str) else None


def _sizes(recipe: Path) -> dict[str, Any]:
    values = read_yaml(recipe)
    # The mini model's recipe leaves out what follows from its text encoder: the features of all layers together.
    text = values["text_encoder"]
    return {"crossattn_proj_in_channels": text["hidden_size"] * text["num_hidden_layers"], **values["transformer"]}
