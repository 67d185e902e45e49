"""Inverse dynamics: two frames of a clip -> the actions and states from the one to the other.

A pair of frames `gap` apart gives gap + 1 rows, both end frames included, so that the last frame has its own row too
and no tail is repeated. The gap is an input: 0 to `horizon`, so a clip of any length is covered by pairs that lie
within it. The rows of all pairs that cover a frame are averaged. A dimension that takes two values in the demos is a
vote between these two, and one that never changes keeps its value: neither can come out in between.

Axes: N frames or pairs, K rows from the first frame of a pair to the second, T frames of a clip, H height, W width,
C channels, A action, S state, D dimensions of one vector, P what the network predicts (dimensions that change).
A `video_THWC` is uint8, 0-255, RGB; `small_TCHW` is the same, squeezed to `image_px` squared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dreamgen.core.errors import UserError
from dreamgen.core.files import read_json, write_json

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
STRIDE_PX = 16  # of the encoder: image_px is a multiple of it
ENCODE_BATCH = 64  # frames at once; fixed, as it may change rounding


@dataclass(frozen=True)
class VectorStats:
    """What the training demos say of one vector, action or state, in the robot's units; one entry a dimension.

    Args:
        names: Of the dimensions.
        mean: Over all training rows.
        std: Likewise.
        low: Smallest value.
        high: Largest value.
        kinds: constant (one value), binary (two) or varied.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    kinds: tuple[str, ...]

    @classmethod
    def measure(cls, values_TD: np.ndarray, names: Sequence[str]) -> VectorStats:
        """Measure the rows of the training demos; names that are missing or too few become dim_0, dim_1, ..."""
        dim = values_TD.shape[1]
        named = tuple(names) if len(names) == dim else tuple(f"dim_{i}" for i in range(dim))
        counts = [len(np.unique(values_TD[:, i])) for i in range(dim)]
        kinds = tuple({1: "constant", 2: "binary"}.get(count, "varied") for count in counts)
        wide_TD = values_TD.astype(np.float64)
        measures = (wide_TD.mean(axis=0), wide_TD.std(axis=0), wide_TD.min(axis=0), wide_TD.max(axis=0))
        return cls(named, *(tuple(measure.tolist()) for measure in measures), kinds)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VectorStats:
        """Read what `asdict` and JSON made of one."""
        return cls(**{name: tuple(entries) for name, entries in values.items()})

    def moving(self) -> np.ndarray:
        """Return the indices of dimensions that are not constant: those that the network predicts."""
        return np.flatnonzero([kind != "constant" for kind in self.kinds])

    def to_network(self, values_TD: np.ndarray) -> np.ndarray:
        """Return targets_TP, float32: zero mean and unit spread for varied dimensions, 0 or 1 for binary ones."""
        chosen = self.moving()
        mean, std, low, high = (np.asarray(x)[chosen] for x in (self.mean, self.std, self.low, self.high))
        binary = self.binary()[chosen]
        values_TP = values_TD[:, chosen].astype(np.float64)
        middle = (low + high) / 2
        return np.where(binary, values_TP > middle, (values_TP - mean) / std).astype(np.float32)

    def from_network(self, outputs_TP: np.ndarray) -> np.ndarray:
        """Return values_TD in the robot's units, float32, from averaged outputs (binary ones as shares of votes)."""
        mean, std, low, high = (np.asarray(x) for x in (self.mean, self.std, self.low, self.high))
        values_TD = np.tile(low, (len(outputs_TP), 1))
        chosen = self.moving()
        varied_TP = outputs_TP * std[chosen] + mean[chosen]
        voted_TP = np.where(outputs_TP >= 0.5, high[chosen], low[chosen])
        values_TD[:, chosen] = np.where(self.binary()[chosen], voted_TP, varied_TP)
        return values_TD.astype(np.float32)

    def binary(self) -> np.ndarray:
        """Return which dimensions take two values, bool, one a dimension."""
        return np.array([kind == "binary" for kind in self.kinds])


@dataclass(frozen=True)
class IdmConfig:
    """The shape of an inverse-dynamics model and what it was trained on; `config.json`.

    Args:
        horizon: Largest gap in frames.
        image_px: Side of the square pictures.
        width: Hidden features.
        fps: Frame rate of the training clips.
        actions: Of the demos.
        states: Of the demos, or None where it predicts none.
        held_out: Errors on episodes that were not trained on; see `finetune.inverse_dynamics`.
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
        """Read what `asdict` and JSON made of one; a model that was never measured is refused with a KeyError."""
        float(values["held_out"]["action"]["mae"])
        vectors = {n: values[n] and VectorStats.from_dict(values[n]) for n in ("actions", "states")}
        return cls(**{**values, **vectors})

    def vectors(self) -> list[VectorStats]:
        """Return actions, then states where there are some: the order of the network's outputs."""
        return [self.actions] if self.states is None else [self.actions, self.states]

    def binary_outputs(self) -> np.ndarray:
        """Return which outputs of the network are votes, bool, shape (P,)."""
        return np.concatenate([vector.binary()[vector.moving()] for vector in self.vectors()])


class IdmNetwork(nn.Module):
    """A convolutional encoder a frame, and a perceptron on both frames' features, their difference and the gap."""

    def __init__(self, config: IdmConfig) -> None:
        super().__init__()
        self.num_rows, self.num_outputs = config.horizon + 1, len(config.binary_outputs())
        # In: picture, picture minus background, x, y. Strides 4, 2, 2: most of the cost of a CPU is at the first.
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((8, 32, 6, 4), (32, 64, 3, 2), (64, 64, 3, 2)):
            layers += [nn.Conv2d(before, after, kernel, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        # Flattened, not pooled: where the arm is says more than that it is somewhere.
        layers += [nn.Conv2d(64, 32, 1), nn.Flatten()]
        layers += [nn.Linear(32 * (config.image_px // STRIDE_PX) ** 2, config.width), nn.SiLU()]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(3 * config.width + 1, config.width), nn.SiLU(),
            nn.Linear(config.width, config.width), nn.SiLU(),
            nn.Linear(config.width, self.num_rows * self.num_outputs),
        )  # fmt: skip

    def encode(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features_NF of pictures in -1..1, seen against their clip's background (its mean picture)."""
        num, _, height, width = picture_NCHW.shape
        y = torch.linspace(-1, 1, height, device=picture_NCHW.device).view(1, 1, -1, 1).expand(num, 1, height, width)
        x = torch.linspace(-1, 1, width, device=picture_NCHW.device).view(1, 1, 1, -1).expand(num, 1, height, width)
        moved_NCHW = 2 * (picture_NCHW - background_NCHW)
        return self.encoder(torch.cat([picture_NCHW, moved_NCHW, y, x], dim=1))

    def rows(self, first_NF: torch.Tensor, last_NF: torch.Tensor, gap_N: torch.Tensor) -> torch.Tensor:
        """Return outputs_NKP for pairs; of a pair `gap` apart the rows 0 to gap mean something."""
        gap_N1 = gap_N.to(first_NF.dtype).unsqueeze(1) / max(1, self.num_rows - 1)
        pair = torch.cat([first_NF, last_NF, last_NF - first_NF, gap_N1], dim=1)
        return self.head(pair).view(-1, self.num_rows, self.num_outputs)


class InverseDynamics:
    """A network with the configuration that says what its outputs are.

    Args:
        config: Shape and statistics.
        network: Its weights; fresh ones when not given.
    """

    def __init__(self, config: IdmConfig, network: IdmNetwork | None = None) -> None:
        self.config = config
        self.network = network or IdmNetwork(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device) -> InverseDynamics:
        """Move the weights and return self."""
        self.network.to(device)
        return self

    def predict(self, video_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Recover what the robot did in a clip; the same clip always gives the same rows.

        Args:
            video_THWC: uint8, RGB, any size and at least one frame, at the rate of the training clips.

        Returns:
            action_TA and state_TS (None where the model has no states), float32, in the robot's units.
        """
        outputs_TP = self._outputs(small_frames(video_THWC, self.config.image_px))
        values, start = [], 0
        for vector in self.config.vectors():
            stop = start + len(vector.moving())
            values.append(vector.from_network(outputs_TP[:, start:stop]))
            start = stop
        return values[0], values[1] if len(values) > 1 else None

    @torch.inference_mode()
    def _outputs(self, small_TCHW: np.ndarray) -> np.ndarray:
        self.network.eval()
        pictures = [to_unit(torch.from_numpy(part).to(self.device)) for part in _batches(small_TCHW)]
        background_1CHW = sum(part.sum(dim=0, keepdim=True) for part in pictures) / len(small_TCHW)
        features_TF = torch.cat([self.network.encode(part, background_1CHW.expand_as(part)) for part in pictures])
        votes_P = torch.from_numpy(self.config.binary_outputs()).to(self.device)
        num_frames = len(features_TF)
        total_TP = torch.zeros(num_frames, self.network.num_outputs, device=self.device)
        count_T1 = torch.zeros(num_frames, 1, device=self.device)
        for gap in covering_gaps(num_frames, self.config.horizon):
            num_pairs = num_frames - gap
            gap_N = torch.full((num_pairs,), float(gap), device=self.device)
            rows_NKP = self.network.rows(features_TF[:num_pairs], features_TF[gap:], gap_N)
            rows_NKP = torch.where(votes_P, (rows_NKP > 0).to(rows_NKP.dtype), rows_NKP)
            for row in range(gap + 1):
                total_TP[row : row + num_pairs] += rows_NKP[:, row]
                count_T1[row : row + num_pairs] += 1
        return (total_TP / count_T1).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into an existing folder."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS_NAME)
        write_json(folder / CONFIG_NAME, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> InverseDynamics:
        """Read what `save` wrote, on the CPU.

        Raises:
            UserError: if a file is missing, damaged, or does not belong to the other.
        """
        remedy = f"remove {folder}; dreamgen label trains it again"
        try:
            config = IdmConfig.from_dict(read_json(folder / CONFIG_NAME))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(
                f"{folder / CONFIG_NAME} does not describe an inverse-dynamics model",
                actual=repr(error),
                next_step=remedy,
            ) from None
        model = cls(config)
        try:
            model.network.load_state_dict(load_file(folder / WEIGHTS_NAME))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(
                f"{folder / WEIGHTS_NAME} cannot be loaded", actual=str(error).splitlines()[0], next_step=remedy
            ) from None
        return model


def covering_gaps(num_frames: int, horizon: int) -> list[int]:
    """Choose the gaps of the pairs that label a clip: the longest that fits, its half and its quarter.

    Every frame, the first and the last too, lies in a pair of each gap; the shorter ones give both ends more than one.
    """
    longest = min(horizon, num_frames - 1)
    return sorted({longest, longest // 2, longest // 4} - {0}) or [0]


def small_frames(video_THWC: np.ndarray, image_px: int) -> np.ndarray:
    """Squeeze frames to a square, small_TCHW uint8; training and labelling see a clip through the same function."""
    small = [cv2.resize(frame, (image_px, image_px), interpolation=cv2.INTER_AREA) for frame in video_THWC]
    return np.ascontiguousarray(np.stack(small).transpose(0, 3, 1, 2))


def to_unit(small_NCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 pictures as float32 in -1..1."""
    return small_NCHW.to(torch.float32) / 127.5 - 1


def pair_loss(outputs_NKP: torch.Tensor, target_NKP: torch.Tensor, gap_N: torch.Tensor, votes_P: torch.Tensor):
    """Return the mean loss over the rows within each pair: smooth L1, and cross-entropy for votes.

    Args:
        outputs_NKP: Of `IdmNetwork.rows`.
        target_NKP: From `VectorStats.to_network`.
        gap_N: Frames between the two of each pair; later rows do not count.
        votes_P: Which outputs are votes.
    """
    smooth_NKP = F.smooth_l1_loss(outputs_NKP, target_NKP, reduction="none")
    vote_NKP = F.binary_cross_entropy_with_logits(outputs_NKP, target_NKP, reduction="none")
    inside_NK = torch.arange(outputs_NKP.shape[1], device=gap_N.device) <= gap_N.unsqueeze(1)
    return torch.where(votes_P, vote_NKP, smooth_NKP)[inside_NK].mean()


def _batches(small_TCHW: np.ndarray) -> list[np.ndarray]:
    return np.array_split(small_TCHW, math.ceil(len(small_TCHW) / ENCODE_BATCH))
