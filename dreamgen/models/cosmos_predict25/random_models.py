"""Models of the real sizes with random weights, for benchmarks and for checks of a GPU.

Axes: B batch, T frames, C channels, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.mini import build_mini, transformer_from_config
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS
from dreamgen.models.cosmos_predict25.transformer_size import transformer_config
from dreamgen.models.loader_logging import quiet_loaders


def model_sizes(name: str) -> dict[str, Any]:
    """Return the sizes of a model of configs/models, such as "cosmos2.5-2b" or "mini"."""
    sizes = read_yaml(configs_folder() / "models" / f"{name}.yaml")
    return {**sizes, "transformer": transformer_config(sizes)}


def random_pipeline(
    sizes: dict[str, Any], device: torch.device | str, dtype: torch.dtype
) -> Cosmos2_5_PredictBasePipeline:
    """Build the pipeline at a model's own sizes with random weights; only the text encoder's vision part is tiny.

    Args:
        sizes: From `model_sizes`.
        device: Where it is built.
        dtype: Of its weights.
    """
    with _default_dtype(dtype), torch.device(device):
        pipe = build_mini(sizes)
    pipe.transformer = random_transformer(transformer_config(sizes), device, dtype)
    for part in (pipe.text_encoder, pipe.vae):
        part.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_transformer(
    config: dict[str, Any], device: torch.device | str, dtype: torch.dtype
) -> CosmosTransformer3DModel:
    """Build a transformer with random weights, the same at every call, frozen and in eval mode.

    Args:
        config: From `transformer_config`.
        device: Where it is built.
        dtype: Of its weights.
    """
    torch.manual_seed(0)
    with torch.device(device):
        transformer = transformer_from_config(config)
    with quiet_loaders():
        return transformer.requires_grad_(False).eval().to(dtype)  # pyright: ignore[reportArgumentType]  # diffusers wraps `to`


def published_encoders(
    sizes: dict[str, Any], video_BCTHW: torch.Tensor, device: torch.device | str, dtype: torch.dtype
) -> Callable[[], None]:
    """Return what the published training step runs before the transformer: the VAE on a window and the text encoder.

    Args:
        sizes: From `model_sizes`.
        video_BCTHW: The window, -1 to 1, on the device.
        device: Where the encoders are built.
        dtype: Of their weights.
    """
    with torch.device(device):
        vae = AutoencoderKLWan(**sizes["vae"]).requires_grad_(False).eval()
        vae.to(dtype)  # pyright: ignore[reportArgumentType]  # diffusers wraps `to`
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        config = Qwen2_5_VLTextConfig(
            **{key: sizes["text_encoder"][key] for key in keys},
            vocab_size=sizes["text_encoder"].get("vocab_size", 300),
            bos_token_id=None, eos_token_id=1, pad_token_id=0,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": sizes["text_encoder"]["mrope_section"],
            },
        )  # fmt: skip
        with _default_dtype(dtype):
            text = Qwen2_5_VLTextModel(config).eval().requires_grad_(False)
    tokens = torch.randint(2, 200, (1, NUM_TEXT_TOKENS), device=device)

    @torch.no_grad()
    def run() -> None:
        vae.encode(video_BCTHW.to(dtype), return_dict=False)[0].mode()
        states = text(tokens, output_hidden_states=True).hidden_states[1:]
        torch.cat([(s - s.mean(-1, keepdim=True)) / (s.std(-1, keepdim=True) + 1e-8) for s in states], dim=-1)

    return run


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
