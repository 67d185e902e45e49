"""Training set -> the inverse-dynamics model that labels generated clips, with its error on held-out demonstrations.

Axes: N pairs of frames, K rows of a pair, T frames, H height, W width, C channels, D dimensions, P network outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dreamgen.config.settings import IdmSettings, Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.errors import UserError, quoted
from dreamgen.models.devices import resolve_device
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.network import STRIDE_PX, IdmConfig, pair_loss, to_unit
from dreamgen.models.idm.vector_stats import VectorStats
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_folder, read_json, write_text
from dreamgen.run.idm_error import IdmError
from dreamgen.run.records import RobotFeatures, StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.idm_episodes import IdmEpisode, read_episodes, split_episodes
from finetune.idm_errors import Vectors, baseline_vectors, curves_svg, predict_episode, vector_errors

BACKGROUND_FRAMES = 8  # of a window, averaged: labeling averages all frames, training a sample of them
WEIGHT_DECAY, MAX_GRAD_NORM, WARMUP_SHARE = 1e-2, 1.0, 0.1
COLOR_MIX, COLOR_SHIFT, MAX_SHIFT_SHARE = 0.5, 0.2, 0.04  # chosen by cross-validation on GR1 episodes


def train_inverse_dynamics(settings: Settings) -> StageResult:
    """Train on the demonstrations' actions and states and write `idm/`, whole or not at all.

    Args:
        settings: Of the run; `idm` holds the settings of model and training.

    Returns:
        The model with its held-out errors; a note warns if it is no better than the demonstrations' mean.

    Raises:
        UserError: if the training set has no actions or cannot be used, or the run has a model already.
    """
    run, idm = RunFolder.of(settings), settings.idm
    check_can_start(run, idm)
    device = resolve_device(settings.model.device)
    episodes = read_episodes(run, settings)
    train, held_out, how = split_episodes(episodes, idm.held_out, settings.seed)
    config = describe_robot(run, settings, train)
    model = fit(config, train, settings, device)
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    measured = measure(model, train, held_out, settings.video.num_frames, features.modality)
    model = InverseDynamics(replace(config, held_out={"how": how, **measured}), model.network)
    first = held_out[0]
    guess_TA = predict_episode(model, first, settings.video.num_frames)[0]
    with atomic_folder(run.idm) as folder:
        model.save(folder)
        write_text(folder / "held_out.svg", curves_svg(first.action_TA, guess_TA, config.actions, first.name))
    action = measured["action"]
    metrics = {
        "held_out_mae": action["mae"],
        "held_out_r2": action["r2"],
        "held_out_binary_accuracy": action["binary_accuracy"],
        **{f"{name}_mae": baseline["mae"] for name, baseline in action["baselines"].items()},
        **{f"{name}_r2": baseline["r2"] for name, baseline in action["baselines"].items()},
        "state_held_out_mae": measured["state"]["mae"] if "state" in measured else None,
        "train_mae": action["train_mae"],
        "num_train_episodes": len(train),
        "num_held_out_frames": measured["num_frames"],
    }
    metrics = {name: value for name, value in metrics.items() if value is not None}
    outputs = {"idm": run.idm, "curves": run.idm / "held_out.svg"}
    return StageResult("inverse dynamics", outputs, metrics, describe_errors(action, how))


def check_can_start(run: RunFolder, idm: IdmSettings) -> None:
    """Refuse early what would fail after minutes.

    Raises:
        UserError: if the model exists, or its image size does not fit the encoder.
    """
    if run.idm.exists():
        raise UserError(
            f"{run.idm} already exists",
            next_step=f"dreamgen label --out {quoted(run.root)} uses it; remove it to train again",
        )
    if idm.image_px < STRIDE_PX or idm.image_px % STRIDE_PX:
        raise UserError("idm.image_px does not fit", actual=idm.image_px, allowed=f"multiples of {STRIDE_PX}")


def describe_robot(run: RunFolder, settings: Settings, train: list[IdmEpisode]) -> IdmConfig:
    """Measure the actions and states of the training episodes, and of no held-out one.

    Raises:
        UserError: if no action ever changes.
    """
    features = RobotFeatures.from_dict(read_json(run.need(run.train / "features.json", "prepare")))
    actions = VectorStats.measure(np.concatenate([e.action_TA for e in train]), features.action_names)
    states = None
    if state_vectors := states_of(train):
        states = VectorStats.measure(np.concatenate(state_vectors), features.state_names)
    if not len(actions.moving()):
        raise UserError("no action of the training demonstrations ever changes, so there is nothing to learn")
    # Both frames of a pair are in one clip.
    horizon = min(settings.idm.horizon, settings.video.num_frames - 1)
    return IdmConfig(horizon, settings.idm.image_px, settings.idm.width, settings.video.fps, actions, states)


def fit(config: IdmConfig, train: list[IdmEpisode], settings: Settings, device: torch.device) -> InverseDynamics:
    """Train a new network; on a CPU the same seed gives the same weights.

    Args:
        config: From `describe_robot`.
        train: Episodes to draw pairs of frames from.
        settings: Of the run.
        device: To train on.

    Returns:
        The model on the device.
    """
    idm = settings.idm
    torch.manual_seed(derived_seed(settings.seed, "idm", "weights"))
    random = np.random.default_rng(derived_seed(settings.seed, "idm", "pairs"))
    model = InverseDynamics(config).to(device)
    network, votes_P = model.network.train(), torch.from_numpy(config.binary_outputs()).to(device)
    targets = [_targets(config, episode) for episode in train]
    optimizer = torch.optim.AdamW(network.parameters(), lr=idm.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, idm.learning_rate, total_steps=idm.num_steps + 1, pct_start=WARMUP_SHARE
    )
    with Progress("inverse dynamics: train", idm.num_steps, "steps") as progress:
        for _ in range(idm.num_steps):
            pictures, target_NKP, gap_N = draw_pairs(train, targets, config, settings, random)
            first, last, background = change_colors(to_unit(pictures.to(device)), random)
            target_NKP, gap_N = target_NKP.to(device), gap_N.to(device)
            features = network.encode(torch.cat([first, last]), torch.cat([background, background]))
            first_features, last_features = features.chunk(2)
            outputs_NKP = network.rows(first_features, last_features, gap_N)
            loss = pair_loss(outputs_NKP, target_NKP, gap_N, votes_P)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            progress.add(note=f"loss {loss.item():.3f}")
    return model


def draw_pairs(
    train: list[IdmEpisode],
    targets: list[np.ndarray],
    config: IdmConfig,
    settings: Settings,
    random: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw pairs of frames, each within a window as long as a clip, as in labeling.

    Half of the pairs are as far apart as the horizon allows, which labeling uses most; the others are closer. Each is
    shifted by a few pixels, as no camera is mounted exactly where that of the demos was.

    Returns:
        pictures (first, last and background: 3, N, C, H, W, 0-255), target_NKP and gap_N.
    """
    lengths = np.array([len(episode.small_TCHW) for episode in train])
    image_px, pictures, rows, gaps = config.image_px, [], [], []
    pixels, reach = np.arange(image_px), round(MAX_SHIFT_SHARE * image_px)
    for number in random.choice(len(train), settings.idm.batch_size, p=lengths / lengths.sum()):
        small_TCHW, target_TP = train[number].small_TCHW, targets[number]
        num_frames = min(settings.video.num_frames, len(small_TCHW))
        start = random.integers(len(small_TCHW) - num_frames + 1)
        longest = min(config.horizon, num_frames - 1)
        gap = longest if random.random() < 0.5 else random.integers(longest + 1)
        first = start + random.integers(num_frames - gap)
        seen = start + random.integers(num_frames, size=BACKGROUND_FRAMES)
        background_CHW = small_TCHW[seen].mean(axis=0, dtype=np.float32)
        together = np.stack([small_TCHW[first], small_TCHW[first + gap], background_CHW])
        y, x = (np.clip(pixels + random.integers(-reach, reach + 1), 0, image_px - 1) for _ in range(2))
        pictures.append(together[..., y[:, None], x])
        padded_KP = np.zeros((config.horizon + 1, target_TP.shape[1]), np.float32)
        padded_KP[: gap + 1] = target_TP[first : first + gap + 1]
        rows.append(padded_KP)
        gaps.append(gap)
    stacked = np.stack(pictures, axis=1)
    return torch.from_numpy(stacked), torch.from_numpy(np.stack(rows)), torch.tensor(gaps)


def change_colors(pictures: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Mix and shift colors, equally in a pair and its background: light and material differ in generated clips.

    Args:
        pictures: (3, N, C, H, W), -1..1.
        random: Generator of the changes, one for each pair.

    Returns:
        The same shape.
    """
    num = pictures.shape[1]
    mix = np.eye(3) + COLOR_MIX * random.standard_normal((num, 3, 3))
    shift = COLOR_SHIFT * random.standard_normal((num, 3, 1))
    mix, shift = (torch.tensor(x, dtype=torch.float32, device=pictures.device) for x in (mix, shift))
    return (mix @ pictures.flatten(3) + shift).view_as(pictures)


def measure(
    model: InverseDynamics,
    train: list[IdmEpisode],
    held_out: list[IdmEpisode],
    num_frames: int,
    modality: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Label the held-out episodes as clips are labeled, and compare with the robot's actions and with baselines.

    Args:
        model: The trained model.
        train: Training episodes, for the training error and the baselines.
        held_out: Held-out episodes.
        num_frames: Of a clip.
        modality: modality.json of the demonstrations, which names the parts of the robot.

    Returns:
        `action` and, if there are states, `state`, from `vector_errors`; `action` also has `train_mae`.
    """
    config = model.config
    state_names = config.states.names if config.states else ()
    guesses = [predict_episode(model, episode, num_frames) for episode in held_out]

    def errors(number: int, stats: VectorStats, vectors: Vectors) -> dict[str, Any]:
        groups = vector_groups(stats, (modality or {}).get(("action", "state")[number]))
        baselines = baseline_vectors(train, held_out, vectors, stats, state_names, num_frames)
        truths = [truth_TD for episode in held_out if (truth_TD := vectors(episode)) is not None]
        return vector_errors(truths, [guess[number] for guess in guesses], stats, groups, baselines)

    measured = {
        "episodes": [episode.name for episode in held_out],
        "num_frames": sum(len(episode.action_TA) for episode in held_out),
        "action": errors(0, config.actions, lambda episode: episode.action_TA),
    }
    train_error = [np.abs(predict_episode(model, e, num_frames)[0] - e.action_TA).mean(axis=0) for e in train]
    weights = [len(e.action_TA) for e in train]
    moving = config.actions.moving()
    measured["action"]["train_mae"] = float(np.average(train_error, axis=0, weights=weights)[moving].mean())
    if config.states:
        measured["state"] = errors(1, config.states, lambda episode: episode.state_TS)
    return measured


def vector_groups(stats: VectorStats, parts: dict[str, Any] | None) -> dict[str, list[int]]:
    """Return the dimensions of each part of the robot: the slices of modality.json, or one part of all dimensions."""
    return {name: [*range(part["start"], part["end"])] for name, part in (parts or {}).items() if "start" in part} or {
        "all": [*range(len(stats.names))]
    }


def describe_errors(action: dict[str, Any], how: str) -> list[str]:
    """Describe the held-out error beside the baselines, with a warning if the model is no better than one of them."""
    error = IdmError.of_config({"held_out": {"how": how, "action": action}})
    assert error is not None
    warning = error.warning()
    return [error.text()] if warning is None else [error.text(), warning]


def states_of(episodes: list[IdmEpisode]) -> list[np.ndarray]:
    """Return state_TS of each episode; empty if the demonstrations have no states."""
    return [episode.state_TS for episode in episodes if episode.state_TS is not None]


def _targets(config: IdmConfig, episode: IdmEpisode) -> np.ndarray:
    vectors = zip(config.vectors(), [episode.action_TA, *states_of([episode])], strict=False)
    return np.concatenate([stats.to_network(values_TD) for stats, values_TD in vectors], axis=1)
