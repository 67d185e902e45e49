"""The error of inverse dynamics on held-out episodes, compared with baselines that need no model.

Axes: T frames, N training frames, D dimensions of one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from dreamgen.data.svg_plot import Strip, strip_plot, svg_document
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.vector_stats import VectorStats
from finetune.idm_episodes import IdmEpisode

MAX_CURVES = 12
CURVE_WIDTH_PX, CURVE_HEIGHT_PX = 760, 90
NEAREST_PX, NEAREST_FRAMES = 32, 20_000  # size and number of the training frames that the nearest one is among

Vectors = Callable[[IdmEpisode], np.ndarray | None]


def clip_pieces(num_frames: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Divide an episode into clips of one length; the last one overlaps the one before, so that none is shorter.

    Yields:
        First frame of the clip, the frame after its last, and the first frame that no earlier clip has.
    """
    for new in range(0, num_frames, length):
        start = max(0, min(new, num_frames - length))
        yield start, min(start + length, num_frames), new


def predict_pieces(
    model: InverseDynamics, episode: IdmEpisode, num_frames: int, know_first: bool = False, integrate: bool = False
) -> dict[str, np.ndarray]:
    """Label a whole episode in clips as long as those that label processes.

    Args:
        model: The model.
        episode: With states, if the first is to be known.
        num_frames: Of a clip.
        know_first: Whether the model is told the state of each clip's first frame.
        integrate: Whether states follow the predicted actions.

    Returns:
        `action`, `action_std` and, if the model has states, `state` and `state_std`: one row a frame.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for start, stop, new in clip_pieces(len(episode.small_TCHW), num_frames):
        first_S = episode.state_TS[start] if know_first and episode.state_TS is not None else None
        found = model.predict_small(episode.small_TCHW[start:stop], first_S, integrate)
        values = {"action": found.action_TA, "action_std": found.action_std_TA,
                  "state": found.state_TS, "state_std": found.state_std_TS}  # fmt: skip
        for name, values_TD in values.items():
            if values_TD is not None:
                parts.setdefault(name, []).append(values_TD[new - start :])
    return {name: np.concatenate(values) for name, values in parts.items()}


def vector_errors(
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    stats: VectorStats,
    baselines: Mapping[str, Sequence[np.ndarray]],
    others: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Compare predictions with the ground truth, in the robot's units.

    Args:
        truths: values_TD of each held-out episode.
        predictions: Of the same shapes.
        stats: Of the training demos.
        baselines: Predictions of each baseline, of the same shapes.
        others: Predictions in other ways, of the same shapes.

    Returns:
        `measures` of the predictions, `r2_per_dim` (None where a dimension does not change), `binary_accuracy`,
        `spread` (standard deviation of the predictions over that of the truth, median over dimensions; below 1 if
        actions are too small), `baselines`: the measures of each, and those of the others by their names.
    """
    truth_TD, guess_TD = (np.concatenate(values).astype(np.float64) for values in (truths, predictions))
    binary = np.flatnonzero(stats.binary())
    varied = np.setdiff1d(stats.moving(), binary)
    true_std_D = truth_TD.std(axis=0)
    spreads = [guess_TD[:, d].std() / true_std_D[d] for d in varied if true_std_D[d] > 1e-3 * stats.std[d]]
    middle = np.add(stats.low, stats.high) / 2
    agree_TD = (truth_TD > middle) == (guess_TD > middle)
    return {
        **measures(truth_TD, guess_TD, stats),
        "r2_per_dim": [standardized_r2(truth_TD, guess_TD, stats, [d]) for d in range(truth_TD.shape[1])],
        "binary_accuracy": float(agree_TD[:, binary].mean()) if len(binary) else None,
        "spread": float(np.median(spreads)) if spreads else None,
        "baselines": {name: measures(truth_TD, np.concatenate(values), stats) for name, values in baselines.items()},
        **{name: measures(truth_TD, np.concatenate(values), stats) for name, values in (others or {}).items()},
    }


def uncertainty_scale(
    truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], stds: Sequence[np.ndarray], stats: VectorStats
) -> float:
    """Return the factor that makes the root mean square of standard deviations that of the errors; 1 if all are 0."""
    dims = np.flatnonzero([kind == "varied" for kind in stats.kinds])
    error_TD, std_TD = (np.concatenate(x)[:, dims] / np.asarray(stats.std)[dims] for x in (
        [truth_TD - guess_TD for truth_TD, guess_TD in zip(truths, predictions, strict=True)], stds))  # fmt: skip
    spread = float((std_TD**2).sum())
    return float(np.sqrt((error_TD**2).sum() / spread)) if spread > 0 else 1.0


def measures(truth_TD: np.ndarray, guess_TD: np.ndarray, stats: VectorStats) -> dict[str, Any]:
    """Return `mae` over the dimensions that move, `mae_per_dim`, `r2` over those that move, and `r2_per_group`."""
    error_D, moving = np.abs(guess_TD - truth_TD).mean(axis=0), stats.moving()
    moving_groups = {name: np.intersect1d(dims, moving).tolist() for name, dims in stats.group_dims().items()}
    return {
        "mae": float(error_D[moving].mean()),
        "mae_per_dim": error_D.tolist(),
        "r2": standardized_r2(truth_TD, guess_TD, stats, moving.tolist()),
        "r2_per_group": {
            name: standardized_r2(truth_TD, guess_TD, stats, dims) for name, dims in moving_groups.items() if dims
        },
    }


def standardized_r2(
    truth_TD: np.ndarray, guess_TD: np.ndarray, stats: VectorStats, dims: Sequence[int]
) -> float | None:
    """Return R^2 over several dimensions: 0 is the mean of the training demos, 1 is perfect.

    It is the out-of-sample R^2 of Campbell and Thompson (2008), 1 - sum (y - f)^2 / sum (y - m)^2, where m is the mean
    of the training demos, and each dimension is divided by its deviation in them, so that none dominates by its unit.

    Returns:
        None if no dimension moved in the training demos, or none differs from their mean in the truth.
    """
    mean_D, std_D = np.asarray(stats.mean), np.asarray(stats.std)
    dims = [d for d in dims if std_D[d] > 0 and d in stats.moving()]
    squared = (((truth_TD - guess_TD)[:, dims] / std_D[dims]) ** 2).sum()
    mean_squared = (((truth_TD - mean_D)[:, dims] / std_D[dims]) ** 2).sum()
    return float(1 - squared / mean_squared) if mean_squared > 0 else None


def baseline_vectors(
    train: Sequence[IdmEpisode], held_out: Sequence[IdmEpisode], vectors: Vectors, stats: VectorStats,
    state_names: Sequence[str], num_frames: int,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Predict held-out episodes without a model.

    `mean` is the mean of the training demos. `nearest_frame` is the row of the training frame that is nearest in its
    pixels. `state_held` keeps what is known where a clip starts: the state of its first frame if the vector has the
    state's names, else its own first row.

    Args:
        train: Training episodes.
        held_out: Held-out episodes.
        vectors: Returns the vector of an episode.
        stats: Of that vector in the training episodes.
        state_names: Names of the state's dimensions.
        num_frames: Of a clip.

    Returns:
        values_TD of each held-out episode by the baseline's name.
    """
    step = -(-sum(len(episode.small_TCHW) for episode in train) // NEAREST_FRAMES)
    known_NF = np.concatenate([_pixels(episode)[::step] for episode in train])
    rows_ND = np.concatenate([values[::step] for episode in train if (values := vectors(episode)) is not None])
    norms_N = (known_NF**2).sum(axis=1)
    found: dict[str, list[np.ndarray]] = {"mean": [], "nearest_frame": [], "state_held": []}
    for episode in held_out:
        truth_TD = vectors(episode)
        assert truth_TD is not None
        nearest_T = (norms_N - 2 * _pixels(episode) @ known_NF.T).argmin(axis=1)
        known_TD = truth_TD
        if episode.state_TS is not None and tuple(state_names) == stats.names:
            known_TD = episode.state_TS
        held = [np.repeat(known_TD[a : a + 1], b - c, axis=0) for a, b, c in clip_pieces(len(truth_TD), num_frames)]
        found["mean"].append(np.broadcast_to(np.asarray(stats.mean), truth_TD.shape))
        found["nearest_frame"].append(rows_ND[nearest_T])
        found["state_held"].append(np.concatenate(held))
    return found


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


def _pixels(episode: IdmEpisode) -> np.ndarray:
    """Return the frames of an episode as rows of small pixels, float32."""
    size = (min(NEAREST_PX, episode.small_TCHW.shape[-1]),) * 2
    frames = [cv2.resize(x.transpose(1, 2, 0), size, interpolation=cv2.INTER_AREA) for x in episode.small_TCHW]
    return np.stack(frames).reshape(len(frames), -1).astype(np.float32) / 255
