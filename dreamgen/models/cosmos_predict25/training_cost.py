"""What training takes, from the transformer's size: operations, cache, and memory with the best checkpointing."""

from __future__ import annotations

import math

from dreamgen.config.settings import Settings
from dreamgen.models import devices
from dreamgen.models.cosmos_predict25.checkpoint_policies import CheckpointPolicy, choose_policies
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, latent_shape
from dreamgen.models.cosmos_predict25.training_memory import (
    GIB,
    activation_gib,
    activations_of,
    check_fits,
    estimate_memory,
    fixed_gib,
    number_bytes,
)
from dreamgen.models.cosmos_predict25.transformer_size import TransformerSize, training_flops
from dreamgen.models.trainable import TrainingCost

USABLE_SHARE = 0.92  # of a GPU's memory: the rest goes to the driver and to fragmentation


class CosmosTrainingCost(TrainingCost):
    """What training a transformer of some size takes.

    Args:
        size: Of the transformer.
        settings: Of the run.
    """

    def __init__(self, size: TransformerSize, settings: Settings) -> None:
        self._size, self._settings, video = size, settings, settings.video
        self.window_flops = training_flops(size, video, settings.finetune)
        shape_CTHW = latent_shape(video.num_frames, video.height, video.width)
        self.window_bytes = number_bytes(settings) * math.prod(shape_CTHW)
        self.prompt_bytes = number_bytes(settings) * NUM_TEXT_TOKENS * size.text_features

    def describe_memory(self) -> tuple[float, str]:
        policies = policies_for(self._size, self._settings, self._settings.finetune.compile)
        estimate = estimate_memory(self._size, self._settings, policies, self._settings.finetune.compile)
        kept = ", ".join(f"{policy} in {policies.count(policy)}" for policy in dict.fromkeys(policies))
        return estimate.peak, f"about {estimate}; blocks keep: {kept}"

    def check_fits(self, memory_gib: float, gpu_name: str) -> None:
        check_fits(self._size, self._settings, memory_gib, gpu_name)


def policies_for(size: TransformerSize, settings: Settings, compiled: bool) -> list[CheckpointPolicy]:
    """Choose each block's checkpoint policy within `finetune.memory_gib` and the memory of this machine's GPU.

    Args:
        size: Of the transformer.
        settings: Of the run.
        compiled: Whether the blocks are compiled; otherwise they keep more activations.
    """
    gpu, memory_gib = devices.this_gpu(settings), settings.finetune.memory_gib
    if gpu is not None:
        memory_gib = min(memory_gib, USABLE_SHARE * gpu.total_memory / GIB)
    fixed, activations = sum(fixed_gib(size, settings)), activations_of(settings, compiled)
    return choose_policies(size.num_layers, activation_gib(size, settings), fixed, memory_gib, activations)
