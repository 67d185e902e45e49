"""What `dreamgen finetune` needs of a world model that can be trained.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features. An encoded window is whatever the model
trains on, such as latents; it is cached on disk and only its first axis, the batch, means anything to the trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

Forward = Callable[..., torch.Tensor]


class Noise(Protocol):
    """The random choices of a batch: a NamedTuple of CPU tensors, so that the data loader moves them."""

    @property
    def drop_text(self) -> list[bool]:
        """For each sample, whether it is trained without its prompt."""
        ...


class TrainingCost(ABC):
    """What training on one window takes, from the model's configuration alone.

    Args:
        window_flops: Floating-point operations of one window, forward and backward.
        window_bytes: Of a cached window.
        prompt_bytes: Of a cached prompt.
    """

    window_flops: float
    window_bytes: int
    prompt_bytes: int

    @abstractmethod
    def describe_memory(self) -> tuple[float, str]:
        """Return the estimated peak memory of a GPU in GiB, and a sentence that says what it consists of."""

    @abstractmethod
    def check_fits(self, memory_gib: float, gpu_name: str) -> None:
        """Refuse a training that cannot fit into a GPU's memory.

        Raises:
            UserError: with the estimate and what to change.
        """


class TrainableWorldModel(ABC):
    """A world model on its device, ready to be trained.

    The trainer calls `encode_*` for what the cache lacks, then `make_trainable`, and for each batch `loss`, whose
    gradients reach the parameters of `network`.

    Attributes:
        network: Holds the trained parameters. Their names identify them in checkpoints.
        forward_module: The module that `loss` calls; accelerate wraps it. It contains `network`.
        noise_levels: At these, 0 to 1, the loss of held-out clips is measured.
        can_distill: Whether `finetune.init_adapter` and `finetune.distill_guidance` work: `make_trainable` starts from
            that adapter, and `distillation_loss` is implemented.
    """

    can_distill: ClassVar[bool] = False
    noise_levels: ClassVar[tuple[float, ...]] = (0.2, 0.5, 0.8, 0.95)
    network: torch.nn.Module
    forward_module: torch.nn.Module

    def load_encoders(self, text_encoder: bool) -> None:  # noqa: B027
        """Load the frozen encoders that `encode_windows` and, with `text_encoder`, `encode_prompt` need."""

    def unload_encoders(self) -> None:  # noqa: B027
        """Release the encoders and their memory."""

    @abstractmethod
    def encode_windows(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode windows of video, uint8 RGB 0-255, to what the cache holds. Returns one row a window."""

    @abstractmethod
    def encode_prompt(self, prompt: str | None) -> torch.Tensor:
        """Encode a prompt, or a dropped one (None). Returns text_1LD."""

    @abstractmethod
    def is_encoded_window(self, tensor: torch.Tensor) -> bool:
        """Return whether a cached tensor (without the batch axis) has the shape and type of a window."""

    @abstractmethod
    def is_encoded_prompt(self, tensor: torch.Tensor) -> bool:
        """Return whether a cached tensor has the shape and type of a prompt."""

    @abstractmethod
    def make_trainable(self) -> list[torch.nn.Parameter]:
        """Add the adapter, or unfreeze the weights, as `finetune.method` says. Sets `forward_module`.

        Returns:
            The trained parameters, in float32.
        """

    @abstractmethod
    def noise_sampler(self) -> Callable[[Sequence[int]], Noise]:
        """Return a picklable function from sample indices to a batch's noise; the same index gives the same noise."""

    @abstractmethod
    def validation_noise(self, seed: int, noise_level: float) -> Noise:
        """Return the noise of one held-out window at a noise level; the same arguments give the same noise."""

    @abstractmethod
    def loss(self, forward: Forward, encoded_B: torch.Tensor, text_BLD: torch.Tensor, noise: Any) -> torch.Tensor:
        """Return the training loss of each sample, loss_B in float32.

        Args:
            forward: `forward_module`, perhaps wrapped by accelerate or autocast; call it exactly once.
            encoded_B: Encoded windows on the device.
            text_BLD: Their prompts, on the device.
            noise: From `noise_sampler` or `validation_noise`.
        """

    def distillation_loss(
        self, forward: Forward, encoded_B: torch.Tensor, text_BLD: torch.Tensor, negative_1LD: torch.Tensor, noise: Any
    ) -> torch.Tensor:
        """Return the loss of each sample against the guided prediction of the model as it was, loss_B in float32.

        Args:
            forward, encoded_B, text_BLD, noise: As for `loss`.
            negative_1LD: The negative prompt of the guidance, on the device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no guidance to distill")

    @abstractmethod
    def sample(
        self,
        forward: Forward,
        encoded_B: torch.Tensor,
        prompt: str,
        text_BLD: torch.Tensor,
        seed: int,
        num_inference_steps: int,
    ) -> np.ndarray:
        """Generate a clip from the first frame of an encoded window (a batch of one) with the weights as they are.

        Returns:
            video_THWC, uint8, 0-255, RGB.

        Raises:
            Rejected: if the safety checker refuses the prompt or the clip.
        """

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Write the trained weights into an existing folder, as `dreamgen.models.adapter_files` describes."""

    def save_other_parts(self, folder: Path) -> None:  # noqa: B027
        """Complete a folder that holds the whole trained network, so that it is a model of its own."""

    @abstractmethod
    def load_adapter(self, weights: dict[str, torch.Tensor]) -> list[str]:
        """Set the trained weights from the tensors of the files that `save_adapter` wrote.

        Returns:
            Names that are missing or unexpected; empty if all fit.
        """
