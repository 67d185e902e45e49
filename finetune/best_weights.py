"""The weights with the lowest held-out loss so far, which are part of each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class BestWeights:
    """The weights of the step whose held-out loss is the lowest.

    Attributes:
        step: Optimizer steps done; 0 before anything was kept.
        loss: Geometric mean of its losses over the noise levels; None before anything was kept.
        tensors: Parameter's name -> its value, in the RAM of the main process.
    """

    def __init__(self) -> None:
        self.step = 0
        self.loss: float | None = None
        self.tensors: dict[str, torch.Tensor] = {}

    def add(self, step: int, measured: Mapping[float, float]) -> bool:
        """Compare the losses of a step with the lowest so far.

        Those before the first step do not count: an adapter that changes nothing is of no use.

        Args:
            step: Optimizer steps done.
            measured: Noise level -> held-out loss.

        Returns:
            Whether it is the best, so that its weights should be kept.
        """
        loss = mean_of_levels(measured)
        is_best = step > 0 and loss < (math.inf if self.loss is None else self.loss)  # nan is not
        if is_best:
            self.step, self.loss = step, loss
        return is_best

    def keep(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Copy the weights of the best step, as they were measured, in the process that will write them."""
        if not self.tensors:
            self.tensors = {name: torch.empty_like(value, device="cpu") for name, value in parameters.items()}
        _copy(parameters, self.tensors)

    def restore(self, step: int, loss: float | None, tensors: dict[str, torch.Tensor]) -> None:
        """Set what was kept, as a checkpoint has it."""
        self.step, self.loss, self.tensors = step, loss, tensors

    @contextmanager
    def in_place_of(self, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Replace parameters by the best ones while the body runs, and restore them after it."""
        values = {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()}
        _copy(self.tensors, parameters)
        try:
            yield
        finally:
            _copy(values, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, torch.Tensor], to: Mapping[str, torch.Tensor]) -> None:
    for name, target in to.items():
        target.copy_(values[name])


def mean_of_levels(measured: Mapping[float, float]) -> float:
    """Return the geometric mean of the losses of all noise levels: low levels have several times the loss of high ones.

    Args:
        measured: Noise level -> loss.

    Returns:
        The mean; nan if a loss is nan or not above 0.
    """
    if not all(loss > 0 for loss in measured.values()):
        return math.nan
    return math.exp(sum(map(math.log, measured.values())) / len(measured))
