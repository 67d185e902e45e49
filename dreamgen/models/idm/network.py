"""The network of the inverse-dynamics model: its shape, its layers and its loss.

An encoder turns each frame into features; a transformer reads the features of a window of consecutive frames and
predicts a row for each of them. So a row knows what came before its frame and what follows.

Axes: N frames, B windows, K frames of a window, V cameras, H height, W width, C channels, F features, P what the
network predicts (of actions and then states).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dreamgen.models.idm.pretrained import PretrainedEncoder
from dreamgen.models.idm.vector_stats import VectorStats

STRIDE_PX = 16  # of the encoder; image_px is a multiple
FORMAT = 3  # of config.json; 1 predicted from pairs of frames, 2 had no linear reading
MASK_AT, MASK_WIDTH = 0.15, 0.03  # difference from the background, of -1..1, at which a pixel is half foreground
NUM_LAYERS, NUM_HEADS, DROPOUT = 2, 4, 0.1
WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)  # one camera: top, left, height, width as shares


@dataclass(frozen=True)
class IdmConfig:
    """Shape and training data of an inverse-dynamics model; `config.json`.

    Args:
        horizon: Frames of a window.
        image_px: Side of the square images.
        width: Hidden features.
        num_models: Networks whose mean is the prediction.
        fps: Frame rate of the training clips.
        actions: Statistics of the demonstrations' actions.
        states: Statistics of their states; None for a model that predicts none.
        views: Where each camera is in the frame, as shares: top, left, height, width.
        encoder: Configuration of a pretrained encoder; None for the one that is trained from scratch.
        next_state: From `dreamgen.models.idm.next_state.fit_next_state`; None without states.
        followed: Names of actions that the states of the same names follow; see `first_state.followed_names`.
        network_share: Of the prediction; the rest is that of the linear reading (see `linear`). 1: there is none.
        uncertainty_scale: By which the spread of the predictions is multiplied, so that its root mean square is the
            error on held-out episodes.
        held_out: Errors on held-out episodes; see `finetune.idm_errors`.
        format: `FORMAT`.
    """

    horizon: int
    image_px: int
    width: int
    num_models: int
    fps: int
    actions: VectorStats
    states: VectorStats | None = None
    views: tuple[tuple[float, float, float, float], ...] = (WHOLE_FRAME,)
    encoder: dict[str, Any] | None = None
    next_state: tuple[tuple[float, ...], ...] | None = None
    followed: tuple[str, ...] = ()
    network_share: float = 1.0
    uncertainty_scale: float = 1.0
    held_out: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IdmConfig:
        """Read the values of `asdict`.

        Raises:
            ValueError: for another format.
            KeyError: for a model without a held-out error, or without another value.
        """
        if values.get("format") != FORMAT:
            raise ValueError(
                f"its format is {values.get('format', 1)}, of another version of DreamGen; this one reads {FORMAT}"
            )
        float(values["held_out"]["action"]["mae"])
        vectors = {n: values[n] and VectorStats.from_dict(values[n]) for n in ("actions", "states")}
        plain = {"views": tuple(tuple(view) for view in values["views"]), "followed": tuple(values["followed"])}
        return cls(**{**values, **vectors, **plain})

    def vectors(self) -> list[VectorStats]:
        """Return actions, then states if it predicts them: the order of the network's outputs."""
        return [self.actions] if self.states is None else [self.actions, self.states]

    def binary_outputs(self) -> np.ndarray:
        """Return which outputs of the network are binary, bool, shape (P,)."""
        return np.concatenate([vector.binary_outputs() for vector in self.vectors()])


class FrameEncoder(nn.Module):
    """A convolutional encoder, trained from scratch.

    Args:
        image_px: Side of the square images.
        width: Features of a frame.
    """

    def __init__(self, image_px: int, width: int) -> None:
        super().__init__()
        # Input: image, image minus background, foreground, x, y. Strides 4, 2, 2: on a CPU, most time is spent in the
        # first layer.
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((9, 32, 6, 4), (32, 64, 3, 2), (64, 64, 3, 2)):
            layers += [nn.Conv2d(before, after, kernel, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        # Flattened and not pooled, as the position of the arm matters.
        layers += [nn.Conv2d(64, 32, 1), nn.Flatten()]
        layers += [nn.Dropout(DROPOUT), nn.Linear(32 * (image_px // STRIDE_PX) ** 2, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features_NF of images in -1..1, given the background of their clip."""
        num, _, height, width = picture_NCHW.shape
        options = {"device": picture_NCHW.device, "dtype": picture_NCHW.dtype}
        y = torch.linspace(-1, 1, height, **options).view(1, 1, -1, 1).expand(num, 1, height, width)
        x = torch.linspace(-1, 1, width, **options).view(1, 1, 1, -1).expand(num, 1, height, width)
        moved_NCHW = picture_NCHW - background_NCHW
        parts = (picture_NCHW, 2 * moved_NCHW, 2 * foreground(moved_NCHW) - 1, y, x)
        return self.layers(torch.cat(parts, dim=1))


class IdmNetwork(nn.Module):
    """An encoder of each frame and camera, and a transformer over the frames of a window."""

    def __init__(self, config: IdmConfig) -> None:
        super().__init__()
        width, num_outputs = config.width, len(config.binary_outputs())
        self.num_views, self.horizon = len(config.views), config.horizon
        self.encoder = (
            FrameEncoder(config.image_px, width) if config.encoder is None else PretrainedEncoder(config.encoder, width)
        )
        self.join = nn.Linear(self.num_views * width, width) if self.num_views > 1 else nn.Identity()
        self.positions = nn.Parameter(0.02 * torch.randn(config.horizon, width))
        layer = nn.TransformerEncoderLayer(
            width, NUM_HEADS, 2 * width, DROPOUT, F.gelu, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, NUM_LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, num_outputs)

    def encode(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features_NF of images in -1..1; C holds the three colors of one camera after the other."""
        num, _, height, width = picture_NCHW.shape
        shape = (num * self.num_views, 3, height, width)
        features_MF = self.encoder(picture_NCHW.reshape(shape), background_NCHW.reshape(shape))
        return self.join(features_MF.reshape(num, -1))

    def rows(self, features_BKF: torch.Tensor) -> torch.Tensor:
        """Return outputs_BKP of windows of at most `horizon` frames: logits where an output is binary."""
        return self.output(self.transformer(features_BKF + self.positions[: features_BKF.shape[1]]))

    def forward(self, picture_BKCHW: torch.Tensor, background_BCHW: torch.Tensor) -> torch.Tensor:
        """Return outputs_BKP of windows of images in -1..1."""
        num_frames = picture_BKCHW.shape[1]
        features_NF = self.encode(picture_BKCHW.flatten(0, 1), background_BCHW.repeat_interleave(num_frames, dim=0))
        return self.rows(features_NF.unflatten(0, (-1, num_frames)))


def foreground(moved_NCHW: torch.Tensor) -> torch.Tensor:
    """Return how much each pixel is foreground, 0 to 1, one channel, from image minus background in -2..2."""
    return torch.sigmoid((moved_NCHW.abs().amax(dim=1, keepdim=True) - MASK_AT) / MASK_WIDTH)


def to_unit(small_NCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float32 in -1..1."""
    return small_NCHW.to(torch.float32) / 127.5 - 1


def window_loss(outputs_BKP: torch.Tensor, target_BKP: torch.Tensor, binary_P: torch.Tensor) -> torch.Tensor:
    """Return the mean loss: smooth L1, and cross-entropy for binary outputs.

    Args:
        outputs_BKP: From `IdmNetwork.rows`.
        target_BKP: From `VectorStats.to_network`.
        binary_P: Which outputs are binary.
    """
    smooth_BKP = F.smooth_l1_loss(outputs_BKP, target_BKP, reduction="none")
    vote_BKP = F.binary_cross_entropy_with_logits(outputs_BKP, target_BKP.clamp(0, 1), reduction="none")
    return torch.where(binary_P, vote_BKP, smooth_BKP).mean()
