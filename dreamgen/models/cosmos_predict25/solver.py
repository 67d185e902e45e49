"""The scheduler's steps as a table of coefficients: no arithmetic on the host and no waiting between two steps.

UniPC is linear: the outputs of a step are weighted sums of the sample, the velocity and the scheduler's memory, with
weights that depend on the noise levels alone. They are found by letting diffusers' own scheduler step unit vectors on
the CPU, so that all its settings apply and no formula is duplicated. A step on the GPU is then one small product; the
scheduler's own step solves a linear system there and waits for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from diffusers import UniPCMultistepScheduler

from dreamgen.errors import UserError


@dataclass(frozen=True)
class StepTable:
    """Noise levels and weights of a sampling.

    Args:
        sigmas: Noise level of each step, 0-1.
        weights_SOI: float32, on the CPU; S steps, O outputs of a step (the next sample, then the new memory), I its
            inputs (the sample, the velocity, then the memory).
    """

    sigmas: tuple[float, ...]
    weights_SOI: torch.Tensor

    @property
    def num_steps(self) -> int:
        """Denoising steps."""
        return len(self.sigmas)

    @property
    def num_kept(self) -> int:
        """Number of tensors of the sample's size that a step passes to the next one."""
        return self.weights_SOI.shape[1] - 1


def step_table(scheduler: UniPCMultistepScheduler, num_steps: int) -> StepTable:
    """Read the weights of every step from a scheduler.

    Args:
        scheduler: Of the world model; it is not changed.
        num_steps: Denoising steps.

    Returns:
        The table.

    Raises:
        UserError: if the model's scheduler does not predict a flow.
    """
    config = scheduler.config
    if config["prediction_type"] != "flow_prediction" or config["thresholding"]:
        raise UserError(
            "the model's scheduler cannot be stepped",
            actual=f"{type(scheduler).__name__}, prediction_type {config['prediction_type']}",
            allowed="UniPCMultistepScheduler with prediction_type flow_prediction, as Cosmos Predict 2.5 has it",
            next_step="correct scheduler/scheduler_config.json in the model's folder",
        )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device="cpu")
    order = config["solver_order"]
    # A step reads the sample, the velocity, the corrected sample of the step before, and the last `order` predictions.
    units_II = torch.eye(3 + order, dtype=torch.float64)
    sample_1I, velocity_1I, corrected_1I, *predictions = (unit[None] for unit in units_II)
    rows = []
    for index, timestep in enumerate(scheduler.timesteps):
        # Each step starts from unit vectors again: its row holds its weights, independent of earlier steps.
        scheduler.last_sample = corrected_1I if index else None
        scheduler.model_outputs = list(predictions)
        following_1I = scheduler.step(velocity_1I, timestep, sample_1I, return_dict=False)[0]
        outputs = [x for x in (following_1I, scheduler.last_sample, *scheduler.model_outputs) if x is not None]
        assert len(outputs) == 2 + order, "a step leaves its sample and all predictions"
        rows.append(torch.cat(outputs))
    sigmas = tuple(float(sigma) for sigma in scheduler.sigmas[:num_steps])
    return StepTable(sigmas, torch.stack(rows).float())


class Stepper:
    """Steps one clip's sample through a table.

    Args:
        table: Of the sampling.
        sample: Initial noise, float32, of any shape.
    """

    def __init__(self, table: StepTable, sample: torch.Tensor) -> None:
        self._weights_SOI = table.weights_SOI.to(sample.device)
        self._kept = torch.zeros(table.num_kept, *sample.shape, dtype=sample.dtype, device=sample.device)
        self.sample = sample

    def step(self, index: int, velocity: torch.Tensor) -> None:
        """Advance `sample` by step `index`.

        Args:
            index: 0, 1, 2, ... in order.
            velocity: At the sample, of its shape, float32.
        """
        inputs = torch.cat([self.sample[None], velocity[None], self._kept])
        outputs = torch.tensordot(self._weights_SOI[index], inputs, dims=1)
        self.sample, self._kept = outputs[0], outputs[1:]
