"""Guidance distillation: the teacher's two passes, and an adapter that starts from another one.

Axes: B batch, C latent channels, T latent frames, H and W latent height and width, L text tokens, D features.
Source: Meng et al. 2023, On Distillation of Guided Diffusion Models (arXiv 2210.03142), its first stage: the student
predicts in one pass what classifier-free guidance makes of two. Here the scale is fixed, and the prediction is the
velocity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import CosmosTransformer3DModel
from peft import set_peft_model_state_dict

from dreamgen.config.settings import FinetuneSettings
from dreamgen.errors import Problems
from dreamgen.models.cosmos_predict25.adapter import ADAPTER_NAME, add_adapter, linear_layers
from dreamgen.models.cosmos_predict25.adapter_layouts import AdapterWeights, read_adapter
from dreamgen.models.cosmos_predict25.flow import FlowInput, VelocityModel

TEACHER_NAME = "teacher"


def guided_velocity(prompted_BCTHW: torch.Tensor, negative_BCTHW: torch.Tensor, scale: float) -> torch.Tensor:
    """Combine both predictions as `Cosmos2_5_PredictBasePipeline.__call__` does: v + g (v - v_negative).

    Args:
        prompted_BCTHW: Velocity for the prompt.
        negative_BCTHW: Velocity for the negative prompt.
        scale: g; at 1 and below, the pipeline does not guide.

    Returns:
        velocity_BCTHW.
    """
    return prompted_BCTHW if scale <= 1 else prompted_BCTHW + scale * (prompted_BCTHW - negative_BCTHW)


@torch.no_grad()
def teacher_flow(
    teacher: VelocityModel, flow: FlowInput, text_BLD: torch.Tensor, negative_1LD: torch.Tensor, scale: float
) -> FlowInput:
    """Replace the target of a training step by the teacher's guided velocity at the same noised latents.

    The teacher is the transformer without the adapter that is trained, in the precision of the training.

    Args:
        teacher: Around the transformer that is trained.
        flow: From `flow_input`.
        text_BLD: The prompts.
        negative_1LD: The negative prompt.
        scale: Of the guidance.

    Returns:
        The same input with another target.
    """
    inputs = (flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT)
    with (
        untrained(teacher.transformer),
        torch.autocast(text_BLD.device.type, torch.bfloat16, enabled=text_BLD.dtype == torch.bfloat16),
    ):
        prompted_BCTHW = teacher(*inputs, text_BLD)
        negative_BCTHW = teacher(*inputs, negative_1LD.expand_as(text_BLD))
    return replace(flow, target_BCTHW=guided_velocity(prompted_BCTHW, negative_BCTHW, scale))


@contextmanager
def untrained(transformer: CosmosTransformer3DModel) -> Iterator[None]:
    """Use the transformer as it was before the training: with the teacher's adapter, or with none.

    On leaving, the adapter that is trained is active again, and requires gradients.
    """
    has_adapter = TEACHER_NAME in transformer.peft_config
    if has_adapter:
        transformer.set_adapter(TEACHER_NAME)
    else:
        transformer.disable_adapters()
    try:
        yield
    finally:
        if has_adapter:
            transformer.set_adapter(ADAPTER_NAME)
        else:
            transformer.enable_adapters()


def read_init_adapter(transformer: CosmosTransformer3DModel, tune: FinetuneSettings) -> AdapterWeights | None:
    """Read `finetune.init_adapter`, and check that it fits the model and the settings.

    Returns:
        None without one.

    Raises:
        UserError: listing every difference from the settings.
    """
    if tune.init_adapter is None:
        return None
    layers = linear_layers(transformer)
    adapter = read_adapter(Path(tune.init_adapter), layers)
    lora, problems = tune.lora, Problems()
    method, ranks = "dora" if adapter.use_dora else "lora", sorted(set(adapter.ranks.values()))
    alphas = sorted({adapter.scaling(layer) * adapter.ranks[layer] for layer in adapter.layers})
    if tune.method != method:
        problems.add("finetune.method", actual=tune.method, allowed=method, next_step=f"--finetune.method={method}")
    if ranks != [lora.rank]:
        same = f"--finetune.lora.rank={ranks[0]}" if len(ranks) == 1 else "all layers of an adapter need one rank"
        problems.add("finetune.lora.rank", actual=lora.rank, allowed=", ".join(map(str, ranks)), next_step=same)
    if alphas != [lora.alpha_or_rank]:
        same = f"--finetune.lora.alpha={alphas[0]:g}" if len(alphas) == 1 else "all layers need one alpha"
        named = ", ".join(f"{alpha:g}" for alpha in alphas)
        problems.add("finetune.lora.alpha", actual=lora.alpha_or_rank, allowed=named, next_step=same)
    wanted = {name for name in layers for target in lora.target_modules if f".{name}".endswith(f".{target}")}
    if differing := sorted(wanted ^ set(adapter.layers)):
        problems.add(
            "finetune.lora.target_modules", actual=f"{len(differing)} layers differ, such as {differing[0]}",
            allowed="the layers of the adapter",
        )  # fmt: skip
    problems.raise_if_any(f"the settings are not those of finetune.init_adapter={tune.init_adapter}")
    return adapter


def add_teacher(transformer: CosmosTransformer3DModel, tune: FinetuneSettings, adapter: AdapterWeights) -> None:
    """Add the adapter that the teacher keeps, frozen; call it before the adapter to train is added.

    Args:
        transformer: Changed in place.
        tune: Its shape.
        adapter: Its weights.
    """
    lora = tune.lora
    add_adapter(transformer, lora.rank, lora.alpha_or_rank, lora.target_modules, tune.method == "dora", TEACHER_NAME)
    set_weights(transformer, adapter, TEACHER_NAME)


def set_weights(transformer: CosmosTransformer3DModel, adapter: AdapterWeights, name: str) -> None:
    """Set the weights of an adapter that was added under a name."""
    report = set_peft_model_state_dict(transformer, dict(adapter.weights), adapter_name=name)
    lost = [*report.unexpected_keys, *(key for key in report.missing_keys if f".{name}" in key)]
    assert not lost, f"read_init_adapter compares all layers: {lost[:3]}"
