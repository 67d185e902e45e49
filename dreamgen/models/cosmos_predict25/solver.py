"""The scheduler's steps as one table of coefficients: no arithmetic on the host and no waiting between two steps.

UniPC is linear. What a step makes of the sample, the velocity and its memory are fixed weighted sums, whose weights
depend on the noise levels alone. They are read off diffusers' own scheduler, by letting it step unit vectors on the
CPU, so that every setting of it is followed and no formula is written down twice. A step on the GPU is then one
small product; the scheduler's own step solves a linear system there and waits for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from diffusers import UniPCMultistepScheduler

from dreamgen.errors import UserError


@dataclass(frozen=True)
class StepTable:
    """A sampling's noise levels and weights.

    Args:
        sigmas: Share of noise at each step, 0-1; one a step.
        weights_SOI: float32, on the CPU; S steps, O what a step makes (the next sample, then its new memory), I what
            it makes them of (the sample, the velocity, then its memory).
    """

    sigmas: tuple[float, ...]
    weights_SOI: torch.Tensor

    @property
    def num_steps(self) -> int:
        """Denoising steps."""
        return len(self.sigmas)

    @property
    def num_kept(self) -> int:
        """Tensors of the sample's size that a step hands to the next one."""
        return self.weights_SOI.shape[1] - 1


def step_table(scheduler: UniPCMultistepScheduler, num_steps: int) -> StepTable:
    """Read the weights of every step off a scheduler.

    Args:
        scheduler: As the world model was saved with; it is left as it is.
        num_steps: Denoising steps.

    Returns:
        The table.

    Raises:
        UserError: if the model comes with a scheduler that does not step along a flow.
    """
    if scheduler.config.prediction_type != "flow_prediction" or scheduler.config.thresholding:
        raise UserError(
            "the model's scheduler cannot be stepped",
            actual=f"{type(scheduler).__name__}, prediction_type {scheduler.config.prediction_type}",
            allowed="UniPCMultistepScheduler with prediction_type flow_prediction, as Cosmos Predict 2.5 has it",
            next_step="mend scheduler/scheduler_config.json in the model's folder",
        )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device="cpu")
    order = scheduler.config.solver_order
    # A step reads the sample, the velocity, the corrected sample of the step before, and the last `order` predictions.
    units_II = torch.eye(3 + order, dtype=torch.float64)
    sample_1I, velocity_1I, corrected_1I, *predictions = (unit[None] for unit in units_II)
    rows = []
    for index, timestep in enumerate(scheduler.timesteps):
        # Each step meets unit vectors anew: its row says what it makes of what it is given, whatever came before.
        scheduler.last_sample = corrected_1I if index else None
        scheduler.model_outputs = list(predictions)
        following_1I = scheduler.step(velocity_1I, timestep, sample_1I, return_dict=False)[0]
        rows.append(torch.cat([following_1I, scheduler.last_sample, *scheduler.model_outputs]))
    sigmas = tuple(float(sigma) for sigma in scheduler.sigmas[:num_steps])
    return StepTable(sigmas, torch.stack(rows).float())


class Stepper:
    """Carries one clip's sample through a table; tensors are made at the first step and then reused in turn.

    Args:
        table: Of the sampling.
        sample: What it starts from, float32, of any shape.
    """

    def __init__(self, table: StepTable, sample: torch.Tensor) -> None:
        self._weights_SOI = table.weights_SOI.to(sample.device)
        self._kept = torch.zeros(table.num_kept, *sample.shape, dtype=sample.dtype, device=sample.device)
        self.sample = sample

    def step(self, index: int, velocity: torch.Tensor) -> None:
        """Move `sample` on by step `index`.

        Args:
            index: 0, 1, 2, ... in turn.
            velocity: At the sample, of its shape, float32.
        """
        given = torch.cat([self.sample[None], velocity[None], self._kept])
        made = torch.tensordot(self._weights_SOI[index], given, dims=1)
        self.sample, self._kept = made[0], made[1:]
