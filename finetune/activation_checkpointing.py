"""How a training step runs the transformer's blocks: compiled, and with the wanted trade of memory for time.

Axes: B batch, T latent frames, S tokens of one frame, L text tokens, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.utils.checkpoint import CheckpointPolicy as TorchPolicy
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from dreamgen.models.cosmos_predict25.velocity import BlockForward, block_forward

ATTENTION = (
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)

# What a block keeps for its backward pass. blocks: its input; attention: the attentions' outputs too; all: whatever
# the backward pass reads.
CheckpointPolicy = Literal["blocks", "attention", "all"]
LEVELS: tuple[CheckpointPolicy, ...] = get_args(CheckpointPolicy)


@dataclass(frozen=True)
class Activations:
    """What a step takes, as multiples of one activation (tokens x features in bfloat16).

    Args:
        blocks, attention, all: What a block of this level keeps.
        working: What comes and goes whatever is kept: one block's recomputation, the first and last layers.
    """

    blocks: float
    attention: float
    all: float
    working: float

    def kept(self, level: CheckpointPolicy) -> float:
        """Return what a block keeps."""
        return getattr(self, level)


# Measured on an H200 with benchmarks/finetune_step.py (2B) and finetune_blocks.py (14B at one and two layers, of which
# `blocks` is the difference: autograd alone keeps 1 there). DoRA's scaling of each layer's output is read, too.
_COMPILED = {"lora": Activations(2.0, 2.8, 24.0, 48.0), "dora": Activations(2.0, 2.8, 27.3, 64.0)}
# What a forward pass leaves behind, counted on a CPU (tests/finetune/test_estimate.py); at work, what the published
# step's peak on an H200 leaves for it.
_EAGER = {"lora": Activations(1.1, 3.2, 37.0, 80.0), "dora": Activations(1.1, 3.2, 49.0, 105.0)}


def step_activations(compiled: bool, use_dora: bool) -> Activations:
    """Return what a step takes; compiled, blocks compute norms, rotations and casts again instead of keeping them."""
    return (_COMPILED if compiled else _EAGER)["dora" if use_dora else "lora"]


def choose_policies(
    num_layers: int, activation_gib: float, fixed_gib: float, memory_gib: float, activations: Activations
) -> list[CheckpointPolicy]:
    """Choose for each block how much it keeps, so that the step fits the memory and recomputes as little as it can.

    Keeping the attentions' outputs buys the most time a byte, so all blocks do that before any keeps everything.

    Args:
        num_layers: Blocks of the transformer.
        activation_gib: One activation of the batch: tokens x features x 2 bytes.
        fixed_gib: Weights, adapter and optimizer.
        memory_gib: What the step may use.
        activations: That the step takes, from `step_activations`.

    Returns:
        One level a block; the least memory where even that does not fit.
    """
    room = (memory_gib - fixed_gib) / activation_gib - activations.working
    least = activations.attention
    if room < num_layers * least:
        return ["blocks"] * num_layers
    left = room - num_layers * least
    num_all = min(num_layers, int(left / (activations.all - least)))
    # The last blocks' activations are needed first in the backward pass, so they are held for the shortest time.
    return ["attention"] * (num_layers - num_all) + ["all"] * num_all


def training_blocks(levels: list[CheckpointPolicy], compiled: bool) -> list[BlockForward]:
    """Return each block's forward pass for training; blocks of one level share one compilation."""
    by_level = {level: training_block(level, compiled) for level in dict.fromkeys(levels)}
    return [by_level[level] for level in levels]


def training_block(level: CheckpointPolicy, compiled: bool) -> BlockForward:
    """Return a block's forward pass for `velocity` that keeps what `level` says."""
    run = block_forward if level == "all" else functools.partial(_checkpointed, level)
    return torch.compile(run, dynamic=False, fullgraph=True) if compiled else run


def _checkpointed(level: CheckpointPolicy, *arguments: object) -> torch.Tensor:
    options = {"context_fn": _keeping_attention} if level == "attention" else {}
    return checkpoint(block_forward, *arguments, use_reentrant=False, **options)


def _keeping_attention() -> tuple:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: object, operator: Callable, *_: object, **__: object) -> CheckpointPolicy:
    return TorchPolicy.MUST_SAVE if operator in ATTENTION else TorchPolicy.PREFER_RECOMPUTE
