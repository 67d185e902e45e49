"""Inverse dynamics: predict the actions and states of each frame of a clip.

A pair of frames gives rows for both of them and for those between, so that the last frame gets its own prediction and a
clip of any length is covered by pairs within it. A frame's prediction is the mean over all pairs that cover it.

Axes: N frames or pairs, K rows from the first frame of a pair to the second, T frames of a clip, H height, W width,
C channels, A action, S state, P what the network predicts (dimensions that change).
A `video_THWC` is uint8, 0-255, RGB; `small_TCHW` is the same, resized to `image_px` squared.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from dreamgen.models.idm.network import IdmConfig, IdmNetwork, to_unit
from dreamgen.run.files import read_json, write_json

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
ENCODE_BATCH = 64  # frames at once; fixed, as it may change rounding


class InverseDynamics:
    """An inverse-dynamics network with the configuration that its outputs are scaled by.

    Args:
        config: Shape and statistics.
        network: The network; a newly initialized one when not given.
    """

    def __init__(self, config: IdmConfig, network: IdmNetwork | None = None) -> None:
        self.config = config
        self.network = network or IdmNetwork(config)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device) -> InverseDynamics:
        """Move the weights and return self."""
        self.network.to(device)
        return self

    def predict(self, video_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict the actions and states of a clip; deterministic.

        Args:
            video_THWC: uint8, RGB, any size, at least one frame, at the frame rate of the training clips.

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
        sums = [part.sum(dim=0, keepdim=True) for part in pictures]
        background_1CHW = sum(sums[1:], sums[0]) / len(small_TCHW)
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
            UserError: if a file is missing or damaged, or the two do not match.
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
    """Return the gaps of the pairs that label a clip: the longest that fits, its half and its quarter.

    Every frame, also the first and the last, is in a pair of each gap; the shorter gaps give both ends more than one.
    """
    longest = min(horizon, num_frames - 1)
    return sorted({longest, longest // 2, longest // 4} - {0}) or [0]


def small_frames(video_THWC: np.ndarray, image_px: int) -> np.ndarray:
    """Resize frames to a square, small_TCHW uint8, in the same way for training and labeling."""
    small = [cv2.resize(frame, (image_px, image_px), interpolation=cv2.INTER_AREA) for frame in video_THWC]
    return np.ascontiguousarray(np.stack(small).transpose(0, 3, 1, 2))


def _batches(small_TCHW: np.ndarray) -> list[np.ndarray]:
    return np.array_split(small_TCHW, math.ceil(len(small_TCHW) / ENCODE_BATCH))
