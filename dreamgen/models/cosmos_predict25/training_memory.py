"""The memory that a training needs, computed from the transformer's configuration before anything is loaded.

Weights and optimizer are counted exactly. Activations are counted in units of one (tokens x features);
`activation_checkpointing` has the number that a block keeps and that a step works with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.checkpoint_policies import Activations, CheckpointPolicy, step_activations
from dreamgen.models.cosmos_predict25.transformer_size import TransformerSize, num_adapter_parameters, num_rows

GIB = 2**30
ADAM_BYTES = 16  # a trained weight in float32, its gradient and AdamW's two moments
LEAST: CheckpointPolicy = "blocks"


@dataclass(frozen=True)
class MemoryEstimate:
    """Parts of the peak of one GPU, in GiB.

    Args:
        weights: Frozen weights of the transformer; if all are trained, their copies in the model's dtype.
        trained: The adapter, or all weights, with gradients, optimizer state, moving average, and a distillation's
            frozen copy of the adapter.
        kept: Activations that the blocks keep from the forward to the backward pass.
        working: Temporary activations: a block's recomputation and backward pass, the first and last layers.
    """

    weights: float
    trained: float
    kept: float
    working: float

    @property
    def peak(self) -> float:
        """Return the sum."""
        return self.weights + self.trained + self.kept + self.working

    def __str__(self) -> str:
        return (
            f"{self.peak:.1f} GiB = weights {self.weights:.1f} + trained weights with optimizer "
            f"{self.trained:.1f} + kept activations {self.kept:.1f} + one active block {self.working:.1f}"
        )


def activation_gib(size: TransformerSize, settings: Settings) -> float:
    """Return one activation of a batch in GiB: tokens x features in the model's dtype."""
    num_tokens = settings.finetune.batch_size * num_rows(size, settings.video)["tokens"]
    return num_tokens * size.num_features * number_bytes(settings) / GIB


def fixed_gib(size: TransformerSize, settings: Settings) -> tuple[float, float]:
    """Return the GiB of the frozen weights, and of the trained ones with their optimizer state."""
    tune = settings.finetune
    if tune.method == "full":
        # Besides the float32 weights there are autocast's bfloat16 copies of them.
        copied = size.num_parameters if settings.model.dtype == "bfloat16" else size.num_projection_parameters
        frozen, num_trained = (
            copied * number_bytes(settings),
            size.num_parameters - size.num_projection_parameters,
        )
    else:
        frozen = size.num_parameters * number_bytes(settings)
        num_trained = num_adapter_parameters(size, tune.lora.rank, tune.lora.target_modules, tune.method == "dora")
    copies = (tune.ema_decay is not None) + (tune.distill_guidance is not None and tune.init_adapter is not None)
    return frozen / GIB, num_trained * (ADAM_BYTES + 4 * copies) / GIB


def activations_of(settings: Settings, compiled: bool) -> Activations:
    """Return the activations of a step with these settings."""
    return step_activations(compiled, settings.finetune.method == "dora")


def estimate_memory(
    size: TransformerSize, settings: Settings, policies: Sequence[CheckpointPolicy], compiled: bool
) -> MemoryEstimate:
    """Estimate a training step's peak on one GPU.

    Args:
        size: Of the transformer.
        settings: Video, batch, method and precision.
        policies: What each block keeps.
        compiled: Whether the blocks are compiled; otherwise they keep more.
    """
    weights, trained = fixed_gib(size, settings)
    unit, activations = activation_gib(size, settings), activations_of(settings, compiled)
    kept = sum(activations.kept(policy) for policy in policies) * unit
    return MemoryEstimate(weights, trained, kept, activations.working * unit)


def check_fits(size: TransformerSize, settings: Settings, memory_gib: float, gpu_name: str) -> None:
    """Refuse a training that does not fit on a GPU even if its blocks keep the least.

    Args:
        size: Of the transformer.
        settings: Of the run.
        memory_gib: Memory of the GPU.
        gpu_name: Its name.

    Raises:
        UserError: with the estimate, and what to change.
    """
    policies: list[CheckpointPolicy] = [LEAST] * size.num_layers
    least = estimate_memory(size, settings, policies, settings.finetune.compile)
    if least.peak <= memory_gib:
        return
    raise UserError(
        f"this training does not fit on {gpu_name}: {size.num_parameters / 1e9:.1f} billion weights, "
        f"{num_rows(size, settings.video)['tokens']:,} tokens a window, {settings.finetune.batch_size} a step",
        actual=f"at least {least}",
        allowed=f"{memory_gib:.1f} GiB",
        next_step=_what_to_change(size, settings, memory_gib),
    )


def _what_to_change(size: TransformerSize, settings: Settings, memory_gib: float) -> str:
    weights, trained = fixed_gib(size, settings)
    if settings.finetune.method == "full":
        return f"train an adapter, --method=lora: with all weights the optimizer alone takes {trained:.0f} GiB"
    if weights + trained > memory_gib:
        return "choose a smaller model, or a GPU with more memory: the weights alone do not fit"
    unit, num_tokens = activation_gib(size, settings), num_rows(size, settings.video)["tokens"]
    activations = activations_of(settings, settings.finetune.compile)
    needed = unit * (size.num_layers * activations.kept(LEAST) + activations.working)
    batch_size = settings.finetune.batch_size
    fitting = int(num_tokens * batch_size * (memory_gib - weights - trained) / needed)
    smaller = "--batch_size=1, " if batch_size > 1 else ""
    return f"{smaller}a smaller --video.height and --video.width, or fewer --video.num_frames: {fitting:,} tokens fit"


def number_bytes(settings: Settings) -> int:
    """Return the bytes of one number in the model's dtype."""
    return 2 if settings.model.dtype == "bfloat16" else 4
