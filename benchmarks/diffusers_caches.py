"""Diffusers' own caches on the transformer of mini and Cosmos-Predict2.5, to measure them beside the sampling levels.

They hook modules: attention layers, blocks, or the whole denoiser. The transformer is not a `CacheMixin`, so they are
applied by their functions. With guidance, both texts are one batch, the negative one first, as in the pipelines that
FasterCache was made for. FirstBlockCache and SeaCache decide for all clips of a batch together.

Axes: B batch, C latent channels, T latent frames, H and W latent height and width, S tokens of one frame, L text
tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_sea_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from torch.utils.flop_counter import FlopCounterMode

from dreamgen.models.cosmos_predict25.sampler import CONDITION_TIMESTEP
from dreamgen.models.cosmos_predict25.solver import Stepper, StepTable
from dreamgen.models.cosmos_predict25.velocity import Rope, velocity

TRAIN_STEPS = 1000  # a timestep of diffusers is 1000 sigma
LAYERS = [r"transformer_blocks\.\d+\.attn[12]", r"transformer_blocks\.\d+\.ff"]
# What FasterCache splits into the halves of both texts.
SPLIT = ("hidden_states", "encoder_hidden_states", "timestep", "condition_mask")


class Denoiser(torch.nn.Module):
    """The transformer's forward pass, with its blocks called as modules, so that their hooks run.

    Args:
        transformer: Frozen; its blocks and last layer are those of this module, under the same names.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        # diffusers knows what the blocks of other models return; these return hidden states alone.
        for kind in {type(block) for block in transformer.transformer_blocks}:
            TransformerBlockRegistry.register(kind, TransformerBlockMetadata(return_hidden_states_index=0))
        self.transformer_blocks, self.proj_out = transformer.transformer_blocks, transformer.proj_out
        self.config = transformer.config
        self._forward = [transformer]  # a list, so that no name begins with `transformer.`

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        condition_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return velocity_BCTHW; the arguments are those of `velocity`, by diffusers' names."""
        return velocity(self._forward[0], hidden_states, condition_mask, timestep, encoder_hidden_states, run_as_module)


def run_as_module(
    block: torch.nn.Module,
    hidden_BTSD: torch.Tensor,
    text_BLD: torch.Tensor,
    embedded_timestep_BT1D: torch.Tensor,
    temb_BT1D: torch.Tensor,
    rope: Rope,
) -> torch.Tensor:
    """Run a block through its own forward, which takes the modulation of each token. Returns hidden_BTSD."""
    num_frames, num_tokens = hidden_BTSD.shape[1:3]
    embedded, temb = (
        values.expand(-1, -1, num_tokens, -1).flatten(1, 2) for values in (embedded_timestep_BT1D, temb_BT1D)
    )
    hidden = block(hidden_BTSD.flatten(1, 2), text_BLD, embedded, temb, rope)
    return hidden.unflatten(1, (num_frames, num_tokens))


class Clock:
    """The timestep that caches ask for."""

    timestep = float(TRAIN_STEPS)

    def __call__(self) -> int:
        return round(self.timestep)


@dataclass(frozen=True)
class Cache:
    """A way to apply one of diffusers' caches.

    Args:
        name: With its numbers.
        apply: Hooks a denoiser; takes the clock and whether both texts are in the batch.
    """

    name: str
    apply: Callable[[Denoiser, Clock, bool], None]


def all_caches() -> list[Cache]:
    """Return the caches that run on this transformer, with numbers that cost about as much as the levels."""

    def taylor(interval: int, **options: Any) -> Callable[[Denoiser, Clock, bool], None]:
        config = TaylorSeerCacheConfig(
            cache_interval=interval, disable_cache_before_step=3, taylor_factors_dtype=torch.float32, **options
        )
        return lambda denoiser, clock, is_guided: apply_taylorseer_cache(denoiser, config)

    def first_block(threshold: float) -> Callable[[Denoiser, Clock, bool], None]:
        config = FirstBlockCacheConfig(threshold)
        return lambda denoiser, clock, is_guided: apply_first_block_cache(denoiser, config)

    def sea(denoiser: Denoiser, clock: Clock, is_guided: bool) -> None:
        # The latents whose change decides, in place of the callbacks that diffusers has for other models.
        config = SeaCacheConfig(raw_vision_callback=lambda _, args, named: list(named["hidden_states"].unbind()))
        apply_sea_cache(denoiser, config)

    def broadcast(denoiser: Denoiser, clock: Clock, is_guided: bool) -> None:
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, cross_attention_block_skip_range=4, current_timestep_callback=clock
        )
        apply_pyramid_attention_broadcast(denoiser, config)

    def faster(denoiser: Denoiser, clock: Clock, is_guided: bool) -> None:
        config = FasterCacheConfig(
            attention_weight_callback=lambda _: 0.5, current_timestep_callback=clock,
            is_guidance_distilled=not is_guided, _unconditional_conditional_input_kwargs_identifiers=list(SPLIT),
        )  # fmt: skip
        apply_faster_cache(denoiser, config)

    return [
        Cache("TaylorSeer, every 2nd", taylor(2, cache_identifiers=LAYERS)),
        Cache("TaylorSeer, every 5th", taylor(5, cache_identifiers=LAYERS)),
        Cache("TaylorSeer lite, every 2nd", taylor(2, use_lite_mode=True)),
        Cache("FirstBlockCache, threshold 0.05", first_block(0.05)),
        Cache("FirstBlockCache, threshold 0.2", first_block(0.2)),
        Cache("SeaCache", sea),
        Cache("PyramidAttentionBroadcast", broadcast),
        Cache("FasterCache", faster),
    ]


def caches_that_do_not_run(sample: Callable[[Cache], object]) -> dict[str, str]:
    """Return, by name, why a cache does not run on this transformer, from diffusers' own errors.

    Args:
        sample: Samples a clip with a cache.
    """
    attempts = [Cache("MagCache", lambda denoiser, clock, is_guided: apply_mag_cache(denoiser, MagCacheConfig()))]
    reasons = {}
    for cache in attempts:
        try:
            sample(cache)
        except Exception as error:
            reasons[cache.name] = " ".join(str(error).split())
    return reasons


@contextmanager
def applied(denoiser: Denoiser, cache: Cache | None, is_guided: bool) -> Iterator[Clock]:
    """Apply a cache while the body runs, with nothing kept from before."""
    clock = Clock()
    try:
        if cache is not None:
            cache.apply(denoiser, clock, is_guided)
        yield clock
    finally:
        remove_hooks(denoiser)


def remove_hooks(denoiser: Denoiser) -> None:
    """Remove all hooks from a denoiser and its layers."""
    for module in denoiser.modules():
        registry: HookRegistry | None = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)
            del module._diffusers_hook


@torch.no_grad()
def sample_cached(
    transformer: Any,
    cache: Cache | None,
    table: StepTable,
    noise_BCTHW: torch.Tensor,
    conditioning_BCTHW: torch.Tensor,
    text_BLD: torch.Tensor,
    negative_BLD: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Sample clips as `sample_latents` does, with a cache.

    Args:
        transformer: Frozen.
        cache: None computes everything.
        table: From `step_table`.
        noise_BCTHW: Initial noise, float32.
        conditioning_BCTHW: Clean latents of the conditioning frames, float32.
        text_BLD: The prompts.
        negative_BLD: The negative prompts; None for no guidance.
        scale: Of the guidance.

    Returns:
        latents_BCTHW, float32.
    """
    denoiser, num_conditioning = Denoiser(transformer), conditioning_BCTHW.shape[2]
    texts = text_BLD if negative_BLD is None else torch.cat([negative_BLD, text_BLD])
    num_texts = len(texts) // len(text_BLD)
    mask_B1THW = torch.zeros_like(noise_BCTHW[:, :1], dtype=text_BLD.dtype)
    mask_B1THW[:, :, :num_conditioning] = 1
    known_BCTHW = noise_BCTHW[:, :, :num_conditioning] - conditioning_BCTHW
    stepper = Stepper(table, noise_BCTHW)
    with applied(denoiser, cache, negative_BLD is not None) as clock:
        for index, sigma in enumerate(table.sigmas):
            clock.timestep = TRAIN_STEPS * sigma
            where = {"step_index": index, "num_inference_steps": table.num_steps, "sigma": sigma}
            _set_cache_context(denoiser, CacheContext("both", **where))
            times_BT = torch.full(mask_B1THW.shape[:3:2], sigma, device=noise_BCTHW.device)
            times_BT[:, :num_conditioning] = CONDITION_TIMESTEP
            latents_BCTHW = torch.cat([conditioning_BCTHW, stepper.sample[:, :, num_conditioning:]], dim=2)
            answer = denoiser(
                hidden_states=latents_BCTHW.to(text_BLD.dtype).repeat(num_texts, 1, 1, 1, 1),
                encoder_hidden_states=texts, timestep=times_BT.repeat(num_texts, 1),
                condition_mask=mask_B1THW.repeat(num_texts, 1, 1, 1, 1),
            ).float()  # fmt: skip
            negative_BCTHW, velocity_BCTHW = answer.chunk(2) if num_texts == 2 else (answer, answer)
            velocity_BCTHW = velocity_BCTHW + scale * (velocity_BCTHW - negative_BCTHW)  # adds 0 without guidance
            stepper.step(index, torch.cat([known_BCTHW, velocity_BCTHW[:, :, num_conditioning:]], dim=2))
    return stepper.sample


def num_flops(sample: Callable[[], object]) -> int:
    """Return the floating-point operations of sampling, as torch counts them in products and attention."""
    with FlopCounterMode(display=False) as counter:
        sample()
    return counter.get_total_flops()
