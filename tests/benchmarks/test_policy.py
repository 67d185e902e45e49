"""The policy benchmark: its statistics, its table, and that each arm's dataset comes from the product's commands."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import train
from graphed_act import replay_as_graphs
from proof import SMALL, run, run_steps
from proof_plot import success_plot
from proof_report import policy_rows, task_means
from significance import paired_p_value, rank_correlation, wilson_interval
from steps import ARMS, AUGMENTATIONS, MAIN_ARMS, Step, all_steps, dataset_of, image_transforms

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "policy"


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)  # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, has the last one
def test_wilson_intervals(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)


def test_paired_p_values():
    base, better = np.zeros((1, 20)), np.zeros((1, 20))
    assert paired_p_value(base, base) == 1.0
    better[0, :5] = 1
    assert paired_p_value(better, base) == pytest.approx(2 / 2**5), "all five signs alike, in either direction"
    better[0, :] = 1
    assert paired_p_value(better, base) < 0.001, "of 20 episodes, a random sample of signs"
    random = np.random.default_rng(0)
    p_values = [paired_p_value(*random.integers(0, 2, (2, 3, 30))) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1, "policies that are alike seldom differ significantly"


def test_rank_correlations():
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 100, 1000])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 1, 2, 3]), np.array([0, 0, 1, 1])) == pytest.approx(0.943, abs=1e-3)
    assert rank_correlation(np.array([1, 1]), np.array([0, 1])) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_train_the_same_policy():
    """Also with a smaller batch between full ones, and an evaluation."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    camera = "observation.images.front"
    shapes = {"observation.state": (3,), camera: (3, 64, 64), "action": (2,)}
    kinds = {"observation.state": FeatureType.STATE, camera: FeatureType.VISUAL, "action": FeatureType.ACTION}
    features = {name: PolicyFeature(kinds[name], shape) for name, shape in shapes.items()}
    losses, names = [], []
    for graphs in (False, True):
        torch.manual_seed(0)
        config = ACTConfig(
            input_features={name: features[name] for name in ("observation.state", camera)}, chunk_size=4,
            output_features={"action": features["action"]}, n_action_steps=2, dim_model=32, dim_feedforward=32,
            n_heads=2, device="cuda", pretrained_backbone_weights=None,
        )  # fmt: skip
        policy = ACTPolicy(config).to("cuda").train()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
        if graphs:
            replay_as_graphs(policy)
        random, found = torch.Generator("cuda").manual_seed(1), []
        for number, size in enumerate((4, 4, 4, 2, 4, 4)):
            batch = {name: torch.rand((size, *shape), generator=random, device="cuda")
                     for name, shape in shapes.items()}  # fmt: skip
            batch["action"] = torch.rand((size, 4, 2), generator=random, device="cuda")
            batch["action_is_pad"] = torch.zeros((size, 4), dtype=torch.bool, device="cuda")
            torch.manual_seed(number)
            loss, _ = policy.forward(batch)
            if number:  # the first call records the graphs, and draws more random numbers than a replay
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        policy.eval()
        with torch.inference_mode():
            found.append(policy.predict_action_chunk(batch).mean().item())
        losses.append(found)
        names.append(list(policy.state_dict()))
    assert names[0] == names[1], "it is saved as before"
    assert np.allclose(*losses, rtol=0.01, atol=1e-4)


def test_a_row_has_all_seeds_and_is_compared_with_real_alone():
    runs = [{"task": "sweep", "arm": arm, "policy": "act", "seed": seed, "success": success}
            for arm, seed, success in (("curated", 0, [True] * 10), ("curated", 1, [True] * 8 + [False] * 2),
                                       ("real", 0, [False] * 10), ("real", 1, [True] + [False] * 9))]  # fmt: skip
    real, curated = policy_rows(runs, ["sweep", "push-back"], "act")
    assert (real["arm"], curated["arm"]) == ("real", "curated") and set(real["tasks"]) == {"sweep"}
    cell = curated["tasks"]["sweep"]
    assert cell["success"] == 0.9 and cell["of_seeds"] == [1.0, 0.8] and cell["low"] < 0.9 < cell["high"]
    assert cell["p"] < 0.01 and "p" not in real["tasks"]["sweep"]
    assert (cell["better"], cell["pairs"], cell["p_of_trainings"]) == (2, 2, 0.5)
    shorter = [{**run, "success": run["success"][:5]} if run["seed"] else run for run in runs]
    _, cut = policy_rows(shorter, ["sweep"], "act")
    assert cut["tasks"]["sweep"]["episodes"] == 5, "only the episodes that all seeds have are compared"
    fewer = [{**run, "success": run["success"][:5]} if run["arm"] == "real" else run for run in runs]
    _, cut = policy_rows(fewer, ["sweep"], "act")
    assert cut["tasks"]["sweep"]["p"] == pytest.approx(2 / 2**5), "five episodes, each better"
    assert policy_rows(runs, ["sweep"], "diffusion") == []
    [mean] = task_means([*runs, {**runs[0], "seed": 2}], ["sweep", "push-back"], "act")
    assert (mean["success"], mean["real"], mean["tasks"]) == (0.9, pytest.approx(0.05), ["sweep"])
    assert (mean["better"], mean["pairs"], mean["p_of_trainings"]) == (2, 2, 0.5) and mean["p"] == cell["p"]
    worse = [{"task": "push-back", "arm": arm, "policy": "act", "seed": 0, "success": [arm == "real"] * 10}
             for arm in ("real", "curated")]  # fmt: skip
    [mean] = task_means([*runs, *worse], ["sweep", "push-back"], "act")
    assert (mean["success"], mean["real"]) == (0.45, pytest.approx(0.525)), "tasks weigh the same"
    assert (mean["better"], mean["pairs"], mean["p_of_trainings"]) == (2, 3, 1.0) and mean["p"] > 0.5
    plot = ElementTree.fromstring(success_plot([real, curated], ["sweep", "push-back"]))
    texts = {text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert {"sweep", "real demonstrations", "real + dreams"} <= texts and "push-back" not in texts
    circles = [float(circle.get("cx")) for circle in plot.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 2 and circles[0] < circles[1], "in the order of the rows: 5 %, then 90 %"


def arguments(tmp_path, **given):
    values = {**SMALL, "arms": list(ARMS), "dream_counts": [5], "other_episodes": 2, "out": tmp_path,
              "policies": ["act", "diffusion"], "policy_words": [], "device": "cpu", "record_workers": 1,
              "augment": "colors", "cuda_graphs": False}  # fmt: skip
    return argparse.Namespace(**{**values, **given})


def test_commands_in_one_run_folder_state_the_same_settings(tmp_path):
    """A run remembers settings, so what only one of two commands states would change the other."""
    stated: dict[tuple[str, str], set[frozenset[str]]] = {}
    for step in all_steps(arguments(tmp_path)):
        for command in step.commands:
            if not callable(command) and command[:2] == ("-m", "dreamgen"):
                stage, run = command[2], command[command.index("--out") + 1]
                names = frozenset(word.partition("=")[0] for word in command if word.startswith(f"--{stage}."))
                stated.setdefault((stage, run), set()).add(names)
    assert {stage for stage, _ in stated} >= {"export", "curate", "plan"}
    assert not {key: names for key, names in stated.items() if len(names) > 1}


def test_every_arm_is_made_by_commands_and_trained_alike(tmp_path):
    args = arguments(tmp_path)
    steps = all_steps(args)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    commands = [command for step in steps for command in step.commands if not callable(command)]
    programs = {command[1] if command[0] == "-m" else Path(command[0]).name for command in commands}
    assert programs == {"dreamgen", "record.py", "first_frames.py", "executed.py", "replay.py", "rollout.py",
                        "train.py"}  # fmt: skip
    trainings = [command for command in commands if command[0].endswith("/train.py")]
    assert len(trainings) == 2 * (len(args.arms) + 1)
    of_act = [{word for word in training if not word.startswith(("--dataset.r", "--output_dir"))}
              for training in trainings if "--policy.type=act" in training]  # fmt: skip
    assert len({frozenset(words) for words in of_act}) == 1, "the same updates, seed and augmentation for every arm"
    folder = tmp_path / "sweep"
    written = {step.output for step in steps if step.output} | {
        folder / arm / "datasets/lerobot-v3.0-mixed" for arm in ("real", "executed", "oracle")}  # fmt: skip
    for arm in [*args.arms, "curated-5"]:
        assert dataset_of(folder, arm) in written, arm


def test_every_transform_of_an_augmentation_is_one_that_lerobot_knows():
    from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig

    frame_CHW = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    for augment, transforms in AUGMENTATIONS.items():
        words = dict(word.split("=", 1) for word in image_transforms(augment))
        assert json.loads(words["--dataset.image_transforms.tfs"]) == transforms
        most = int(words["--dataset.image_transforms.max_num_transforms"])
        configs = {name: ImageTransformConfig(**values) for name, values in transforms.items()}
        changed = ImageTransforms(ImageTransformsConfig(enable=True, max_num_transforms=most, tfs=configs))(frame_CHW)
        assert most == len(transforms) and changed.shape == frame_CHW.shape and not torch.equal(changed, frame_CHW)


def test_each_task_may_have_its_own_number_of_demonstrations(tmp_path):
    recorded = {
        step.name: step.commands[0][step.commands[0].index("--episodes_per_task") + 1]
        for step in all_steps(arguments(tmp_path, tasks=["sweep", "push-back"], num_demos=[5, 20]))
        if step.name.endswith("/demos")
    }
    assert recorded == {"sweep/demos": "5", "push-back/demos": "20"}


def test_steps_that_are_not_asked_for_are_left_to_another_call(tmp_path):
    args = argparse.Namespace(out=tmp_path, only=["*/demos", "b/*"])
    made = []
    needs = {"a/demos": (), "a/new": (), "a/real": ("a/new",), "b/real": ("a/demos",)}
    steps = [Step(name, (lambda name=name: made.append(name),), needs[name]) for name in needs]
    results = run_steps(steps, lambda step: False, lambda step, gpu: run(args, step, gpu, time.monotonic() + 60), 1, [])
    assert made == ["a/demos", "b/real"]
    assert results == {"a/demos": 0, "a/new": 1, "a/real": 1, "b/real": 0}


def test_a_dataset_in_memory_gives_what_lerobot_gives(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = {"action": [0.0, 0.1, 0.2]}
    features = {"observation.images.front": {"dtype": "video", "shape": (64, 64, 3), "names": ["h", "w", "c"]},
                "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}}  # fmt: skip
    written = LeRobotDataset.create("local/drawn", 10, features, root=tmp_path / "drawn", use_videos=True)
    for episode in range(3):
        for frame in range(4):
            picture = np.full((64, 64, 3), 60 * episode + 15 * frame, np.uint8)
            picture[: 8 * frame + 8] = 255
            action = np.array([episode, frame], np.float32)
            written.add_frame({"observation.images.front": picture, "action": action, "task": f"task {episode % 2}"})
        written.save_episode()
    written.finalize()
    stored, held = (
        LeRobotDataset("local/drawn", root=tmp_path / "drawn", delta_timestamps=times, video_backend="pyav")
        for _ in range(2)
    )
    train.hold_in_memory(held)
    for index in range(len(stored)):
        want, got = stored[index], held[index]
        assert set(want) == set(got)
        for key, value in want.items():
            assert torch.equal(value, got[key]) if isinstance(value, torch.Tensor) else value == got[key], key


def test_frames_that_differ_from_lerobots_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "nearest", lambda times_s, time_s: 0)
    with pytest.raises(ValueError, match="differ from what LeRobot reads"):
        test_a_dataset_in_memory_gives_what_lerobot_gives(tmp_path)


def test_the_nearest_time():
    times_s = [0.0, 0.1, 0.2]
    assert [train.nearest(times_s, time_s) for time_s in (-1.0, 0.04, 0.06, 0.1, 0.19, 5.0)] == [0, 0, 1, 1, 2, 2]


def test_the_main_arms_are_trained_first_with_all_seeds(tmp_path):
    steps = all_steps(arguments(tmp_path, policies=["act"], seeds=[0, 1], tasks=["sweep", "push-back"]))
    arms = [step.name.rpartition("/")[2].split("-act-")[0] for step in steps if "/policies/" in step.name]
    num_main = 2 * 2 * len(MAIN_ARMS)
    assert set(arms[:num_main]) == set(MAIN_ARMS) and not set(arms[num_main:]) & set(MAIN_ARMS)
    assert len(arms) == 2 * 2 * (len(ARMS) + 1)


def test_a_step_waits_for_those_that_it_needs_and_gpus_are_shared_evenly():
    steps = [Step("a", ()), Step("b", ()), Step("c", (), ("a", "b")), Step("d", (), ("a",)), Step("e", (), ("c", "d"))]
    together, done, gpus = threading.Barrier(2), set(), {}

    def run_step(step, gpu):
        assert done.issuperset(step.needs)
        gpus[step.name] = gpu
        if step.name in "ab":
            together.wait(30)  # both at the same time, on different GPUs
        done.add(step.name)
        return 0

    results = run_steps(steps, lambda step: False, run_step, 2, ["0", "1"])
    assert results == dict.fromkeys("abcde", 0)
    assert gpus["a"] != gpus["b"]


def test_what_needs_a_failed_step_does_not_run_and_what_is_done_is_not_repeated():
    steps = [Step("a", ()), Step("b", (), ("a",)), Step("c", (), ("b",)), Step("d", ()), Step("e", (), ("d",))]
    ran = []

    def run_step(step, gpu):
        ran.append(step.name)
        assert gpu is None
        return 2 if step.name == "a" else 0

    assert run_steps(steps, lambda step: step.name == "d", run_step, 1, []) == {"a": 2, "b": 1, "c": 1, "e": 0}
    assert sorted(ran) == ["a", "e"]


@pytest.mark.parametrize("program", ["proof.py", "replay.py", "rollout.py", "train.py"])
def test_each_program_starts_on_its_own(program):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, str(FOLDER / program), "--help"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="the extra `sim` is not installed")
def test_a_very_small_proof_runs_from_recording_to_report(tmp_path):
    command = [sys.executable, str(FOLDER / "proof.py"), "--small", "--out", str(tmp_path), "--num_demos=3",
               "--num_dreams=6", "--lora_steps=4", "--idm_steps=20", "--updates=2", "--eval_episodes=2",
               "--record_workers=2"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {run["arm"] for run in report["policies"]} == {"real", "curated"}
    assert all(len(run["success"]) == 2 for run in report["policies"])
    assert report["replay"][0]["recorded"] == 1.0, "recorded actions do the task again"
    assert (tmp_path / "sweep.png").is_file()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and " s\n" not in again.stdout.partition("|")[0], "nothing is made again"
