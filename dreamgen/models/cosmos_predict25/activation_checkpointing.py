"""Activation checkpointing of the transformer's blocks, and their compilation.

Axes: B batch, T latent frames, S tokens of one frame, L text tokens, D features.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

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

# What a block keeps for its backward pass. blocks: its input only; attention: also the outputs of attention; all:
# everything that the backward pass reads.
CheckpointPolicy = Literal["blocks", "attention", "all"]
POLICIES: tuple[CheckpointPolicy, ...] = get_args(CheckpointPolicy)
_BLOCKS: list[CheckpointPolicy] = ["blocks"]
_ATTENTION: list[CheckpointPolicy] = ["attention"]
_ALL: list[CheckpointPolicy] = ["all"]


@dataclass(frozen=True)
class Activations:
    """Memory of a step, as multiples of one activation (tokens x features in bfloat16).

    Args:
        blocks, attention, all: What a block with this policy keeps.
        working: Temporary memory: one block's recomputation, the first and last layers.
    """

    blocks: float
    attention: float
    all: float
    working: float

    def kept(self, policy: CheckpointPolicy) -> float:
        """Return what a block keeps."""
        return getattr(self, policy)


# Measured on an H200 with benchmarks/finetune_step.py (2B) and finetune_blocks.py (14B at one and two layers, of which
# `blocks` is the difference: autograd alone keeps 1 there). DoRA also keeps each layer's output for its scaling.
_COMPILED = {"lora": Activations(2.0, 2.8, 24.0, 48.0), "dora": Activations(2.0, 2.8, 27.3, 64.0)}
# What a forward pass keeps alive, counted on a CPU (tests/finetune/test_estimate.py); `working` is what remains of the
# published step's peak on an H200.
_EAGER = {"lora": Activations(1.1, 3.2, 37.0, 80.0), "dora": Activations(1.1, 3.2, 49.0, 105.0)}


def step_activations(compiled: bool, use_dora: bool) -> Activations:
    """Return the activations of a step; compiled blocks recompute norms and casts instead of keeping them."""
    return (_COMPILED if compiled else _EAGER)["dora" if use_dora else "lora"]


def choose_policies(
    num_layers: int, activation_gib: float, fixed_gib: float, memory_gib: float, activations: Activations
) -> list[CheckpointPolicy]:
    """Choose each block's policy, so that the step fits into memory and recomputes as little as possible.

    Keeping the outputs of attention saves the most time for each byte, so all blocks do that before any keeps all.

    Args:
        num_layers: Blocks of the transformer.
        activation_gib: One activation of the batch: tokens x features x 2 bytes.
        fixed_gib: Weights, adapter and optimizer.
        memory_gib: Memory that the step may use.
        activations: From `step_activations`.

    Returns:
        One policy for each block; the one with the least memory if nothing fits.
    """
    room = (memory_gib - fixed_gib) / activation_gib - activations.working
    least = activations.attention
    if room < num_layers * least:
        return num_layers * _BLOCKS
    left = room - num_layers * least
    num_all = min(num_layers, int(left / (activations.all - least)))
    # The backward pass needs the activations of the last blocks first, so they are held for the shortest time.
    return (num_layers - num_all) * _ATTENTION + num_all * _ALL


def training_blocks(policies: list[CheckpointPolicy], compiled: bool, cuda_graphs: bool = False) -> list[BlockForward]:
    """Return each block's forward pass for training; blocks with the same policy share one compilation.

    Args:
        policies: One for each block.
        compiled: Whether to compile them.
        cuda_graphs: Whether compiled blocks are replayed as CUDA graphs where gradients are computed. Gradients must
            then be read before the next forward pass.
    """
    make = graphed_block if compiled and cuda_graphs else functools.partial(training_block, compiled=compiled)
    by_policy = {policy: make(policy) for policy in dict.fromkeys(policies)}
    return [by_policy[policy] for policy in policies]


def graphed_block(policy: CheckpointPolicy) -> BlockForward:
    """Return a compiled block's forward pass, which is replayed as a CUDA graph where gradients are computed.

    Without gradients, torch reuses the memory of a graph's output at the next call of the same function. That is the
    next block's here, so such a pass is compiled without graphs.
    """
    graphed = training_block(policy, compiled=True, mode="reduce-overhead")
    plain = training_block(policy, compiled=True)

    def run(*arguments: Any) -> torch.Tensor:
        return (graphed if torch.is_grad_enabled() else plain)(*arguments)

    return run


def training_block(policy: CheckpointPolicy, compiled: bool, mode: str | None = None) -> BlockForward:
    """Return a block's forward pass for `velocity` with a checkpoint policy, compiled in a mode of `torch.compile`."""
    run = block_forward if policy == "all" else functools.partial(_checkpointed, policy)
    if compiled:
        # torch warns about in-place operations in a checkpointed region, whether there are any or not. There are none.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    return torch.compile(run, dynamic=False, fullgraph=True, mode=mode) if compiled else run


def _checkpointed(policy: CheckpointPolicy, *arguments: object) -> torch.Tensor:
    options: dict[str, Any] = {"context_fn": _keeping_attention} if policy == "attention" else {}
    hidden_BTSD = checkpoint(block_forward, *arguments, use_reentrant=False, **options)
    assert isinstance(hidden_BTSD, torch.Tensor)
    return hidden_BTSD


def _keeping_attention() -> tuple:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: object, operator: Callable, *_: object, **__: object) -> TorchPolicy:
    return TorchPolicy.MUST_SAVE if operator in ATTENTION else TorchPolicy.PREFER_RECOMPUTE
