"""The exponential moving average of the trained parameters, by diffusers' `EMAModel`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def parameter_average(parameters: Iterable[torch.nn.Parameter], decay: float) -> EMAModel:
    """Begin the moving average of parameters, in float32.

    The decay of a step is min(decay, (1 + step) / (10 + step)), step 1 being the first, so that the untrained start is
    soon forgotten.

    Args:
        parameters: As they are before the first step.
        decay: Share of the average that a step keeps once training is under way.
    """
    from diffusers.training_utils import EMAModel  # a training without an average does without diffusers

    average = EMAModel(parameters, decay, update_after_step=-1, foreach=True)  # -1: the first step has a decay too
    average.to(dtype=torch.float32)
    return average


@contextmanager
def averaged(average: EMAModel, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Replace parameters by their average while the body runs, and restore them after it."""
    parameters = list(parameters)
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)
