"""Inverse dynamics: predict the actions and states of each frame of a clip, and how uncertain they are.

Windows of consecutive frames overlap by half and lie within the clip, also the last one, so that the last frame gets
its own prediction. A frame's prediction is the mean over all networks and all windows that cover it; a window counts
most for the frames in its middle, whose past and future it sees.

Axes: K frames of a window, T frames of a clip, H height, W width, C channels, A action, S state, D either, P what the
network predicts. A `video_THWC` is uint8, 0-255, RGB; `small_TCHW` is the same, each camera resized to `image_px`
squared, with the three colors of one camera after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dreamgen.data.frame_features import small_frame
from dreamgen.data.video import DecodedFrame
from dreamgen.errors import UserError
from dreamgen.models.idm.linear import LinearReader, num_features
from dreamgen.models.idm.network import WHOLE_FRAME, IdmConfig, IdmNetwork, to_unit
from dreamgen.models.idm.next_state import integrate
from dreamgen.run.files import read_json, write_json

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
ENCODE_BATCH = 64  # frames at once; fixed, as it may change rounding
BACKGROUND_FRAMES = 15  # whose median is a clip's background
KNOWN_STATE_S = 3.0  # seconds after which a known first state counts 1/e; chosen on the five GR1 episodes


@dataclass(frozen=True)
class Prediction:
    """The actions and states of a clip, in the robot's units, float32.

    Args:
        action_TA: Actions.
        action_std_TA: Their standard deviation, scaled to the error on held-out episodes.
        state_TS: States; None where the model has none.
        state_std_TS: Their standard deviation.
    """

    action_TA: np.ndarray
    action_std_TA: np.ndarray
    state_TS: np.ndarray | None = None
    state_std_TS: np.ndarray | None = None


class InverseDynamics:
    """Inverse-dynamics networks with the configuration that their outputs are scaled by.

    Args:
        config: Shape and statistics.
        networks: As many as `config.num_models`; newly initialized ones when not given.
        linear: The linear reading, whose share is that which `config.network_share` leaves.
    """

    def __init__(
        self, config: IdmConfig, networks: Sequence[IdmNetwork] | None = None, linear: LinearReader | None = None
    ) -> None:
        self.config, self.linear = config, linear
        self.networks = nn.ModuleList(networks or [IdmNetwork(config) for _ in range(config.num_models)])

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.networks.parameters()).device

    def to(self, device: torch.device) -> InverseDynamics:
        """Move the weights and return self."""
        self.networks.to(device)
        return self

    def predict(
        self, video_THWC: np.ndarray, first_state_S: np.ndarray | None = None, integrate_states: bool = False
    ) -> Prediction:
        """Predict the actions and states of a clip; deterministic.

        Args:
            video_THWC: uint8, RGB, any size, at least one frame, at the frame rate of the training clips.
            first_state_S: The state of the first frame, if it is known: states start there and keep the difference
                for about `KNOWN_STATE_S`. Actions that set the state of their name follow.
            integrate_states: Follow the predicted actions from the first state instead of reading states from frames.
        """
        small_TCHW = small_frames(video_THWC, self.config.image_px, self.config.views)
        return self.predict_small(small_TCHW, first_state_S, integrate_states)

    def small_frame(self, frame: DecodedFrame) -> np.ndarray:
        """Return what `predict_small` takes of one frame, small_CHW, so that a clip's frames need not all be kept."""
        return small_decoded(frame, self.config.image_px, self.config.views)

    def predict_small(
        self, small_TCHW: np.ndarray, first_state_S: np.ndarray | None = None, integrate_states: bool = False
    ) -> Prediction:
        """Predict as `predict` does, from frames that are small already."""
        config = self.config
        mean_TP, std_TP = self.outputs(small_TCHW)
        known_S = first_state_S if config.states is not None else None
        left_T1 = np.exp(-np.arange(len(mean_TP)) / (KNOWN_STATE_S * config.fps))[:, None]
        binary_P = config.binary_outputs()
        std_TP = np.where(binary_P, np.sqrt((mean_TP * (1 - mean_TP)).clip(0)), std_TP)
        found, stop = [], 0
        for stats in config.vectors():
            start, stop = stop, stop + len(stats.binary_outputs())
            values_TD = stats.from_network(mean_TP[:, start:stop])
            found.append((values_TD, stats.std_from_network(std_TP[:, start:stop]) * config.uncertainty_scale))
        action_TA, action_std_TA = found[0]
        state_TS, state_std_TS = found[1] if len(found) > 1 else (None, None)
        if known_S is not None and state_TS is not None and state_std_TS is not None:
            self._shift(action_TA, action_std_TA, state_TS, state_std_TS, known_S, left_T1.astype(np.float32))
        if integrate_states and state_TS is not None and config.next_state is not None:
            start_S = state_TS[0] if first_state_S is None else first_state_S
            state_TS = integrate(np.asarray(config.next_state), start_S, action_TA)
        return Prediction(action_TA, action_std_TA, state_TS, state_std_TS)

    def _shift(
        self, action_TA: np.ndarray, action_std_TA: np.ndarray, state_TS: np.ndarray, state_std_TS: np.ndarray,
        known_S: np.ndarray, left_T1: np.ndarray,
    ) -> None:  # fmt: skip
        """Shift states, and the actions that they follow, by the error of the first state, less and less.

        An action is shifted by the error of its state: where a robot hangs below its targets, the two differ.
        """
        states, actions = self.config.states, self.config.actions
        assert states is not None
        varied = [d for d, kind in enumerate(states.kinds) if kind == "varied"]
        error_S = known_S - state_TS[0]
        state_TS[:, varied] += left_T1 * error_S[varied]
        state_std_TS[:, varied] *= np.sqrt(1 - left_T1**2)
        followed = [actions.names.index(name) for name in self.config.followed]
        action_TA[:, followed] += left_T1 * error_S[[states.names.index(name) for name in self.config.followed]]
        action_std_TA[:, followed] *= np.sqrt(1 - left_T1**2)

    def outputs(self, small_TCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean_TP and std_TP of what networks and linear reading predict, probabilities where binary."""
        share, background_CHW = self.config.network_share, clip_background(small_TCHW)
        if self.linear is None or share >= 1:
            return self._network_outputs(small_TCHW, background_CHW)
        linear_TP = self.linear(small_TCHW, background_CHW, self.config.binary_outputs())
        if share <= 0:
            return linear_TP, np.zeros_like(linear_TP)
        mean_TP, std_TP = self._network_outputs(small_TCHW, background_CHW)
        mixed_TP = share * mean_TP + (1 - share) * linear_TP
        # Of the mixture: that of the networks, and how far the two are apart.
        variance_TP = share * std_TP**2 + share * (1 - share) * (mean_TP - linear_TP) ** 2
        return mixed_TP, np.sqrt(variance_TP)

    @torch.inference_mode()
    def _network_outputs(self, small_TCHW: np.ndarray, background_CHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation over networks and windows, of probabilities where outputs are binary."""
        self.networks.eval()
        background_1CHW = to_unit(torch.from_numpy(background_CHW)[None].to(self.device))
        batches = np.array_split(small_TCHW, math.ceil(len(small_TCHW) / ENCODE_BATCH))
        pictures = [to_unit(torch.from_numpy(part).to(self.device)) for part in batches]
        binary_P, num_frames = self.config.binary_outputs(), len(small_TCHW)
        starts, weight_K1 = windows(num_frames, self.config.horizon)
        size = len(weight_K1)
        sums_TP, squares_TP = np.zeros((2, num_frames, len(binary_P)))
        total_T1 = np.zeros((num_frames, 1))
        for network in self.networks:
            assert isinstance(network, IdmNetwork)
            features_TF = torch.cat([network.encode(part, background_1CHW.expand_as(part)) for part in pictures])
            rows = network.rows(torch.stack([features_TF[start : start + size] for start in starts]))
            rows_BKP = rows.double().cpu().numpy()
            rows_BKP[..., binary_P] = 1 / (1 + np.exp(-rows_BKP[..., binary_P]))
            for start, rows_KP in zip(starts, rows_BKP, strict=True):
                sums_TP[start : start + size] += weight_K1 * rows_KP
                squares_TP[start : start + size] += weight_K1 * rows_KP**2
                total_T1[start : start + size] += weight_K1
        mean_TP = sums_TP / total_T1
        return mean_TP, np.sqrt(np.maximum(squares_TP / total_T1 - mean_TP**2, 0))

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into an existing folder."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.networks.state_dict().items()}
        if self.linear is not None:
            weights |= {name: torch.from_numpy(value) for name, value in self.linear.tensors().items()}
        save_file(weights, folder / WEIGHTS_NAME)
        write_json(folder / CONFIG_NAME, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> InverseDynamics:
        """Read what `save` wrote, on the CPU.

        Raises:
            UserError: if a file is missing, damaged or of another version, or the two do not match.
        """
        remedy = f"move {folder} away; dreamgen label trains it again"
        try:
            config = IdmConfig.from_dict(read_json(folder / CONFIG_NAME))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(
                f"{folder / CONFIG_NAME} does not describe an inverse-dynamics model",
                actual=str(error) if isinstance(error, ValueError) else repr(error),
                next_step=remedy,
            ) from None
        model = cls(config)
        try:
            weights = load_file(folder / WEIGHTS_NAME)
            if config.network_share < 1:
                shape = (num_features(len(config.views)), len(config.binary_outputs()))
                model.linear = LinearReader.of_tensors(weights, shape)
            model.networks.load_state_dict(weights)
        except (SafetensorError, OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{folder / WEIGHTS_NAME} cannot be loaded", actual=str(error).splitlines()[0], next_step=remedy
            ) from None
        return model

    def measured(self, **values: object) -> InverseDynamics:
        """Return the same networks with other values of the configuration, such as `held_out`."""
        config = replace(self.config, **values)  # pyright: ignore[reportArgumentType]
        return InverseDynamics(config, [*self.networks], self.linear)  # pyright: ignore[reportArgumentType]


def windows(num_frames: int, size: int) -> tuple[list[int], np.ndarray]:
    """Return the first frames of the windows that cover a clip, and how much each row of a window counts, (K, 1).

    They overlap by half; the last one ends with the clip, and a shorter clip is one window.
    """
    size = min(size, num_frames)
    starts = sorted({*range(0, num_frames - size, max(1, size // 2)), num_frames - size})
    rows = np.arange(size)
    return starts, np.minimum(rows + 1, size - rows)[:, None].astype(np.float64)


def clip_background(small_TCHW: np.ndarray) -> np.ndarray:
    """Return the background of a clip, uint8: the median of some of its frames."""
    some = np.linspace(0, len(small_TCHW) - 1, min(BACKGROUND_FRAMES, len(small_TCHW))).round().astype(int)
    return np.median(small_TCHW[some], axis=0).astype(np.uint8)


def small_decoded(frame: DecodedFrame, image_px: int, views: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """Resize each camera of one frame of a video file, small_CHW uint8; faster than `small_frames` for one camera.

    Args:
        frame: From the file.
        image_px, views: As for `small_frames`.
    """
    if [tuple(view) for view in views] == [WHOLE_FRAME]:
        return small_frame(frame, image_px).transpose(2, 0, 1)
    return small_frames(frame.rgb()[None], image_px, views)[0]


def small_frames(
    video_THWC: np.ndarray, image_px: int, views: Sequence[tuple[float, float, float, float]]
) -> np.ndarray:
    """Resize each camera of frames in memory to a square, small_TCHW uint8.

    Args:
        video_THWC: uint8, RGB, any size.
        image_px: Side of the square.
        views: Where each camera is in the frame, as shares: top, left, height, width.
    """
    height, width = video_THWC.shape[1:3]
    size, cameras = (image_px, image_px), []
    for top, left, tall, wide in views:
        rows = slice(round(top * height), round((top + tall) * height))
        columns = slice(round(left * width), round((left + wide) * width))
        frames = [cv2.resize(frame[rows, columns], size, interpolation=cv2.INTER_AREA) for frame in video_THWC]
        cameras.append(np.stack(frames).transpose(0, 3, 1, 2))
    return np.ascontiguousarray(np.concatenate(cameras, axis=1))
