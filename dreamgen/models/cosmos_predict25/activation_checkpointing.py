"""Activation checkpointing of the transformer's blocks, and their compilation.

Axes: B batch, T latent frames, S tokens of one frame, L text tokens, D features.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy as TorchPolicy
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from dreamgen.models.cosmos_predict25.checkpoint_policies import CheckpointPolicy
from dreamgen.models.cosmos_predict25.velocity import BlockForward, block_forward

ATTENTION = (
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


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
