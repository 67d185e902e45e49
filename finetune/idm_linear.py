"""The linear reading of inverse dynamics: fitted to the training episodes, and weighed against the networks.

Axes: T frames, C channels, H height, W width, X features, P what the model predicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamgen.models.idm.linear import LinearReader, clip_features, fit_linear
from dreamgen.models.idm.model import InverseDynamics, clip_background
from dreamgen.models.idm.network import IdmConfig
from finetune.idm_episodes import IdmEpisode
from finetune.idm_errors import clip_pieces

MAX_FRAMES = 10_000  # of training episodes; with more, some are left out
MIN_SHARE = 0.02  # a smaller linear reading is left out; the networks keep as much, as they tell the uncertainty


def read_linearly(config: IdmConfig, train: Sequence[IdmEpisode], num_frames: int) -> LinearReader:
    """Fit the linear reading to training episodes, seen as the clips that label processes.

    Args:
        config: Of the model.
        train: Training episodes.
        num_frames: Of a clip.
    """
    step = -(-sum(len(episode.action_TA) for episode in train) // MAX_FRAMES)
    features = [episode_features(episode.small_TCHW, num_frames)[::step] for episode in train]
    return fit_linear(features, [episode_targets(config, episode)[::step] for episode in train])


def episode_features(small_TCHW: np.ndarray, num_frames: int) -> np.ndarray:
    """Return features_TX of an episode, each frame with the background of its clip."""
    parts = []
    for start, stop, new in clip_pieces(len(small_TCHW), num_frames):
        clip_TCHW = small_TCHW[start:stop]
        parts.append(clip_features(clip_TCHW, clip_background(clip_TCHW))[new - start :])
    return np.concatenate(parts)


def episode_targets(config: IdmConfig, episode: IdmEpisode) -> np.ndarray:
    """Return target_TP of an episode, float32."""
    values = [episode.action_TA] + ([] if episode.state_TS is None else [episode.state_TS])
    vectors = zip(config.vectors(), values, strict=False)
    return np.concatenate([stats.to_network(values_TD) for stats, values_TD in vectors], axis=1)


def with_linear(
    model: InverseDynamics, linear: LinearReader, validation: Sequence[IdmEpisode], num_frames: int
) -> InverseDynamics:
    """Return the model with the share of the linear reading that predicts held-out episodes best.

    The share is the one of least squares over actions, between 0 and 1 ("stacked regressions", Breiman, 1996): one
    number for all dimensions, so that a few episodes are enough to choose it.

    Args:
        model: The trained networks, without a linear reading.
        linear: The linear reading.
        validation: Episodes that neither was fitted to.
        num_frames: Of a clip.
    """
    share = max(MIN_SHARE, best_share(*held_out_outputs(model, linear, validation, num_frames)))
    if 1 - share < MIN_SHARE:
        return model
    config = model.measured(network_share=share).config
    return InverseDynamics(config, [*model.networks], linear)  # pyright: ignore[reportArgumentType]


def held_out_outputs(
    model: InverseDynamics, linear: LinearReader, episodes: Sequence[IdmEpisode], num_frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the actions that networks and linear reading predict, and the true ones, as outputs: (T, outputs) each."""
    num_outputs = len(model.config.actions.binary_outputs())
    parts: list[list[np.ndarray]] = [[], [], []]
    for episode in episodes:
        target_TP = episode_targets(model.config, episode)
        for start, stop, new in clip_pieces(len(target_TP), num_frames):
            clip_TCHW, rows = episode.small_TCHW[start:stop], slice(new - start, None)
            parts[0].append(model.outputs(clip_TCHW)[0][rows])
            linear_TP = linear(clip_TCHW, clip_background(clip_TCHW), model.config.binary_outputs())
            parts[1].append(linear_TP[rows])
            parts[2].append(target_TP[new:stop])
    network_TP, linear_TP, target_TP = (np.concatenate(part)[:, :num_outputs].astype(np.float64) for part in parts)
    return network_TP, linear_TP, target_TP


def best_share(network_TP: np.ndarray, linear_TP: np.ndarray, target_TP: np.ndarray) -> float:
    """Return the share of the networks in the mixture with the least squared error, 0 to 1."""
    apart_TP = network_TP - linear_TP
    squares = float((apart_TP**2).sum())
    return float(np.clip((apart_TP * (target_TP - linear_TP)).sum() / squares, 0, 1)) if squares > 0 else 1.0
