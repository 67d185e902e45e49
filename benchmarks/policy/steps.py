"""The steps of the policy benchmark: which commands make which datasets, policies and results.

Every dataset of an arm is made by commands of the product. Paths are relative to the benchmark's folder:

    play/ other/            recordings that only the inverse-dynamics model sees, and train/ runs of them
    TASK/demos              N real demonstrations
    TASK/new                M real demonstrations at other positions: their first frames are where dreams begin
    TASK/ARM/               run folders; datasets/lerobot-v3.0-mixed is what a policy is trained on
    TASK/policies/ARM-POLICY-SEED, TASK/results/*.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scenes import RECORDER, ROOT

from dreamgen.config.loading import find_preset, read_yaml
from dreamgen.extensions.score import SCORES
from dreamgen.run.files import write_text
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.run_folder import RunFolder

CAMERA = "observation.images.corner2"
DATASET = "lerobot-v3.0-mixed"
SETTINGS = "settings.yaml"

# What each arm trains on, in the order of the table.
ARMS = {
    "real": "N real demonstrations",
    "curated": "N real + accepted dreams, 1:1",
    "best": "N real + the best half of the accepted dreams, 1:1",
    "uncurated": "N real + all dreams, 1:1",
    "base": "N real + dreams without an adapter, curated, 1:1",
    "executed": "N real + the accepted dreams' actions, executed and filmed in the simulator, 1:1",
    "real_video": "N real + real videos of the dreams' starts, with recovered actions, 1:1",
    "oracle": "N + M real demonstrations",
    "dreams": "accepted dreams alone",
}
REAL, CURATED = "real", "curated"
MAIN_ARMS = (REAL, CURATED)  # trained first, with all seeds

# LeRobot's defaults also rotate and shift pictures, but the camera is fixed and the state is of the robot.
_COLORS: dict[str, dict[str, Any]] = {
    name: {"weight": 1.0, "type": "ColorJitter", "kwargs": {name: [0.8, 1.2]}}
    for name in ("brightness", "contrast", "saturation")
}
_BLUR: dict[str, dict[str, Any]] = {
    "blur": {"weight": 1.0, "type": "GaussianBlur", "kwargs": {"kernel_size": 9, "sigma": [0.05, 2.4]}}
}
AUGMENTATIONS = {"colors": _COLORS, "blur": _COLORS | _BLUR}

# Training of a policy; everything else is LeRobot's default.
POLICIES = {
    "act": (
        "--policy.type=act", "--policy.chunk_size=8", "--policy.n_action_steps=4", "--policy.dim_model=256",
        "--policy.dim_feedforward=1024", "--policy.n_heads=4", "--policy.optimizer_lr=1e-4",
        "--policy.optimizer_lr_backbone=1e-4", "--policy.pretrained_backbone_weights=null",
    ),
    "diffusion": (
        "--policy.type=diffusion", "--policy.horizon=8", "--policy.n_action_steps=4",
        "--policy.drop_n_last_frames=3", "--policy.down_dims=[128,256,512]", "--policy.noise_scheduler_type=DDIM",
        "--policy.num_inference_steps=10", "--policy.pretrained_backbone_weights=null", "--policy.crop_ratio=0.9",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A part of the benchmark that is done once.

    Args:
        name: Unique; with slashes, as its log and its marker are files below those of the benchmark.
        commands: Command lines, each after `python`, or functions without arguments; run one after another.
        needs: Names of the steps that must be done before. Steps that do not need each other may run at the same time.
        output: What it makes, removed before it begins, as a step that was interrupted starts over. None keeps all.
    """

    name: str
    commands: tuple[tuple[str, ...] | Callable[[], None], ...]
    needs: tuple[str, ...] = ()
    output: Path | None = None


def all_steps(args: argparse.Namespace) -> list[Step]:
    """Return the steps of a benchmark; those that should be done first come first.

    Raises:
        ValueError: if a step needs one that does not stand before it.
    """
    steps = shared_steps(args)
    num_demos = args.num_demos if len(args.num_demos) > 1 else args.num_demos * len(args.tasks)
    for task, num in zip(args.tasks, num_demos, strict=True):
        steps += data_steps(args, task, num)
    steps += training_steps(args)
    known: set[str] = set()
    for step in steps:
        if missing := set(step.needs) - known:
            raise ValueError(f"{step.name} needs {sorted(missing)}, which no step before it makes")
        known.add(step.name)
    return steps


def shared_steps(args: argparse.Namespace) -> list[Step]:
    """Return the recordings that the inverse-dynamics models of all tasks are trained on, beside the demonstrations.

    Play is noisy experts and random motion in all tasks; `other` is demonstrations of tasks that mini's base has seen.
    """
    steps = []
    for name in _extra(args):
        words, num = ("--set", "play" if name == "play" else "base"), getattr(args, f"{name}_episodes")
        recording, run = args.out / name / "recording", args.out / name / "run"
        command = record(args, recording, *words, "--episodes_per_task", str(num))
        steps.append(Step(f"{name}/record", (command,), (), recording))
        words = dreamgen("prepare", run, f"--demos={recording}")
        steps.append(Step(f"{name}/prepare", (words,), (f"{name}/record",), run))
    return steps


def data_steps(args: argparse.Namespace, task: str, num_demos: int) -> list[Step]:
    """Return what makes the datasets of a task's arms, and the replays."""
    folder, mix = args.out / task, f"--export.mix_with={args.out / task / 'real/datasets' / DATASET}"
    even = (mix, "--export.real_share=0.5", "--export.repeat_real=true")
    heldout = ("--set", "heldout", "--tasks", task)
    starts, dreams = folder / "new_starts", folder / CURATED
    first_frames = (str(RECORDER / "first_frames.py"), "--of", str(folder / "new"), "--out", str(starts))
    plan = (f"--plan.first_frames={starts / 'first_frames.csv'}", f"--plan.num_seeds={args.dreams_per_start}")
    steps: list[Step] = []

    def add(
        name: str, commands: Sequence[Any], needs: Sequence[str] = (), output: Path | None = None,
        shared: Sequence[str] = (),
    ) -> None:  # fmt: skip
        own = (*(f"{task}/{need}" for need in needs), *shared)
        steps.append(Step(f"{task}/{name}", tuple(commands), own, output))

    for name, num, seed in (("demos", num_demos, 0), ("new", args.num_dreams, 1)):
        words = ("--episodes_per_task", str(num), "--seed", str(seed))
        add(name, [record(args, folder / name, *heldout, *words)], (), folder / name)
    add("starts", [first_frames], ["new"], starts)
    add(REAL, _imported(folder / REAL, folder / "demos", ()), ["demos"], folder / REAL)
    add("prepare", [dreamgen("prepare", dreams, f"--demos={folder / 'demos'}")], ["demos"], dreams)
    extra = [f"{name}/prepare" for name in _extra(args)]
    add("finetune_idm", [dreamgen("finetune_idm", dreams, "--resume")], ["prepare"], shared=extra)
    add("finetune", [dreamgen("finetune", dreams, "--resume")], ["prepare"])
    add("generate", [dreamgen("plan", dreams, *plan), dreamgen("generate", dreams)], ["finetune", "starts"])
    if "oracle" in args.arms:
        add("oracle/export", _imported(folder / "oracle", folder / "new", (mix,)), ["new", REAL], folder / "oracle")
    # Labels of real videos are needed for the replay of recovered actions, whatever the arms are.
    video = folder / "real_video"
    words = ("--import_clips.own_labels=false", "--import_clips.generator=simulator")
    commands = (lambda: _copy_models(dreams, video), _import(video, folder / "new", *words), dreamgen("label", video),
                dreamgen("curate", video, *loosest()))  # fmt: skip
    add("real_video/clips", commands, ["finetune_idm", "new"], video)
    add("curated/clips", [dreamgen("label", dreams), dreamgen("curate", dreams)], ["generate", "finetune_idm"])
    copies = []
    if "base" in args.arms:
        base = folder / "base"
        commands = (lambda: _copy_models(dreams, base), dreamgen("plan", base, *plan, "--plan.adapter=base"),
                    *(dreamgen(name, base) for name in ("generate", "label", "curate")))  # fmt: skip
        add("base/clips", commands, ["finetune_idm", "starts"], base)
    for name, words in (("best", ["--curate.best_share=0.5"]), ("uncurated", loosest())):
        if name in args.arms:
            copy = folder / name
            commands = (lambda copy=copy: _copy_clips(dreams, copy), dreamgen("curate", copy, *words))
            add(f"{name}/clips", commands, ["curated/clips"], copy)
            copies.append(f"{name}/clips")
    if "executed" in args.arms:
        filmed = folder / "executed_recording"
        film = (str(Path(__file__).with_name("executed.py")), "--folder", str(folder), "--task", task)
        add("executed/film", [(*film, "--out", str(filmed))], ["curated/clips", "new"], filmed)
        needs = ["executed/film", REAL]
        add("executed/export", _imported(folder / "executed", filmed, even), needs, folder / "executed")
    for num in args.dream_counts:
        few = folder / f"{CURATED}-{num}"
        commands = (lambda few=few, num=num: _copy_first(dreams, few, num), dreamgen("curate", few))
        add(f"{few.name}/clips", commands, ["curated/clips"], few)
        copies.append(f"{few.name}/clips")
    # Nothing writes into a run folder while it is copied.
    mixed = [arm for arm in (CURATED, "best", "uncurated", "base", "real_video") if arm in args.arms]
    for arm in [*mixed, *(f"{CURATED}-{num}" for num in args.dream_counts)]:
        run = folder / arm
        needs = [f"{arm}/clips", REAL, *(copies if arm == CURATED else ())]
        add(f"{arm}/export", [dreamgen("export", run, "--export.name=mixed", *even)], needs, run / "datasets" / DATASET)
    if "dreams" in args.arms:
        needs = [step for step in ("curated/clips", "curated/export", *copies) if step in _names(steps)]
        # curated/export may have run before, and a run remembers its settings.
        words = (
            "--export.name=alone",
            "--export.mix_with=null",
            "--export.real_share=null",
            "--export.repeat_real=false",
        )
        add("dreams/export", [dreamgen("export", dreams, *words)], needs, dataset_of(folder, "dreams"))
    runs = [name for name in ("real_video/clips", "curated/clips", "base/clips") if name in _names(steps)]
    replays = (str(Path(__file__).with_name("replay.py")), "--folder", str(folder), "--task", task)
    add("replay", [replays], runs, folder / "results" / "replay.json")
    return steps


def _names(steps: Sequence[Step]) -> set[str]:
    """Return the names of a task's steps, without the task."""
    return {step.name.partition("/")[2] for step in steps}


def training_steps(args: argparse.Namespace) -> list[Step]:
    """Return a training and an evaluation for each task, arm, policy and seed; the main arms come before the others."""
    names = [*args.arms, *(f"{CURATED}-{num}" for num in args.dream_counts)]
    arms = sorted(names, key=lambda arm: arm not in MAIN_ARMS)
    grid = itertools.product(args.policies, (True, False), args.seeds, arms, args.tasks)
    return [_training(args, task, arm, policy, seed)
            for policy, is_main, seed, arm, task in grid if (arm in MAIN_ARMS) == is_main]  # fmt: skip


def _training(args: argparse.Namespace, task: str, arm: str, policy: str, seed: int) -> Step:
    name = f"{arm}-{policy}-{seed}"
    out, results = args.out / task / "policies" / name, args.out / task / "results"
    train = (
        str(Path(__file__).with_name("train.py")), f"--dataset.repo_id=local/{arm}",
        f"--dataset.root={dataset_of(args.out / task, arm)}", "--dataset.video_backend=pyav",
        *image_transforms(args.augment), f"--output_dir={out}", f"--seed={seed}",
        f"--steps={args.updates}", f"--save_freq={args.updates}", f"--batch_size={args.batch_size}",
        f"--num_workers={args.num_workers}", "--log_freq=100", f"--policy.device={args.device}",
        "--policy.push_to_hub=false", "--wandb.enable=false", *POLICIES[policy], *args.policy_words,
        *(["--cuda_graphs"] if args.cuda_graphs else []),
    )  # fmt: skip
    evaluate = (
        str(Path(__file__).with_name("rollout.py")), "--policy", str(out / "checkpoints/last/pretrained_model"),
        "--task", task, "--out", str(results / f"{name}.json"), "--num_episodes", str(args.eval_episodes),
        "--device", args.device,
    )  # fmt: skip
    dataset = f"{task}/{arm}" if arm == REAL else f"{task}/{arm}/export"
    return Step(f"{task}/policies/{name}", (train, evaluate), (dataset,), out)


def image_transforms(augment: str) -> tuple[str, ...]:
    """Return the settings of lerobot-train for an augmentation, of which all transforms are applied to each frame.

    Args:
        augment: A key of `AUGMENTATIONS`.
    """
    transforms = AUGMENTATIONS[augment]
    return ("--dataset.image_transforms.enable=true", f"--dataset.image_transforms.tfs={json.dumps(transforms)}",
            f"--dataset.image_transforms.max_num_transforms={len(transforms)}")  # fmt: skip


def arm_title(arm: str) -> str:
    """Return what an arm trains on, in words; `curated-25` is `curated` with the dreams of the first 25 starts."""
    name, _, num = arm.partition("-")
    return f"N real + accepted dreams of {num} starts, 1:1" if num else ARMS[name]


def dataset_of(folder: Path, arm: str) -> Path:
    """Return the dataset that an arm's policies are trained on."""
    if arm == "dreams":
        return folder / "curated" / "datasets" / "lerobot-v3.0-alone"
    return folder / arm / "datasets" / DATASET


def record(args: argparse.Namespace, out: Path, *words: str) -> tuple[str, ...]:
    """Return the recorder's command line."""
    return (str(RECORDER / "record.py"), "--out", str(out), "--workers", str(args.record_workers), *words)


def dreamgen(stage: str, run: Path, *words: str) -> tuple[str, ...]:
    """Return the command line of a stage of the product, with the settings of `write_settings`."""
    return ("-m", "dreamgen", stage, "--out", str(run), f"--config_path={run.parents[1] / SETTINGS}", *words)


def write_settings(args: argparse.Namespace) -> None:
    """Write the settings of all runs: the preset `mini` with what the command line of the benchmark says."""
    settings = read_yaml(find_preset("mini"))
    given: dict[str, dict[str, Any]] = {
        "model": {"device": args.device},
        "prepare": {"camera": CAMERA},
        "finetune": {"num_steps": args.lora_steps, "batch_size": args.lora_batch_size},
        "idm": {
            "num_steps": args.idm_steps,
            "batch_size": args.idm_batch_size,
            "image_px": args.idm_image_px,
            "width": args.idm_width,
            "extra_demos": [str(args.out / name / "run") for name in _extra(args)],
        },
        "export": {"formats": ["lerobot-v3.0"], "camera": CAMERA},
    }
    for section, values in given.items():
        settings[section] = {**settings.get(section, {}), **values}
    write_text(args.out / SETTINGS, yaml.safe_dump(settings))


def _extra(args: argparse.Namespace) -> list[str]:
    return [name for name in ("play", "other") if getattr(args, f"{name}_episodes")]


def loosest() -> list[str]:
    """Return settings of curate that let every clip pass."""
    return [f"--curate.{score.threshold.setting}={score.threshold.loosest}" for _, score in SCORES.items()]


def _import(run: Path, recording: Path, *words: str) -> tuple[str, ...]:
    command = dreamgen("import", run, *words)
    return (*command[:3], str(recording), *command[3:])


def _imported(run: Path, recording: Path, words: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return what turns a recording with its own actions into a dataset of the form of all others."""
    return (_import(run, recording), dreamgen("curate", run, *loosest()),
            dreamgen("export", run, "--export.name=mixed", *words))  # fmt: skip


def _copy_models(source: Path, run: Path) -> None:
    """Begin a run with the training set and the models of another one, and no clips."""
    for name in ("train", "idm"):
        shutil.copytree(source / name, run / name, copy_function=os.link)
    shutil.copy(source / "run.yaml", run / "run.yaml")


def _copy_clips(source: Path, run: Path) -> None:
    """Begin a run with the clips and labels of another one, without its scores and datasets."""
    leave_out = shutil.ignore_patterns("datasets", "scores", "curate*", "report.html", "provenance*")
    shutil.copytree(source, run, ignore=leave_out)


def _copy_first(source: Path, run: Path, num_starts: int) -> None:
    """Copy clips, and leave those of the first starts in the plan."""
    _copy_clips(source, run)
    jobs = read_jobs(RunFolder(run).jobs)
    starts = list(dict.fromkeys(job.first_frame_sha256 for job in jobs))[:num_starts]
    write_jobs(RunFolder(run).jobs, [job for job in jobs if job.first_frame_sha256 in starts])


def python() -> str:
    """Return the interpreter of all commands."""
    return sys.executable


def environment(gpu: str | None) -> dict[str, str]:
    """Return the environment of a step's commands.

    Args:
        gpu: Value of CUDA_VISIBLE_DEVICES; None leaves it as it is.
    """
    from environments import with_checkout  # beside this folder, which `scenes` makes importable

    device = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return with_checkout(ROOT, HF_HUB_OFFLINE="1", **device)
