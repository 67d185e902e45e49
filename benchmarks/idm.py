"""How well inverse dynamics predicts the actions of demonstrations that it was not trained on.

Each episode of a LeRobot dataset, or each of some folds, is held out in turn. The model is trained on the others and
labels the held-out ones in clips, beside baselines that need no model:

    python benchmarks/idm.py --demos DATASET --variants default "no augmentation" --save benchmarks/results/idm.json
    python benchmarks/idm.py --demos DATASET --variants --num_train 1 2 3 4 --tries --save OUT.json

`--variants` without a name leaves the networks out, which take minutes a fold; the linear reading takes seconds.
`--num_train` draws the curve of the linear reading over the number of training episodes, the mean over all choices of
them. `--tries` compares inputs, targets and heads (see `idm_tries.py`), and `--limits` says why few episodes are not
enough (see `idm_limits.py`). `--round_trip` measures the same clips after the mini model's VAE. `--jobs` trains the
networks of so many folds side by side, in processes that share the GPUs; the figures do not depend on it.

Every figure is pooled over all held-out frames. R^2 is that of `finetune.idm_errors.standardized_r2`, in units of all
other episodes, also where only some of them are trained on: the mean of few episodes is a worse prediction, so an R^2
against it would seem to fall with each episode that is added. "within" has the mean of each held-out episode removed
from truth and prediction: what is left are the movements, without the offset.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from idm_limits import actions_from_states, block_predictions
from idm_tries import tries
from processes import MapCalls, processes

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.models.devices import resolve_device
from dreamgen.models.idm.linear import LinearReader
from dreamgen.models.idm.model import InverseDynamics, small_frames
from dreamgen.models.idm.network import IdmConfig
from dreamgen.models.idm.vector_stats import VectorStats
from dreamgen.prepare.stage import prepare
from dreamgen.run.files import read_json
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import TrainingState
from finetune.idm_episodes import IdmEpisode, read_episodes
from finetune.idm_errors import baseline_vectors, clip_pieces, predict_pieces
from finetune.idm_linear import best_share, held_out_outputs, read_linearly
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
    parser.add_argument("--max_choices", type=int, default=10, help="of the episodes of one number and fold")
    parser.add_argument("--folds", type=int, help="hold out so many parts in turn; default: each episode")
    parser.add_argument("--max_folds", type=int, help="measure only the first of them")
    parser.add_argument("--num_steps", type=int, default=1500)
    parser.add_argument("--set", nargs="*", default=[], help="settings of all variants, such as batch_size=4")
    parser.add_argument("--tries", action="store_true")
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--round_trip", action="store_true")
    parser.add_argument("--device", default="auto", help="of the networks: auto, cpu, cuda")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train networks")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common = {"num_steps": arguments.num_steps, "validate_every": 10**9, "checkpoint_every": 10**9, "log_every": 100}
    common |= {word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in arguments.set}
    results: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(arguments).items() if k != "save"}}
    with tempfile.TemporaryDirectory() as folder, processes(arguments.jobs) as each:
        settings = make_settings(arguments, Path(folder) / "run", common)
        prepare(settings)
        bench = Bench(settings, arguments, each)
        measurements = {"linear": bench.linear}
        measurements |= {f"linear, {n} episodes": partial(bench.linear, num_train=n) for n in arguments.num_train}
        measurements |= {"tries": bench.tries} if arguments.tries else {}
        measurements |= {"blocks": bench.blocks, "true states": bench.true_states} if arguments.limits else {}
        measurements |= {name: partial(bench.networks, variant=VARIANTS[name]) for name in arguments.variants}
        for name, measurement in measurements.items():
            start_s, start_cpu_s = time.monotonic(), time.process_time()
            results[name] = measurement() | {"wall_s": round(time.monotonic() - start_s, 1)}
            if arguments.jobs == 1:  # else most of it is other processes'
                results[name]["cpu_s"] = round(time.process_time() - start_cpu_s, 1)
            save(results, arguments.save)
    print(json.dumps(results))


def make_settings(arguments: argparse.Namespace, out: Path, idm: dict[str, Any]) -> Settings:
    """Return the settings of a run."""
    height, width = arguments.size
    video = {"height": height, "width": width, "num_frames": arguments.num_frames, "fps": arguments.fps}
    model = {"path": "mini", "device": arguments.device, "dtype": "float32"}
    return settings_from_dict({"out": str(out), "demos": arguments.demos, "model": model, "video": video, "idm": idm})


@dataclass(frozen=True)
class Fold:
    """What was predicted for held-out episodes.

    Args:
        reference: Statistics of all other episodes.
        truths: action_TA of each held-out episode.
        ways: Predictions of the same shapes, by the way of predicting.
    """

    reference: VectorStats
    truths: list[np.ndarray]
    ways: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Fitted:
    """Networks that were trained for a fold.

    Args:
        config: Of the model.
        weights: By name, as arrays, which go from process to process without open files.
        linear: The linear reading of the same episodes.
        share: Of the networks in the mixture that predicts the held-out episodes best.
        seen: What they predict for their training episodes.
    """

    config: IdmConfig
    weights: dict[str, np.ndarray]
    linear: LinearReader
    share: float
    seen: Fold


class Bench:
    """The folds of a dataset, and what is measured on each.

    Args:
        settings: Of the run, which is prepared.
        arguments: Of the command line.
        each: Calls as `map` does, perhaps in other processes.
    """

    def __init__(self, settings: Settings, arguments: argparse.Namespace, each: MapCalls = map) -> None:
        self.settings, self.arguments, run = settings, arguments, RunFolder.of(settings)
        self.features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
        self.episodes, self.num_frames = read_episodes(run, settings), settings.video.num_frames
        count = len(self.episodes)
        self.folds = np.array_split(np.arange(count), arguments.folds or count)[: arguments.max_folds]
        self.returned: dict[str, IdmEpisode] = {}
        if arguments.round_trip:
            returned = each(partial(through_vae, settings=settings), self.episodes)
            self.returned = {episode.name: episode for episode in returned}
        self._each = each

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, which calls no others."""
        return {**self.__dict__, "_each": map}

    def split(self, fold: np.ndarray) -> tuple[list[IdmEpisode], list[IdmEpisode]]:
        """Return the training and the held-out episodes of a fold."""
        others = [episode for number, episode in enumerate(self.episodes) if number not in fold]
        return others, [self.episodes[number] for number in fold]

    def linear(self, num_train: int | None = None) -> dict[str, Any]:
        """Measure the linear reading beside the baselines."""
        folds: list[Fold] = []
        train_folds: list[Fold] = []
        for fold in self.folds:
            others, held_out = self.split(fold)
            reference = describe_robot(self.features, self.settings, others).actions
            choices = list(itertools.islice(itertools.combinations(others, num_train or len(others)),
                                            self.arguments.max_choices))  # fmt: skip
            for chosen in (list(choice) for choice in choices):
                config = describe_robot(self.features, self.settings, chosen)
                model = linear_model(config, read_linearly(config, chosen, self.num_frames))
                ways = self.ways(model, held_out) | self.baselines(chosen, held_out, config)
                if self.returned:
                    returned = [self.returned[episode.name] for episode in held_out]
                    ways |= {f"{name}, after the VAE": x for name, x in self.ways(model, returned).items()}
                folds.append(Fold(reference, [episode.action_TA for episode in held_out], ways))
                seen = {"model": self.ways(model, chosen)["model"]}
                train_folds.append(Fold(reference, [episode.action_TA for episode in chosen], seen))
        return {**pooled(folds), "training episodes": pooled(train_folds)["r2"]["model"],
                "num_train": num_train or len(self.episodes) - len(self.folds[0])}  # fmt: skip

    def networks(self, variant: dict[str, Any]) -> dict[str, Any]:
        """Measure networks, and their mixture with the linear reading.

        The share of a fold is the mean of those that other folds chose: no held-out episode chooses its own.
        """
        settings = replace(self.settings, idm=replace(self.settings.idm, **variant))
        numbers = range(len(self.folds))
        fitted = list(self._each(partial(self.fit_fold, settings), numbers))
        shares = [each.share for each in fitted]
        others = [float(np.mean(shares[:number] + shares[number + 1 :] or shares)) for number in numbers]
        folds = list(self._each(self.mixed_fold, numbers, fitted, others))
        return {
            **pooled(folds),
            "training episodes": pooled([each.seen for each in fitted])["r2"]["model"],
            "shares": shares,
            "idm": variant,
        }

    def fit_fold(self, settings: Settings, number: int) -> Fitted:
        """Train the networks of a fold, fit the linear reading, and weigh one against the other."""
        others, held_out = self.split(self.folds[number])
        model = fit(settings, self.features, others, held_out, number)
        linear = read_linearly(model.config, others, self.num_frames)
        share = best_share(*held_out_outputs(model, linear, held_out, self.num_frames))
        seen = Fold(model.config.actions, [e.action_TA for e in others], {"model": self.ways(model, others)["model"]})
        weights = {name: value.detach().cpu().numpy() for name, value in model.networks.state_dict().items()}
        return Fitted(model.config, weights, linear, share, seen)

    def mixed_fold(self, number: int, fitted: Fitted, share: float) -> Fold:
        """Return what the networks of a fold predict for held-out episodes, alone and with the linear reading."""
        others, held_out = self.split(self.folds[number])
        model = InverseDynamics(fitted.config)
        model.networks.load_state_dict({name: torch.from_numpy(value) for name, value in fitted.weights.items()})
        model.to(resolve_device(self.settings.model.device))
        networks: Any = model.networks
        mixed = InverseDynamics(replace(fitted.config, network_share=share), [*networks], fitted.linear)
        ways = {f"networks{name}": x for name, x in self.ways(model, held_out, "").items()}
        ways |= {f"with the linear reading{name}": x for name, x in self.ways(mixed, held_out, "").items()}
        ways |= self.baselines(others, held_out, fitted.config)
        if self.returned:
            returned = [self.returned[episode.name] for episode in held_out]
            after = self.ways(mixed, returned, "").items()
            ways |= {f"with the linear reading, after the VAE{name}": x for name, x in after}
        return Fold(fitted.config.actions, [episode.action_TA for episode in held_out], ways)

    def tries(self) -> dict[str, Any]:
        """Compare inputs, targets and heads."""
        folds = []
        for number, fold in enumerate(self.folds):
            others, held_out = self.split(fold)
            config, ways = tries(self.features, self.settings, others, held_out, number)
            folds.append(Fold(config.actions, [episode.action_TA for episode in held_out], ways))
        return pooled(folds)

    def blocks(self) -> dict[str, Any]:
        """Measure the linear reading within episodes."""
        reference, ways = block_predictions(self.features, self.settings, self.episodes)
        return pooled([Fold(reference, [episode.action_TA for episode in self.episodes], ways)])

    def true_states(self) -> dict[str, Any]:
        """Measure actions from true states."""
        folds = []
        for fold in self.folds:
            others, held_out = self.split(fold)
            reference, ways = actions_from_states(self.features, self.settings, others, held_out)
            folds.append(Fold(reference, [episode.action_TA for episode in held_out], ways))
        return pooled(folds)

    def ways(
        self, model: InverseDynamics, episodes: list[IdmEpisode], name: str = "model"
    ) -> dict[str, list[np.ndarray]]:
        """Return the actions that a model predicts, without and with the first state."""
        known = {name: False} | ({f"{name}, first state known": True} if model.config.states else {})
        return {
            way: [predict_pieces(model, episode, self.num_frames, know)["action"] for episode in episodes]
            for way, know in known.items()
        }

    def baselines(
        self, train: list[IdmEpisode], held_out: list[IdmEpisode], config: IdmConfig
    ) -> dict[str, list[np.ndarray]]:
        """Return the actions of the baselines."""
        names = config.states.names if config.states else ()
        return baseline_vectors(train, held_out, lambda e: e.action_TA, config.actions, names, self.num_frames)


def pooled(folds: list[Fold]) -> dict[str, Any]:
    """Return R^2 of each way of predicting, overall and for each part of the robot, in units of the reference."""
    stats = folds[0].reference
    moving = sorted({d for fold in folds for d in fold.reference.moving().tolist()})
    groups = {name: [d for d in dims if d in moving] for name, dims in stats.group_dims().items()}
    groups = {"all moving": moving, **{name: dims for name, dims in groups.items() if dims}}
    rows: dict[str, Any] = {"r2": {}, "within": {}}
    for way in folds[0].ways:
        errors, totals = np.zeros((2, 2, len(stats.names)))
        for fold in folds:
            std_D = np.asarray(fold.reference.std)
            for truth_TD, guess_TD in zip(fold.truths, fold.ways[way], strict=True):
                unit_TD, found_TD = (
                    (x - np.asarray(fold.reference.mean)) / np.where(std_D > 0, std_D, 1) for x in (truth_TD, guess_TD)
                )
                for number in range(2):
                    errors[number] += ((unit_TD - found_TD) ** 2).sum(axis=0)
                    totals[number] += (unit_TD**2).sum(axis=0)
                    unit_TD, found_TD = unit_TD - unit_TD.mean(axis=0), found_TD - found_TD.mean(axis=0)
        for number, name in enumerate(rows):
            rows[name][way] = {
                group: round(float(1 - errors[number][dims].sum() / totals[number][dims].sum()), 3)
                for group, dims in groups.items()
            }
    return {**rows, "num_folds": len(folds)}


def linear_model(config: IdmConfig, linear: LinearReader) -> InverseDynamics:
    """Return a model that consists of the linear reading; its one network counts nothing."""
    return InverseDynamics(replace(config, num_models=1, network_share=0.0), None, linear)


def fit(
    settings: Settings, features: RobotFeatures, train: list[IdmEpisode], held_out: Sequence[IdmEpisode], number: int
) -> InverseDynamics:
    """Train networks as `dreamgen finetune_idm` does, without its checks and files."""
    fold = replace(settings, out=f"{settings.out}/fold_{number}")
    RunFolder.of(fold).finetune_idm_logs.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(fold)
    model = new_model(describe_robot(features, fold, train), fold)
    training = prepare_training(fold, accelerator, model, train, held_out[:1], TrainingState(), None)
    with TrainingLog(accelerator, training.logs / "loss.csv", fold.idm, name=f"fold {number}") as log:
        take_steps(training, log)
    return model


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
