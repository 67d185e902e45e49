"""How well inverse dynamics predicts the actions of demonstrations that it was not trained on.

Each episode of a LeRobot dataset, or each of some folds, is held out in turn. The model is trained on the others and
labels the held-out ones in clips, beside baselines that need no model:

    python benchmarks/idm.py --demos DATASET --variants default no_augment --save benchmarks/results/idm.json
    python benchmarks/idm.py --demos DATASET --num_train 1 2 3 4 --round_trip

`--round_trip` measures the same clips after the mini model's VAE. Every figure is pooled over all held-out frames; R^2
is that of `finetune.idm_errors.standardized_r2`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.models.idm.model import InverseDynamics, small_frames
from dreamgen.prepare.stage import prepare
from dreamgen.run.files import read_json
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainingState
from finetune.idm_episodes import IdmEpisode, read_episodes
from finetune.idm_errors import baseline_vectors, clip_pieces, predict_pieces, standardized_r2
from finetune.idm_training import prepare_training, take_steps
from finetune.inverse_dynamics import describe_robot, make_accelerator, new_model
from finetune.training_log import TrainingLog

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no augmentation": {"augment": False},
    "one network": {"num_models": 1},
    "single frames": {"horizon": 2},
    "windows of 16": {"horizon": 16},
    "states left out": {"predict_state": False},
    "larger images": {"image_px": 96},
    "strong weight decay": {"weight_decay": 0.5},
}


def main() -> None:
    """Measure the variants and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", required=True, help="LeRobot dataset")
    parser.add_argument("--size", type=int, nargs=2, default=(144, 256), help="height and width of a clip")
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--fps", type=int, default=16)
    parser.add_argument("--variants", nargs="*", default=["default"], choices=VARIANTS)
    parser.add_argument("--num_train", type=int, nargs="*", default=[], help="also train on so many episodes")
    parser.add_argument("--folds", type=int, help="hold out so many parts in turn; default: each episode")
    parser.add_argument("--max_folds", type=int, help="measure only the first of them")
    parser.add_argument("--num_steps", type=int, default=1500)
    parser.add_argument("--set", nargs="*", default=[], help="settings of all variants, such as batch_size=4")
    parser.add_argument("--round_trip", action="store_true")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common = {"num_steps": arguments.num_steps, "validate_every": 10**9, "checkpoint_every": 10**9, "log_every": 100}
    common |= {word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in arguments.set}
    results: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(arguments).items() if k != "save"}}
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(arguments, Path(folder) / "run", common)
        prepare(settings)
        for name in arguments.variants:
            results[name] = cross_validate(settings, common | VARIANTS[name], arguments)
            save(results, arguments.save)
        for number in arguments.num_train:
            results[f"{number} episodes"] = cross_validate(settings, common, arguments, number)
            save(results, arguments.save)
    print(json.dumps(results))


def make_settings(arguments: argparse.Namespace, out: Path, idm: dict[str, Any]) -> Settings:
    """Return the settings of a run."""
    height, width = arguments.size
    video = {"height": height, "width": width, "num_frames": arguments.num_frames, "fps": arguments.fps}
    model = {"path": "mini", "device": "cpu", "dtype": "float32"}
    return settings_from_dict({"out": str(out), "demos": arguments.demos, "model": model, "video": video, "idm": idm})


def cross_validate(
    settings: Settings, idm: dict[str, Any], arguments: argparse.Namespace, num_train: int | None = None
) -> dict[str, Any]:
    """Train without each fold, and return R^2 of each way of predicting, overall and for each part of the robot."""
    start_s, run = time.monotonic(), RunFolder.of(settings)
    settings = replace(settings, idm=replace(settings.idm, **idm))
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    episodes = read_episodes(run, settings)
    folds = np.array_split(np.arange(len(episodes)), arguments.folds or len(episodes))[: arguments.max_folds]
    collected: dict[str, list[Any]] = {}
    stats = None
    for number, fold in enumerate(folds):
        held_out = [episodes[i] for i in fold]
        # After the held-out one, so that each episode is left out equally often.
        others = [episodes[i % len(episodes)] for i in range(fold[-1] + 1, fold[0] + len(episodes))][:num_train]
        model = fit(settings, features, others, held_out, number)
        stats = model.config.actions
        ways = predictions(model, others, held_out, settings, arguments.round_trip)
        mean_D, std_D = np.asarray(stats.mean), np.asarray(stats.std)
        truth_TD = np.concatenate([episode.action_TA for episode in held_out])
        # In units of this fold's mean and deviation, so that folds can be pooled.
        scale = np.where(std_D > 0, std_D, 1)
        collected.setdefault("truth", []).append((truth_TD - mean_D) / scale)
        collected.setdefault("mae_truth", []).append(truth_TD)
        for name, values in ways.items():
            collected.setdefault(name, []).append((np.concatenate(values) - mean_D) / scale)
    assert stats is not None
    unit = replace(stats, mean=(0.0,) * len(stats.mean), std=(1.0,) * len(stats.std))
    truth_TD, moving = np.concatenate(collected.pop("truth")), stats.moving().tolist()
    collected.pop("mae_truth")
    rows = {}
    for name, values in collected.items():
        guess_TD = np.concatenate(values)
        groups = {g: [d for d in dims if d in moving] for g, dims in stats.group_dims().items()}
        groups = {"all moving": moving, **{g: dims for g, dims in groups.items() if dims}}
        rows[name] = {g: standardized_r2(truth_TD, guess_TD, unit, dims) for g, dims in groups.items()}
    return {
        "r2": rows, "num_folds": len(folds), "num_train": num_train or len(episodes) - len(folds[0]),
        "num_frames": len(truth_TD), "seconds": round(time.monotonic() - start_s), "idm": idm,
    }  # fmt: skip


def fit(
    settings: Settings, features: RobotFeatures, train: list[IdmEpisode], held_out: Sequence[IdmEpisode], number: int
) -> InverseDynamics:
    """Train a model as `dreamgen finetune_idm` does, without its checks and files."""
    fold = replace(settings, out=f"{settings.out}/fold_{number}")
    RunFolder.of(fold).finetune_idm_logs.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(fold)
    model = new_model(describe_robot(features, fold, train), fold)
    training = prepare_training(fold, accelerator, model, train, held_out[:1], TrainingState(), None)
    with TrainingLog(accelerator, training.logs / "loss.csv", fold.idm, name=f"fold {number}") as log:
        take_steps(training, log)
    return model


def predictions(
    model: InverseDynamics, train: list[IdmEpisode], held_out: list[IdmEpisode], settings: Settings, round_trip: bool
) -> dict[str, list[np.ndarray]]:
    """Return the actions of the held-out episodes in each way of predicting them."""
    num_frames, config = settings.video.num_frames, model.config
    names = config.states.names if config.states else ()
    ways = {
        "model": [predict_pieces(model, e, num_frames)["action"] for e in held_out],
        **baseline_vectors(train, held_out, lambda e: e.action_TA, config.actions, names, num_frames),
    }
    if config.states:
        ways["model, first state known"] = [predict_pieces(model, e, num_frames, True)["action"] for e in held_out]
    if round_trip:
        returned = [through_vae(e, settings) for e in held_out]
        ways["model, after the VAE"] = [predict_pieces(model, e, num_frames)["action"] for e in returned]
    return ways


def through_vae(episode: IdmEpisode, settings: Settings) -> IdmEpisode:
    """Return an episode whose frames went through the mini model's VAE, in clips of 4k + 1 frames."""
    from dreamgen.models.cosmos_predict25.loading import load_vae
    from dreamgen.models.world_model import resolve_world_model

    vae: Any = load_vae(resolve_world_model(settings.model, RunFolder.of(settings))).eval()
    video_TCHW, parts = episode.small_TCHW, []
    for start, stop, new in clip_pieces(len(video_TCHW), 25):
        part = video_TCHW[start:stop].transpose(0, 2, 3, 1)
        large = small_frames(part, 128, [(0, 0, 1, 1)])  # as mini was trained
        video_1CTHW = torch.from_numpy(large.transpose(1, 0, 2, 3)[None].copy()).float() / 127.5 - 1
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(video_1CTHW).latent_dist.mode()).sample[0]
        frames = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
        parts.append(small_frames(frames, video_TCHW.shape[-1], [(0, 0, 1, 1)])[new - start :])
    return replace(episode, small_TCHW=np.concatenate(parts))


def save(results: dict[str, Any], path: Path | None) -> None:
    """Write what was measured so far."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
