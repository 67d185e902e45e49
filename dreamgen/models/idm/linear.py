"""A linear reading of the foreground: ridge regression, which few demonstrations are enough for.

It sees where the clip differs from its background, at a small size, in a frame and its two neighbors. It has no
colors to learn by heart, which is what the networks do with few episodes; with many, the networks are better.
`finetune.idm_linear` weighs one against the other on held-out episodes.

Axes: T frames, N training frames of all clips, C channels, H height, W width, X features, P what the network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dreamgen.models.idm.network import foreground, to_unit

MAX_SIDE_PX, MAX_FEATURES = 24, 2000
NEIGHBORS = (-1, 0, 1)  # frames; the change between them tells the speed
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the features' mean squared length
MAX_FOLDS = 5
WEIGHT_NAME, BIAS_NAME = "linear.weight", "linear.bias"


@dataclass(frozen=True)
class LinearReader:
    """The weights of a linear reading.

    Args:
        weight_XP: float32.
        bias_P: float32.
    """

    weight_XP: np.ndarray
    bias_P: np.ndarray

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a file."""
        return {WEIGHT_NAME: self.weight_XP, BIAS_NAME: self.bias_P}

    @classmethod
    def of_tensors(cls, weights: dict[str, torch.Tensor], shape: tuple[int, int]) -> LinearReader:
        """Take the weights out of those of a file.

        Args:
            weights: All of the file; these are removed.
            shape: Features and outputs.

        Raises:
            KeyError: if they are not there.
            RuntimeError: if their shape differs.
        """
        reader = cls(weights.pop(WEIGHT_NAME).numpy(), weights.pop(BIAS_NAME).numpy())
        if reader.weight_XP.shape != shape or reader.bias_P.shape != shape[1:]:
            raise RuntimeError(
                f"{WEIGHT_NAME} has the shape {reader.weight_XP.shape}, and {shape} fits the configuration"
            )
        return reader

    def __call__(self, small_TCHW: np.ndarray, background_CHW: np.ndarray, binary_P: np.ndarray) -> np.ndarray:
        """Return outputs_TP, float64, of the frames of a clip: probabilities where `binary_P`."""
        # By torch, of whose threads `label` uses as many in every process; more BLAS threads may round differently.
        features_TX = torch.from_numpy(clip_features(small_TCHW, background_CHW))
        outputs_TP = (features_TX @ torch.from_numpy(self.weight_XP)).numpy().astype(np.float64) + self.bias_P
        outputs_TP[:, binary_P] = outputs_TP[:, binary_P].clip(0, 1)
        return outputs_TP


def side_px(num_cameras: int) -> int:
    """Return the side of the foreground's images."""
    return min(MAX_SIDE_PX, int((MAX_FEATURES / len(NEIGHBORS) / num_cameras) ** 0.5))


def num_features(num_cameras: int) -> int:
    """Return the number of features of a frame."""
    return len(NEIGHBORS) * num_cameras * side_px(num_cameras) ** 2


def clip_features(small_TCHW: np.ndarray, background_CHW: np.ndarray) -> np.ndarray:
    """Return features_TX, float32: the foreground of each camera in a frame and its neighbors, 0 to 1.

    Args:
        small_TCHW: Frames of a clip, uint8; C holds the three colors of one camera after the other.
        background_CHW: Of the clip, uint8.
    """
    num_frames, num_cameras = len(small_TCHW), small_TCHW.shape[1] // 3
    moved_TCHW = to_unit(torch.from_numpy(small_TCHW)) - to_unit(torch.from_numpy(background_CHW))
    mask_N1HW = foreground(moved_TCHW.unflatten(1, (num_cameras, 3)).flatten(0, 1))
    side = side_px(num_cameras)
    frames = torch.nn.functional.interpolate(mask_N1HW, (side, side), mode="area").reshape(num_frames, -1)
    rows = torch.arange(num_frames)
    return torch.cat([frames[(rows + step).clamp(0, num_frames - 1)] for step in NEIGHBORS], dim=1).numpy()


def fit_linear(features: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> LinearReader:
    """Fit a ridge regression whose penalty predicts episodes best that were left out of it.

    Args:
        features: features_NX of each episode.
        targets: target_NP of each, from `VectorStats.to_network`.
    """
    if len(features) == 1:  # parts of the only episode are left out instead
        features, targets = (np.array_split(values[0], MAX_FOLDS) for values in (features, targets))
    folds = np.array_split(np.arange(len(features)), min(MAX_FOLDS, len(features)))
    errors = np.zeros(len(PENALTIES))
    for fold in folds:
        others = [number for number in range(len(features)) if number not in fold]
        feature_NX, target_NP = (np.concatenate([x[i] for i in fold]) for x in (features, targets))
        for number, reader in enumerate(_fits([features[i] for i in others], [targets[i] for i in others], PENALTIES)):
            errors[number] += ((feature_NX @ reader.weight_XP + reader.bias_P - target_NP) ** 2).sum()
    return _fits(features, targets, (PENALTIES[int(errors.argmin())],))[0]


def _fits(
    features: Sequence[np.ndarray], targets: Sequence[np.ndarray], penalties: Sequence[float]
) -> list[LinearReader]:
    """Fit a regression for each penalty; in the space of the rows where they are fewer than the features."""
    feature_NX, target_NP = (np.concatenate(x).astype(np.float64) for x in (features, targets))
    mean_X, mean_P = feature_NX.mean(axis=0), target_NP.mean(axis=0)
    centered_NX = feature_NX - mean_X
    scale = float((centered_NX**2).sum()) / len(centered_NX)
    if scale == 0:  # nothing moves
        return [LinearReader(np.zeros((len(mean_X), len(mean_P)), np.float32), mean_P.astype(np.float32))] * len(
            penalties
        )
    by_rows = len(centered_NX) < len(mean_X)
    gram = (centered_NX @ centered_NX.T if by_rows else centered_NX.T @ centered_NX) / scale
    right = target_NP - mean_P if by_rows else centered_NX.T @ (target_NP - mean_P) / scale
    readers = []
    for penalty in penalties:
        solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
        weight_XP = centered_NX.T @ solved / scale if by_rows else solved
        bias_P = mean_P - mean_X @ weight_XP
        readers.append(LinearReader(weight_XP.astype(np.float32), bias_P.astype(np.float32)))
    return readers
