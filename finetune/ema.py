"""A moving average of the adapter's parameters over the optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class ParameterAverage:
    """The exponential moving average of named parameters, in float32, on their own device.

    Args:
        parameters: By name, as they are before the first step.
        decay: Share of the average that a step keeps, once the first steps are over.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self._averages = [parameter.detach().float().clone() for parameter in self._parameters.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after an optimizer step.

        Args:
            step: 1 for the first.
        """
        current = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(self._averages, current, 1 - ramped_decay(step, self._decay))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the parameters while the body runs, and the trained values back after it."""
        trained = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._fill(self._averages)
        try:
            yield
        finally:
            self._fill(trained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages by their parameters' names."""
        return dict(zip(self._parameters, self._averages, strict=True))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from averages that `tensors` returned; the names must be the same."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            parameter.copy_(value)


def ramped_decay(step: int, decay: float) -> float:
    """Return min(decay, (1 + step) / (10 + step)), so that the untrained start is soon forgotten.

    The ramp is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.

    Args:
        step: 1 for the first.
        decay: The limit.
    """
    return min(decay, (1 + step) / (10 + step))
