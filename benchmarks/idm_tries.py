"""Inputs, targets and heads of inverse dynamics, compared on the same small features; for `benchmarks/idm.py --tries`.

Each is cheap enough to be fitted again for every fold on a CPU: what differs is one thing at a time, and nothing else.

- Inputs, read by ridge regression: the image; its difference from the clip's background; the foreground as the model
  computes it; and a learned foreground, from the look of a pixel and its neighbors, of what moved in other episodes.
- Targets, for clips whose first state is known: absolute ones, shifted to the known state as the model does, and
  relative ones, the change since the clip's first frame from the change of the features.
- Heads on the principal components of the foreground: ridge regression, a network trained by regression, and one
  trained by flow matching, whose prediction is the mean of some samples.

Axes: T frames, N rows, C channels, H height, W width, X features, P what is predicted, D dimensions of one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from dreamgen.config.settings import Settings
from dreamgen.models.idm.linear import NEIGHBORS, LinearReader, fit_linear, side_px
from dreamgen.models.idm.model import InverseDynamics, clip_background
from dreamgen.models.idm.network import IdmConfig, foreground, to_unit
from dreamgen.run.records import RobotFeatures
from finetune.idm_episodes import IdmEpisode
from finetune.idm_errors import clip_pieces
from finetune.idm_linear import episode_features, episode_targets
from finetune.inverse_dynamics import describe_robot

IMAGE_SIDE = 16  # of image and difference, which have three channels
COMPONENTS, WINDOW = 64, (-4, -2, 0, 2, 4)  # principal components, and the frames whose components a head reads
HIDDEN, STEPS, BATCH, RATE = 128, 800, 64, 2e-3
SAMPLES, EULER_STEPS = 8, 8
PIXEL_FEATURES, PIXELS, PATCH = 200, 20_000, 3  # of the learned foreground

Reader = Callable[[IdmEpisode], np.ndarray]
Actions = list[np.ndarray]


def tries(
    features: RobotFeatures, settings: Settings, train: list[IdmEpisode], held_out: list[IdmEpisode], seed: int
) -> tuple[IdmConfig, dict[str, Actions]]:
    """Return the configuration of a fold, and the actions of its held-out episodes in each way of predicting them."""
    config, num_frames = describe_robot(features, settings, train), settings.video.num_frames
    targets = [episode_targets(config, episode) for episode in train]
    found: dict[str, Actions] = {}
    for name, reader in inputs(train, num_frames, seed).items():
        fitted = fit_linear([reader(episode) for episode in train], targets)
        outputs = [reader(episode) @ fitted.weight_XP + fitted.bias_P for episode in held_out]
        found[f"input: {name}"] = as_actions(config, held_out, outputs, num_frames)
    rows = [episode_features(episode.small_TCHW, num_frames) for episode in train]
    new_rows = [episode_features(episode.small_TCHW, num_frames) for episode in held_out]
    if config.states is not None:
        outputs = relative_outputs(fit_linear(*relative_rows(rows, targets, num_frames)), new_rows, num_frames)
        fitted = fit_linear(rows, targets)
        plain = [x_TX @ fitted.weight_XP + fitted.bias_P for x_TX in new_rows]
        found["target: absolute, first state known"] = as_actions(config, held_out, plain, num_frames, True)
        found["target: relative, first state known"] = relative_actions(config, held_out, outputs, plain, num_frames)
    for name, outputs in heads(rows, targets, new_rows, config.binary_outputs(), seed).items():
        found[f"head: {name}"] = as_actions(config, held_out, outputs, num_frames)
    return config, found


def as_actions(
    config: IdmConfig, episodes: list[IdmEpisode], outputs: list[np.ndarray], num_frames: int, known: bool = False
) -> Actions:
    """Return what the model makes of outputs_TP of episodes: votes, units, and the first state where it is known."""
    model, found = _Given(config), []
    for episode, output_TP in zip(episodes, outputs, strict=True):
        parts = []
        for start, stop, new in clip_pieces(len(output_TP), num_frames):
            model.given_TP = output_TP[start:stop]
            first_S = episode.state_TS[start] if known and episode.state_TS is not None else None
            parts.append(model.predict_small(episode.small_TCHW[start:stop], first_S).action_TA[new - start :])
        found.append(np.concatenate(parts))
    return found


class _Given(InverseDynamics):
    """A model whose outputs are given for each clip."""

    def __init__(self, config: IdmConfig) -> None:
        super().__init__(replace(config, num_models=1))
        self.given_TP: np.ndarray = np.zeros((0, 0))

    def outputs(self, small_TCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what was given."""
        binary_P, mean_TP = self.config.binary_outputs(), self.given_TP.astype(np.float64)
        mean_TP[:, binary_P] = mean_TP[:, binary_P].clip(0, 1)
        return mean_TP, np.zeros_like(mean_TP)


def inputs(train: list[IdmEpisode], num_frames: int, seed: int) -> dict[str, Reader]:
    """Return what turns an episode into features_TX, by the name of the input."""
    learned = learn_foreground(train, num_frames, seed)

    def image(small_TCHW: np.ndarray, _: np.ndarray) -> torch.Tensor:
        return to_unit(torch.from_numpy(small_TCHW))

    def difference(small_TCHW: np.ndarray, background_CHW: np.ndarray) -> torch.Tensor:
        return to_unit(torch.from_numpy(small_TCHW)) - to_unit(torch.from_numpy(background_CHW))

    def both(small_TCHW: np.ndarray, background_CHW: np.ndarray) -> torch.Tensor:
        return torch.maximum(learned(small_TCHW), mask_of(small_TCHW, background_CHW))

    return {
        "image": lambda episode: _features(episode, num_frames, image, IMAGE_SIDE),
        "difference from the background": lambda episode: _features(episode, num_frames, difference, IMAGE_SIDE),
        "foreground": lambda episode: episode_features(episode.small_TCHW, num_frames),
        "learned foreground": lambda episode: _features(episode, num_frames, lambda x, _: learned(x), side_px(1)),
        "foreground or learned foreground": lambda episode: _features(episode, num_frames, both, side_px(1)),
    }


def _features(
    episode: IdmEpisode, num_frames: int, channels: Callable[[np.ndarray, np.ndarray], torch.Tensor], side: int
) -> np.ndarray:
    parts = []
    for start, stop, new in clip_pieces(len(episode.small_TCHW), num_frames):
        clip_TCHW = episode.small_TCHW[start:stop]
        picture_TCHW = channels(clip_TCHW, clip_background(clip_TCHW))
        frames = nn.functional.interpolate(picture_TCHW, (side, side), mode="area").flatten(1)
        rows = torch.arange(len(frames))
        near = [frames[(rows + step).clamp(0, len(frames) - 1)] for step in NEIGHBORS]
        parts.append(torch.cat(near, dim=1).numpy()[new - start :])
    return np.concatenate(parts)


def mask_of(small_TCHW: np.ndarray, background_CHW: np.ndarray) -> torch.Tensor:
    """Return the foreground of the first camera as the model computes it, mask_T1HW."""
    return foreground((to_unit(torch.from_numpy(small_TCHW)) - to_unit(torch.from_numpy(background_CHW)))[:, :3])


def learn_foreground(train: list[IdmEpisode], num_frames: int, seed: int) -> Callable[[np.ndarray], torch.Tensor]:
    """Learn which pixels look like what moves: ridge regression on random features of a patch (Rahimi and Recht, 2008).

    Nobody drew masks: the foreground that the model computes is what is learned, from appearance alone.
    """
    random = torch.Generator().manual_seed(seed)
    size = 3 * PATCH**2
    weight = torch.randn(PIXEL_FEATURES, size, generator=random) / size**0.5
    shift = torch.randn(PIXEL_FEATURES, 1, generator=random)

    def pixel_features(small_TCHW: np.ndarray) -> torch.Tensor:
        half_TCHW = nn.functional.avg_pool2d(to_unit(torch.from_numpy(small_TCHW[:, :3])), 2)
        patches = nn.functional.unfold(half_TCHW, PATCH, padding=PATCH // 2)
        return torch.relu(2 * weight @ patches + shift)  # T, features, pixels

    inputs_NX, wanted_N = [], []
    for episode in train:
        for start, stop, _ in clip_pieces(len(episode.small_TCHW), num_frames):
            clip_TCHW = episode.small_TCHW[start:stop:4]
            mask = nn.functional.avg_pool2d(mask_of(clip_TCHW, clip_background(episode.small_TCHW[start:stop])), 2)
            rows = pixel_features(clip_TCHW).transpose(1, 2).flatten(0, 1)
            chosen = torch.randint(len(rows), (PIXELS // len(train),), generator=random)
            inputs_NX.append(rows[chosen])
            wanted_N.append(mask.flatten()[chosen])
    input_NX = torch.cat(inputs_NX).double()
    input_NX = torch.cat([input_NX, torch.ones(len(input_NX), 1)], dim=1)
    gram = input_NX.T @ input_NX / len(input_NX) + 1e-3 * torch.eye(input_NX.shape[1])
    solved = torch.linalg.solve(gram, input_NX.T @ torch.cat(wanted_N).double() / len(input_NX)).float()

    def learned(small_TCHW: np.ndarray) -> torch.Tensor:
        parts = []
        for part in np.array_split(small_TCHW, max(1, len(small_TCHW) // 32)):
            mask = (solved[:-1] @ pixel_features(part) + solved[-1]).clamp(0, 1)
            parts.append(mask.reshape(len(part), 1, part.shape[2] // 2, part.shape[3] // 2))
        return nn.functional.interpolate(torch.cat(parts), small_TCHW.shape[2:])

    return learned


def relative_rows(
    rows: Sequence[np.ndarray], targets: Sequence[np.ndarray], num_frames: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return features and targets as changes since the first frame of overlapping clips."""
    changes: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for pair in zip(rows, targets, strict=True):
        last = max(0, len(pair[0]) - num_frames)
        starts = sorted({*range(0, last, max(1, num_frames // 4)), last})
        for values, found in zip(pair, changes, strict=True):
            found.append(np.concatenate([values[s : s + num_frames] - values[s] for s in starts]))
    return changes


def relative_outputs(fitted: LinearReader, rows: Sequence[np.ndarray], num_frames: int) -> list[np.ndarray]:
    """Return the predicted change since the first frame of its clip, for each frame of episodes."""
    found = []
    for x_TX in rows:
        pieces = clip_pieces(len(x_TX), num_frames)
        parts = [(x_TX[start:stop] - x_TX[start])[new - start :] for start, stop, new in pieces]
        found.append(np.concatenate(parts) @ fitted.weight_XP + fitted.bias_P)
    return found


def relative_actions(
    config: IdmConfig, episodes: list[IdmEpisode], changes: list[np.ndarray], plain: list[np.ndarray], num_frames: int
) -> Actions:
    """Return actions that begin at the known state, by the demonstrations' gap, and follow the predicted changes.

    Actions whose state is not known by their name are the absolute ones.
    """
    actions, states = config.actions, config.states
    assert states is not None
    found = as_actions(config, episodes, plain, num_frames, known=True)
    columns = {actions.names[d]: column for column, d in enumerate(actions.moving().tolist())}
    for episode, action_TA, change_TP in zip(episodes, found, changes, strict=True):
        assert episode.state_TS is not None
        for name in config.followed if not actions.rotations else ():
            d, s = actions.names.index(name), states.names.index(name)
            gap = actions.mean[d] - states.mean[s]
            for start, stop, new in clip_pieces(len(action_TA), num_frames):
                change_T = change_TP[new:stop, columns[name]] * actions.std[d]
                action_TA[new:stop, d] = episode.state_TS[start, s] + gap + change_T
    return found


def heads(
    rows: Sequence[np.ndarray], targets: Sequence[np.ndarray], new_rows: Sequence[np.ndarray], binary_P: np.ndarray,
    seed: int,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Return outputs_TP of new episodes for each head, which all read the same windows of principal components."""
    every_NX = np.concatenate(rows)
    mean_X = every_NX.mean(axis=0)
    some_NX = (every_NX - mean_X)[:: max(1, len(every_NX) // 2000)]
    basis_XF = np.linalg.svd(some_NX, full_matrices=False)[2][:COMPONENTS].T
    scale = float(((every_NX - mean_X) @ basis_XF).std())
    windows, new_windows = (
        [_windows((x_TX - mean_X) @ basis_XF / scale) for x_TX in values] for values in (rows, new_rows)
    )
    ridge = fit_linear(windows, targets)
    found = {"ridge regression": [x_TX @ ridge.weight_XP + ridge.bias_P for x_TX in new_windows]}
    input_NX, target_NP = (torch.from_numpy(np.concatenate(x)).float() for x in (windows, targets))
    for name, flow in (("network, regression", False), ("network, flow matching", True)):
        torch.manual_seed(seed)
        net = train_head(input_NX, target_NP, flow)
        found[name] = [head_outputs(net, torch.from_numpy(x).float(), len(binary_P), flow) for x in new_windows]
    return found


def _windows(component_TF: np.ndarray) -> np.ndarray:
    rows = np.arange(len(component_TF))
    return np.concatenate([component_TF[np.clip(rows + step, 0, len(rows) - 1)] for step in WINDOW], axis=1)


def train_head(input_NX: torch.Tensor, target_NP: torch.Tensor, flow: bool) -> nn.Module:
    """Train a head by the squared error of its prediction, or of the velocity from noise to target."""
    num_outputs = target_NP.shape[1]
    size = input_NX.shape[1] + (num_outputs + 1 if flow else 0)
    net = nn.Sequential(
        nn.Linear(size, HIDDEN), nn.SiLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Dropout(0.1),
        nn.Linear(HIDDEN, num_outputs),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(input_NX), (BATCH,))
        x_BX, y_BP = input_NX[chosen], target_NP[chosen]
        if flow:
            noise_BP, time_B1 = torch.randn_like(y_BP), torch.rand(BATCH, 1)
            mixed_BP = (1 - time_B1) * noise_BP + time_B1 * y_BP
            loss = (net(torch.cat([x_BX, mixed_BP, time_B1], dim=1)) - (y_BP - noise_BP)).square().mean()
        else:
            loss = (net(x_BX) - y_BP).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def head_outputs(net: nn.Module, input_TX: torch.Tensor, num_outputs: int, flow: bool) -> np.ndarray:
    """Return outputs_TP; of flow matching, the mean of `SAMPLES` samples by Euler's method."""
    if not flow:
        return net(input_TX).numpy()
    total = torch.zeros(len(input_TX), num_outputs)
    for _ in range(SAMPLES):
        value_TP = torch.randn(len(input_TX), num_outputs)
        for step in range(EULER_STEPS):
            time_T1 = torch.full((len(input_TX), 1), step / EULER_STEPS)
            value_TP = value_TP + net(torch.cat([input_TX, value_TP, time_T1], dim=1)) / EULER_STEPS
        total += value_TP
    return (total / SAMPLES).numpy()
