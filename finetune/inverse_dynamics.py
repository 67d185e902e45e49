"""Training set -> the inverse-dynamics model that labels generated clips, with its error on held-out demonstrations.

Axes: T frames, D dimensions of one vector, S state.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from dreamgen.config.settings import IdmSettings, Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.errors import UserError, quoted
from dreamgen.models.devices import resolve_device
from dreamgen.models.idm.first_state import followed_names
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.network import STRIDE_PX, IdmConfig
from dreamgen.models.idm.next_state import fit_next_state
from dreamgen.models.idm.pretrained import PretrainedEncoder, read_encoder
from dreamgen.models.idm.vector_stats import VectorStats
from dreamgen.run.files import atomic_folder, read_json, write_text
from dreamgen.run.idm_error import IdmError
from dreamgen.run.records import RobotFeatures, StageResult
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import step_of, whole_checkpoints
from finetune.idm_episodes import IdmEpisode, read_episodes, read_extra_episodes, split_episodes, view_shares
from finetune.idm_errors import Vectors, baseline_vectors, curves_svg, predict_pieces, uncertainty_scale, vector_errors
from finetune.idm_linear import read_linearly, with_linear
from finetune.idm_training import prepare_training, take_steps
from finetune.resume import CHECKPOINTS, fixed_values, make_folder, resume_command, state_of
from finetune.stopping import on_main_process
from finetune.training_log import TrainingLog
from finetune.windows import read_training_set


def finetune_idm(settings: Settings, resume: bool = False) -> StageResult:
    """Train on the demonstrations' actions and states and write `idm/`, whole or not at all.

    Args:
        settings: Of the run; `idm` holds the settings of model and training.
        resume: Continue from the last checkpoint if there is one.

    Returns:
        The model with its held-out errors, and a warning if it is no better than a baseline; or, after Ctrl-C or
        SIGTERM, the checkpoint to continue from.

    Raises:
        UserError: if the training set has no actions or cannot be used, or the run has a model already.
    """
    run, idm, num_frames = RunFolder.of(settings), settings.idm, settings.video.num_frames
    check_can_start(run, idm)
    features = RobotFeatures.from_dict(read_json(run.need(run.train / "features.json", "prepare")))
    train, held_out, how = split_episodes(read_episodes(run, settings), idm.held_out, settings.seed)
    validation, test, how = divide_held_out(held_out, how, idm.patience)
    train = [*train, *read_extra_episodes(settings, features)]
    accelerator = make_accelerator(settings)
    model = new_model(describe_robot(features, settings, train), settings)
    logs = run.finetune_idm_logs
    checkpoints = whole_checkpoints(logs / CHECKPOINTS) if resume else []
    checkpoint = checkpoints[-1] if checkpoints else None
    fixed = fixed_values(settings, read_training_set(run, settings.video), _content(train), accelerator.num_processes,
                         "idm")  # fmt: skip
    start = state_of(checkpoint, {**fixed, "video": repr(settings.video), "seed": repr(settings.seed)})
    notes: list[str] = []

    def write_folder() -> None:
        notes.extend(make_folder(logs, checkpoint))
        run.record(settings, ["idm"])

    on_main_process(accelerator, logs, write_folder)
    training = prepare_training(settings, accelerator, model, train, validation, start, checkpoint)
    with TrainingLog(accelerator, logs / "loss.csv", idm, None, start.step, start.losses, "inverse dynamics") as log:
        stopped, best_step = take_steps(training, log)
    if stopped is not None:
        metrics = {"interrupted": True, "step": step_of(stopped), "num_steps": idm.num_steps}
        how_to = f"stopped; continue with:  {resume_command('finetune_idm', settings, accelerator.num_processes)}"
        accelerator.end_training()
        return StageResult("finetune_idm", {"checkpoint": stopped}, metrics, [*notes, how_to], partial=True)
    model = with_linear(model, read_linearly(model.config, train, num_frames), validation, num_frames)
    measured = measure(model, train, test, num_frames)
    held = {"how": how, "step": best_step, **measured}
    model = model.measured(held_out=held, uncertainty_scale=measured["action"]["uncertainty_scale"])
    on_main_process(accelerator, run.idm, lambda: write_model(run, model, test[0], num_frames))
    accelerator.end_training()  # leaves the process group
    outputs = {"idm": run.idm, "curves": run.idm / "held_out.svg", "loss": logs / "loss.csv"}
    notes += describe_errors(measured["action"], how)
    return StageResult("finetune_idm", outputs, result_metrics(measured, len(train)), notes)


def check_can_start(run: RunFolder, idm: IdmSettings) -> None:
    """Refuse early what would fail after minutes.

    Raises:
        UserError: if the model exists, or its image size does not fit the encoder.
    """
    if run.idm.exists():
        raise UserError(
            f"{run.idm} already exists",
            next_step=f"dreamgen label --out {quoted(run.root)} uses it; move it away to train again",
        )
    if idm.image_px < STRIDE_PX or idm.image_px % STRIDE_PX:
        raise UserError("idm.image_px does not fit", actual=idm.image_px, allowed=f"multiples of {STRIDE_PX}")


def divide_held_out(
    held_out: list[IdmEpisode], how: str, patience: int
) -> tuple[list[IdmEpisode], list[IdmEpisode], str]:
    """Return the episodes that choose the best step, those that measure the error, and a description of the split."""
    if not patience:
        return held_out, held_out, how
    if len(held_out) == 1:
        return held_out, held_out, f"{how}, which also chose the best step"
    half = len(held_out) // 2
    return held_out[:half], held_out[half:], f"{how}: {half} chose the best step, the others measured the error"


def make_accelerator(settings: Settings) -> Accelerator:
    """Create the accelerator: bf16 autocast over float32 weights on a GPU, float32 on a CPU."""
    device = resolve_device(settings.model.device)
    is_gpu = device.type == "cuda"
    if is_gpu and device.index is not None:
        torch.cuda.set_device(device)
    # In `dreamgen run` the adapter was trained before in this process, perhaps in another precision, which accelerate
    # keeps and would refuse to change.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=not is_gpu,
        mixed_precision="bf16" if is_gpu else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def describe_robot(features: RobotFeatures, settings: Settings, train: list[IdmEpisode]) -> IdmConfig:
    """Measure the actions and states of the training episodes, and of no held-out one.

    Raises:
        UserError: if no action ever changes.
    """
    idm, modality = settings.idm, features.modality or {}
    action_values, states, known = [episode.action_TA for episode in train], None, {}
    actions = VectorStats.measure(np.concatenate(action_values), features.action_names, modality.get("action"))
    if state_values := states_of(train):
        states = VectorStats.measure(np.concatenate(state_values), features.state_names, modality.get("state"))
        known = describe_known_state(actions, states, action_values, state_values)
    if not len(actions.moving()):
        raise UserError("no action of the training demonstrations ever changes, so there is nothing to learn")
    horizon = min(idm.horizon, settings.video.num_frames, *(len(episode.action_TA) for episode in train))
    return IdmConfig(
        horizon, idm.image_px, idm.width, idm.num_models, settings.video.fps, actions, states,
        view_shares(features, settings.video.height, settings.video.width), **known,
    )  # fmt: skip


def describe_known_state(
    actions: VectorStats, states: VectorStats, action_values: list[np.ndarray], state_values: list[np.ndarray]
) -> dict[str, Any]:
    """Return the values of `IdmConfig` that say what a known state tells: of the next one, and of the actions."""
    rows = np.concatenate(action_values), np.concatenate(state_values)
    known: dict[str, Any] = {"followed": followed_names(actions, states, *rows)}
    known["next_state"] = _as_tuples(fit_next_state(state_values, action_values))
    return known


def _as_tuples(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def new_model(config: IdmConfig, settings: Settings) -> InverseDynamics:
    """Create the networks; on a CPU the same seed gives the same weights."""
    weights: dict[str, torch.Tensor] = {}
    if settings.idm.encoder is not None:
        encoder, weights = read_encoder(settings.idm.encoder, settings.idm.freeze_encoder)
        config = replace(config, encoder=encoder)
    torch.manual_seed(derived_seed(settings.seed, "idm", "weights"))
    model = InverseDynamics(config)
    for network in model.networks:
        if isinstance(network.encoder, PretrainedEncoder):
            network.encoder.tower.load_state_dict(weights)
    return model


def measure(
    model: InverseDynamics, train: list[IdmEpisode], held_out: list[IdmEpisode], num_frames: int
) -> dict[str, Any]:
    """Label the held-out episodes as clips are labeled, and compare with the robot's actions and with baselines.

    Args:
        model: The trained model.
        train: Training episodes, for the baselines.
        held_out: Held-out episodes.
        num_frames: Of a clip.

    Returns:
        `action` and, if there are states, `state`, from `vector_errors`. Both also have `known_first_state`, the
        measures of a model that is told the state of each clip's first frame; `state` has `integrated`, those of
        states that follow the predicted actions from there. `action` has `uncertainty_scale`.
    """
    config = model.config
    state_names = config.states.names if config.states else ()
    plain = [predict_pieces(model, episode, num_frames) for episode in held_out]
    known = [predict_pieces(model, e, num_frames, know_first=True) for e in held_out] if config.states else []
    summed = [predict_pieces(model, e, num_frames, True, True) for e in held_out] if config.states else []

    def errors(name: str, stats: VectorStats, vectors: Vectors) -> dict[str, Any]:
        baselines = baseline_vectors(train, held_out, vectors, stats, state_names, num_frames)
        truths = [truth_TD for episode in held_out if (truth_TD := vectors(episode)) is not None]
        ways = {"known_first_state": known, "integrated": summed if name == "state" else []}
        others = {key: [one[name] for one in value] for key, value in ways.items() if value}
        guesses, stds = ([one[key] for one in plain] for key in (name, f"{name}_std"))
        found = vector_errors(truths, guesses, stats, baselines, others)
        return {**found, "uncertainty_scale": uncertainty_scale(truths, guesses, stds, stats)}

    measured = {
        "episodes": [episode.name for episode in held_out],
        "num_frames": sum(len(episode.action_TA) for episode in held_out),
        "action": errors("action", config.actions, lambda episode: episode.action_TA),
    }
    if config.states:
        measured["state"] = errors("state", config.states, lambda episode: episode.state_TS)
    return measured


def write_model(run: RunFolder, model: InverseDynamics, episode: IdmEpisode, num_frames: int) -> None:
    """Write `idm/`: weights, configuration, and the curves of one held-out episode."""
    guess_TA = predict_pieces(model, episode, num_frames)["action"]
    with atomic_folder(run.idm) as folder:
        model.save(folder)
        curves = curves_svg(episode.action_TA, guess_TA, model.config.actions, episode.name)
        write_text(folder / "held_out.svg", curves)


def result_metrics(measured: dict[str, Any], num_train: int) -> dict[str, Any]:
    """Return the metrics of the stage's result."""
    action = measured["action"]
    metrics = {
        "held_out_mae": action["mae"],
        "held_out_r2": action["r2"],
        "held_out_binary_accuracy": action["binary_accuracy"],
        **{f"{name}_mae": baseline["mae"] for name, baseline in action["baselines"].items()},
        **{f"{name}_r2": baseline["r2"] for name, baseline in action["baselines"].items()},
        "state_held_out_mae": measured["state"]["mae"] if "state" in measured else None,
        "num_train_episodes": num_train,
        "num_held_out_frames": measured["num_frames"],
    }
    return {name: value for name, value in metrics.items() if value is not None}


def describe_errors(action: dict[str, Any], how: str) -> list[str]:
    """Describe the held-out error beside the baselines, with a warning if the model is no better than one of them."""
    error = IdmError.of_config({"held_out": {"how": how, "action": action}})
    assert error is not None
    warning = error.warning()
    return [error.text()] if warning is None else [error.text(), warning]


def states_of(episodes: list[IdmEpisode]) -> list[np.ndarray]:
    """Return state_TS of each episode; empty if the demonstrations have no states."""
    return [episode.state_TS for episode in episodes if episode.state_TS is not None]


def _content(episodes: list[IdmEpisode]) -> str:
    """Return a hash of what is trained on, so that a resumed training notices other data."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(episode.small_TCHW.tobytes() + episode.action_TA.tobytes())
    return digest.hexdigest()[:16]
