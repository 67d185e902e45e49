"""How a training step runs the transformer's blocks: compiled, and with the wanted trade of memory for time.

Axes: B batch, T latent frames, S tokens of one frame, L text tokens, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dreamgen.models.velocity import BlockForward, block_forward

ATTENTION = (
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)

# What a block keeps for its backward pass. blocks: its input; attention: the attentions' outputs too; all: whatever
# the backward pass reads. The numbers are what that takes, as multiples of one activation (tokens x features in
# bfloat16), compiled: measured with benchmarks/finetune_step.py.
Level = Literal["blocks", "attention", "all"]
KEPT_ACTIVATIONS: dict[Level, float] = {"blocks": 1.0, "attention": 2.5, "all": 24.0}
# DoRA's scaling of each layer's output is read by its backward pass too.
KEPT_BY_DORA: dict[Level, float] = {"blocks": 0.0, "attention": 0.0, "all": 3.5}
# What a step needs whatever is kept: one block's recomputation, the first and last layers.
WORKING_ACTIVATIONS = 75.0
# Plain blocks keep norms, rotations and casts that compiled ones compute again: what autograd saves was counted.
TIMES_UNCOMPILED = 1.8


def kept_activations(level: Level, use_dora: bool, compiled: bool = True) -> float:
    """Return how many activations a block keeps."""
    kept = KEPT_ACTIVATIONS[level] + (KEPT_BY_DORA[level] if use_dora else 0.0)
    return kept if compiled or level != "all" else kept * TIMES_UNCOMPILED


def working_activations(use_dora: bool, compiled: bool = True) -> float:
    """Return how many activations come and go; a plain block that is recomputed has all of its own at once."""
    more = kept_activations("all", use_dora, compiled) - kept_activations("all", use_dora)
    return WORKING_ACTIVATIONS + more


def choose_levels(
    num_layers: int, activation_gib: float, fixed_gib: float, memory_gib: float, use_dora: bool = False,
    compiled: bool = True,
) -> list[Level]:  # fmt: skip
    """Choose for each block how much it keeps, so that the step fits the memory and recomputes as little as it can.

    Keeping the attentions' outputs buys the most time a byte, so all blocks do that before any keeps everything.

    Args:
        num_layers: Blocks of the transformer.
        activation_gib: One activation of the batch: tokens x features x 2 bytes.
        fixed_gib: Weights, adapter and optimizer.
        memory_gib: What the step may use.
        use_dora: Whether the adapter is one.
        compiled: Whether the blocks are compiled.

    Returns:
        One level a block; the least memory where even that does not fit.
    """
    room = (memory_gib - fixed_gib) / activation_gib - working_activations(use_dora, compiled)
    least = kept_activations("attention", use_dora)
    if room < num_layers * least:
        return ["blocks"] * num_layers
    left = room - num_layers * least
    num_all = min(num_layers, int(left / (kept_activations("all", use_dora, compiled) - least)))
    # The last blocks' activations are needed first in the backward pass, so they are held for the shortest time.
    return ["attention"] * (num_layers - num_all) + ["all"] * num_all


def training_blocks(levels: list[Level], compiled: bool) -> list[BlockForward]:
    """Return each block's forward pass for training; blocks of one level share one compilation."""
    by_level = {level: training_block(level, compiled) for level in dict.fromkeys(levels)}
    return [by_level[level] for level in levels]


def training_block(level: Level, compiled: bool) -> BlockForward:
    """Return a block's forward pass that keeps what `level` says, for `dreamgen.models.velocity.velocity`."""
    run = block_forward if level == "all" else functools.partial(_checkpointed, level)
    return torch.compile(run, dynamic=False, fullgraph=True) if compiled else run


def _checkpointed(level: Level, *arguments: object) -> torch.Tensor:
    options = {"context_fn": _keeping_attention} if level == "attention" else {}
    return checkpoint(block_forward, *arguments, use_reentrant=False, **options)


def _keeping_attention() -> tuple:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: object, operator: Callable, *_: object, **__: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
