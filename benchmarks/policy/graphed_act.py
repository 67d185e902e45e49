"""Training steps of ACT as CUDA graphs: launching the kernels of so small a model takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

IMAGES = "observation.images"
INPUTS = ("observation.state", "action", "action_is_pad")


class PositionalInputs(nn.Module):
    """The model with its inputs as positional tensors, as graphs take them.

    Args:
        model: Of an `ACTPolicy`.
        forward: Its forward pass.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return actions, mean and logarithm of the variance of the latent."""
        batch: dict[str, Any] = dict(zip(INPUTS, tensors, strict=False))
        actions, (mean, log_variance) = self._forward({**batch, IMAGES: list(tensors[len(INPUTS) :])})
        return actions, mean, log_variance


class GraphedForward:
    """The forward pass of the model, replayed as CUDA graphs in training for batches of the first one's size.

    Args:
        model: Of an `ACTPolicy`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._eager = model, model.forward
        self._graphed: Callable[..., Any] | None = None
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: dict[str, Any]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Return actions, and mean and logarithm of the variance of the latent."""
        if not self._model.training:
            return self._eager(batch)
        tensors = tuple(batch[name] for name in INPUTS) + tuple(batch[IMAGES])
        shapes = [tensor.shape for tensor in tensors]
        if self._graphed is None:
            samples, module = tuple(tensor.clone() for tensor in tensors), PositionalInputs(self._model, self._eager)
            self._graphed = torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True)
            self._shapes = shapes
        if shapes != self._shapes:
            return self._eager(batch)
        actions, mean, log_variance = self._graphed(*tensors)
        return actions, (mean, log_variance)


def replay_as_graphs(policy: Any) -> None:
    """Let the forward and backward pass of training steps be replayed as CUDA graphs.

    The next step overwrites what a step returns, so its loss must be used, and its gradients applied, before.

    Args:
        policy: An `ACTPolicy` with a VAE on a GPU, in full precision, changed in place; smaller batches and evaluation
            run as before.
    """
    policy.model.forward = GraphedForward(policy.model)
