"""The error of inverse dynamics on held-out episodes, compared with baselines that need no model.

Axes: T frames, D dimensions of one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamgen.data.svg_plot import Strip, strip_plot, svg_document
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.vector_stats import VectorStats
from finetune.idm_episodes import IdmEpisode

MAX_CURVES = 12
CURVE_WIDTH_PX, CURVE_HEIGHT_PX = 760, 90


def predict_episode(model: InverseDynamics, episode: IdmEpisode, num_frames: int) -> list[np.ndarray]:
    """Label a whole episode in pieces as long as the clips that label processes.

    Returns:
        action_TA and, if the model has states, state_TS.
    """
    video_THWC = episode.small_TCHW.transpose(0, 2, 3, 1)
    pieces = [model.predict(video_THWC[start : start + num_frames]) for start in range(0, len(video_THWC), num_frames)]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True) if parts[0] is not None]


def vector_errors(
    truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], stats: VectorStats
) -> dict[str, Any]:
    """Compare predictions with the ground truth, in the robot's units.

    `r2` is the out-of-sample R^2 of Campbell and Thompson (2008): 1 - sum (y - f)^2 / sum (y - m)^2, where m is the
    mean of the training demos. Above 0 the model is better than that mean; 1 is perfect.

    Args:
        truths: values_TD of each held-out episode.
        predictions: Of the same shapes.
        stats: Of the training demos.

    Returns:
        `mae` (over the dimensions that change), `mae_per_dim`, `r2` (over the varied ones: a gripper's large steps
        would dominate the arm), `r2_per_dim` (None if it is undefined), `binary_accuracy`, `spread`
        (standard deviation of the predictions over that of the truth, median over dimensions; below 1 if actions are
        too small),
        and `baselines`: the mae of predicting the demos' mean and of repeating an episode's first row, and the
        accuracy of always predicting the more frequent value of a binary dimension.
    """
    truth_TD, guess_TD = (np.concatenate(values).astype(np.float64) for values in (truths, predictions))
    mean_TD = np.broadcast_to(np.asarray(stats.mean), truth_TD.shape)
    still_TD = np.concatenate([np.broadcast_to(values[:1], values.shape) for values in truths])
    moving, binary = stats.moving(), np.flatnonzero(stats.binary())
    varied = np.setdiff1d(moving, binary)
    squared_D, mean_squared_D = (((x - truth_TD) ** 2).sum(axis=0) for x in (guess_TD, mean_TD))
    true_std_D = truth_TD.std(axis=0)
    spreads = [guess_TD[:, d].std() / true_std_D[d] for d in varied if true_std_D[d] > 0]
    middle = (np.asarray(stats.low) + np.asarray(stats.high)) / 2
    agree_TD = (truth_TD > middle) == (guess_TD > middle)
    majority_TD = np.broadcast_to(np.asarray(stats.mean) > middle, truth_TD.shape)
    baselines = {
        "demo_mean": _mae(mean_TD, truth_TD, moving),
        "stays_at_first": _mae(still_TD, truth_TD, moving),
        "binary_majority_accuracy": float((majority_TD == (truth_TD > middle))[:, binary].mean())
        if len(binary)
        else None,
    }
    return {
        "mae": _mae(guess_TD, truth_TD, moving),
        "mae_per_dim": np.abs(guess_TD - truth_TD).mean(axis=0).tolist(),
        "r2": _r2(squared_D[varied].sum(), mean_squared_D[varied].sum()),
        "r2_per_dim": [_r2(squared_D[d], mean_squared_D[d]) if d in varied else None for d in range(len(squared_D))],
        "binary_accuracy": float(agree_TD[:, binary].mean()) if len(binary) else None,
        "spread": float(np.median(spreads)) if spreads else None,
        "baselines": baselines,
    }


def previous_state_mae(episodes: Sequence[IdmEpisode], stats: VectorStats, state_names: Sequence[str]) -> float | None:
    """Return the error of predicting the previous state, which needs true states that label does not have.

    Returns:
        The mean absolute error over the dimensions that change; None if states are missing or are other joints than
        the actions.
    """
    with_states = [(episode, episode.state_TS) for episode in episodes if episode.state_TS is not None]
    if tuple(state_names) != stats.names or len(with_states) < len(episodes):
        return None
    moving, errors = stats.moving(), []
    for episode, state_TS in with_states:
        before_TS = np.concatenate([state_TS[:1], state_TS[:-1]])
        errors.append(np.abs(before_TS - episode.action_TA)[:, moving])
    return float(np.concatenate(errors).mean())


def curves_svg(truth_TD: np.ndarray, guess_TD: np.ndarray, stats: VectorStats, title: str) -> str:
    """Draw truth (gray) and prediction (blue) over the frames, for the dimensions that change most in the demos.

    Returns:
        An SVG document.
    """
    order = sorted(stats.moving().tolist(), key=lambda d: -stats.std[d])[:MAX_CURVES]
    strips = [Strip(stats.names[d], (truth_TD[:, d].tolist(), guess_TD[:, d].tolist())) for d in order]
    label = f"{title}: truth in gray, prediction in blue"
    x_labels = (label, f"frame {len(truth_TD)}")
    return svg_document(strip_plot(strips, label, x_labels, ("faint", "c0"), CURVE_WIDTH_PX, CURVE_HEIGHT_PX))


def _mae(guess_TD: np.ndarray, truth_TD: np.ndarray, dims: np.ndarray) -> float:
    return float(np.abs(guess_TD - truth_TD)[:, dims].mean())


def _r2(squared: float, mean_squared: float) -> float | None:
    return float(1 - squared / mean_squared) if mean_squared > 0 else None
