"""Trainings that start from an adapter, or that fold guidance into one: checks, what is fixed, and the loss.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dreamgen.config.settings import Settings
from dreamgen.errors import Problems, UserError
from dreamgen.models.adapter_files import adapter_sha256, distilled_guidance, is_full
from dreamgen.models.trainable import Forward, Noise, TrainableWorldModel
from dreamgen.models.world_model import model_type
from finetune.inputs import StepInputs


def check_distillation(settings: Settings, problems: Problems) -> None:
    """Collect what is wrong with `finetune.init_adapter` and `finetune.distill_guidance`, without loading the model."""
    tune = settings.finetune
    given = {"init_adapter": tune.init_adapter, "distill_guidance": tune.distill_guidance}
    named = [f"finetune.{name}={value}" for name, value in given.items() if value is not None]
    if named and tune.method == "full":
        problems.add(
            f"{' and '.join(named)} needs a low-rank adapter", actual="finetune.method=full",
            allowed="finetune.method lora or dora",
        )  # fmt: skip
    if tune.init_adapter is None:
        return
    folder = Path(tune.init_adapter)
    with problems.collected():
        if is_full(folder):
            raise UserError(
                "finetune.init_adapter holds all weights of a transformer", actual=folder,
                allowed="a LoRA or DoRA adapter", next_step="train on that transformer: --model.path",
            )  # fmt: skip
        if (scale := distilled_guidance(folder)) is not None:
            raise UserError(
                "guidance is folded into finetune.init_adapter already", actual=f"{folder}, scale {scale:g}",
                allowed="an adapter that was trained on clips",
                next_step="name the adapter that this one was made from: README.md of its folder has it",
            )  # fmt: skip


def check_model(model: TrainableWorldModel, settings: Settings) -> None:
    """Refuse settings that the model does not know.

    Raises:
        UserError: if it cannot start from an adapter or distill guidance.
    """
    tune = settings.finetune
    if not model.can_distill and (tune.init_adapter is not None or tune.distill_guidance is not None):
        raise UserError(
            "this world model cannot start from an adapter or distill guidance",
            actual=f"finetune.init_adapter={tune.init_adapter}, finetune.distill_guidance={tune.distill_guidance}",
            allowed="neither of them",
        )


def teacher_prompt(settings: Settings) -> str | None:
    """Return the negative prompt of the guidance that is distilled, the one that `plan` would use; None: no teacher."""
    if settings.finetune.distill_guidance is None:
        return None
    default = model_type(settings.model).load_class().default_negative_prompt
    return default if settings.plan.negative_prompt is None else settings.plan.negative_prompt


def fixed_by_teacher(settings: Settings) -> dict[str, str]:
    """Return, by name and as text, what else determines the result of such a training."""
    tune = settings.finetune
    start = "none" if tune.init_adapter is None else adapter_sha256(Path(tune.init_adapter))
    fixed, negative = {"finetune.init_adapter": start}, teacher_prompt(settings)
    return fixed if negative is None else fixed | {"negative prompt of the guidance": negative}


def losses(
    model: TrainableWorldModel,
    forward: Forward,
    encoded_B: torch.Tensor,
    prompts: Sequence[str | None],
    noise: Noise,
    inputs: StepInputs,
) -> torch.Tensor:
    """Return the loss of each sample: against the clips, or against a guided teacher if there is one.

    Args:
        model, forward, encoded_B, noise: As `TrainableWorldModel.loss` takes them.
        prompts: One for each sample; None stands for zeros.
        inputs: Encoded prompts, and the teacher's negative one.

    Returns:
        loss_B, float32.
    """
    text_BLD = inputs.prompts(prompts)
    if inputs.negative is None:
        return model.loss(forward, encoded_B, text_BLD, noise)
    return model.distillation_loss(forward, encoded_B, text_BLD, inputs.prompts([inputs.negative]), noise)
