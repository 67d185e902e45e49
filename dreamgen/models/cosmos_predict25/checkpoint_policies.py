"""What the transformer's blocks keep for the backward pass, chosen by the memory that there is.

Estimates before a training need this and no library, so it imports none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
