"""The network of the inverse-dynamics model: its shape, its layers and its loss.

A pair of frames `gap` apart gives gap + 1 rows, one for each frame from the first to the last. The gap, 0 to
`horizon`, is an input.

Axes: N frames or pairs, K rows from the first frame of a pair to the second, H height, W width, C channels, F features,
P what the network predicts (dimensions that change, of actions and then states).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dreamgen.models.idm.vector_stats import VectorStats

STRIDE_PX = 16  # of the encoder; image_px is a multiple


@dataclass(frozen=True)
class IdmConfig:
    """Shape and training data of an inverse-dynamics model; `config.json`.

    Args:
        horizon: Largest gap in frames.
        image_px: Side of the square images.
        width: Hidden features.
        fps: Frame rate of the training clips.
        actions: Statistics of the demonstrations' actions.
        states: Statistics of their states; None for a model that predicts none.
        held_out: Errors on held-out episodes; see `finetune.inverse_dynamics`.
    """

    horizon: int
    image_px: int
    width: int
    fps: int
    actions: VectorStats
    states: VectorStats | None = None
    held_out: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IdmConfig:
        """Read the values of `asdict`; raises KeyError for a model without a held-out error."""
        float(values["held_out"]["action"]["mae"])
        vectors = {n: values[n] and VectorStats.from_dict(values[n]) for n in ("actions", "states")}
        return cls(**{**values, **vectors})

    def vectors(self) -> list[VectorStats]:
        """Return actions, then states if it predicts them: the order of the network's outputs."""
        return [self.actions] if self.states is None else [self.actions, self.states]

    def binary_outputs(self) -> np.ndarray:
        """Return which outputs of the network are binary, bool, shape (P,)."""
        return np.concatenate([vector.binary()[vector.moving()] for vector in self.vectors()])


class IdmNetwork(nn.Module):
    """A convolutional encoder of each frame, and an MLP on two frames' features, their difference and the gap."""

    def __init__(self, config: IdmConfig) -> None:
        super().__init__()
        self.num_rows, self.num_outputs = config.horizon + 1, len(config.binary_outputs())
        # Input: image, image minus background, x, y. Strides 4, 2, 2: on a CPU, most time is spent in the first layer.
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((8, 32, 6, 4), (32, 64, 3, 2), (64, 64, 3, 2)):
            layers += [nn.Conv2d(before, after, kernel, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        # Flattened and not pooled, as the position of the arm matters.
        layers += [nn.Conv2d(64, 32, 1), nn.Flatten()]
        layers += [nn.Linear(32 * (config.image_px // STRIDE_PX) ** 2, config.width), nn.SiLU()]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(3 * config.width + 1, config.width), nn.SiLU(),
            nn.Linear(config.width, config.width), nn.SiLU(),
            nn.Linear(config.width, self.num_rows * self.num_outputs),
        )  # fmt: skip

    def encode(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features_NF of images in -1..1, given their clip's background (its mean image)."""
        num, _, height, width = picture_NCHW.shape
        y = torch.linspace(-1, 1, height, device=picture_NCHW.device).view(1, 1, -1, 1).expand(num, 1, height, width)
        x = torch.linspace(-1, 1, width, device=picture_NCHW.device).view(1, 1, 1, -1).expand(num, 1, height, width)
        moved_NCHW = 2 * (picture_NCHW - background_NCHW)
        return self.encoder(torch.cat([picture_NCHW, moved_NCHW, y, x], dim=1))

    def rows(self, first_NF: torch.Tensor, last_NF: torch.Tensor, gap_N: torch.Tensor) -> torch.Tensor:
        """Return outputs_NKP for pairs; only rows 0 to gap of a pair are valid."""
        gap_N1 = gap_N.to(first_NF.dtype).unsqueeze(1) / max(1, self.num_rows - 1)
        pair = torch.cat([first_NF, last_NF, last_NF - first_NF, gap_N1], dim=1)
        return self.head(pair).view(-1, self.num_rows, self.num_outputs)


def to_unit(small_NCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float32 in -1..1."""
    return small_NCHW.to(torch.float32) / 127.5 - 1


def pair_loss(outputs_NKP: torch.Tensor, target_NKP: torch.Tensor, gap_N: torch.Tensor, votes_P: torch.Tensor):
    """Return the mean loss over the valid rows of each pair: smooth L1, and cross-entropy for binary outputs.

    Args:
        outputs_NKP: From `IdmNetwork.rows`.
        target_NKP: From `VectorStats.to_network`.
        gap_N: Gap of each pair in frames; later rows are ignored.
        votes_P: Which outputs are binary.
    """
    smooth_NKP = F.smooth_l1_loss(outputs_NKP, target_NKP, reduction="none")
    vote_NKP = F.binary_cross_entropy_with_logits(outputs_NKP, target_NKP, reduction="none")
    inside_NK = torch.arange(outputs_NKP.shape[1], device=gap_N.device) <= gap_N.unsqueeze(1)
    return torch.where(votes_P, vote_NKP, smooth_NKP)[inside_NK].mean()
