"""benchmarks/mini_adapters.py: which adapters it trains and how, its paired tests, and its report."""

import argparse
from pathlib import Path

import adapter_variants
import numpy as np
import pytest
import torch
from adapter_report import BASE, p_values, rows_of, tables
from adapter_variants import (
    Schedule,
    Training,
    TrainingOptions,
    Variant,
    all_variants,
    pair_of,
    train,
    training_settings,
)
from metaworld_clips import Clips
from mini_adapters import FREE_OPTIONS, all_recordings, differences, mean_over, nearest_demonstrations
from resumable import as_lists, check_options

from dreamgen.errors import UserError
from dreamgen.run.records import StageResult

TASKS = ["coffee-push", "sweep", "push-back"]
VARIANTS = all_variants(16, 10, [1, 10, 20], [4, 16, 32], [0.5])


def clips_of(tasks, first_pixels=None) -> Clips:
    num, names = len(tasks), np.array(tasks)
    video_NTHWC = torch.zeros(num, 3, 4, 4, 3, dtype=torch.uint8)
    if first_pixels is not None:
        video_NTHWC[:, 0] = torch.tensor(first_pixels, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Clips(video_NTHWC, np.zeros((num, 3, 4)), np.zeros((num, 3, 9)), names, np.full(num, ""), names,
                 np.ones(num, bool))  # fmt: skip


def test_variants_differ_from_the_reference_in_one_thing():
    reference, *others = VARIANTS
    assert reference == Variant("lora", 16, 10) and reference.name == "LoRA rank 16, 10 demonstrations"
    assert len(set(VARIANTS)) == len(VARIANTS) == len({one.name for one in VARIANTS}) == 7
    assert len({one.file_name for one in VARIANTS}) == 7
    for one in others:
        changed = [key for key, value in vars(one).items() if value != getattr(reference, key)]
        assert len(changed) == 1, one
    trainings = {training for one in VARIANTS for training in one.trainings(TASKS)}
    assert len(trainings) == 6 * len(TASKS), "a blend trains nothing of its own"
    assert Variant("lora", 16, 1).name.endswith("1 demonstration")


def test_schedules_are_tried_with_two_numbers_of_demonstrations(tmp_path):
    texts = ["400x8", "1200x8x0.0005"]
    variants = all_variants(16, 10, [20], [], [], [Schedule.parse(text) for text in texts])[-4:]
    assert [(one.num_demos, str(one.schedule)) for one in variants] == [
        (num, text) for text in texts for num in (10, 20)
    ]
    assert variants[-1].name == "LoRA rank 16, 20 demonstrations, 1200 steps of 8 at 0.0005"
    assert len({one.file_name for one in variants} | {one.trainings(["sweep"])[0].name for one in variants}) == 8
    options = TrainingOptions(tmp_path, tmp_path, None, "cpu", 0)
    rates = [training_settings(one.trainings(["sweep"])[0], options).finetune for one in variants]
    assert [(one.num_steps, one.batch_size, one.learning_rate) for one in rates] == [
        (400, 8, 0.001), (400, 8, 0.001), (1200, 8, 0.0005), (1200, 8, 0.0005)]  # fmt: skip


def test_an_adapter_is_named_as_plan_adapter_reads_it(tmp_path):
    adapter = tmp_path / "lora-16-10/sweep/adapter"
    assert Variant("lora", 16, 10).adapter("sweep", TASKS, tmp_path) == str(adapter)
    blend = Variant("lora", 16, 10, 0.5).adapter("sweep", TASKS, tmp_path)
    assert blend == f"{tmp_path / 'lora-16-10/coffee-push/adapter'}:0.5,{adapter}:0.5"
    assert Variant("lora", 16, 10, 0.5).adapter("coffee-push", TASKS, tmp_path) == blend, "one blend for both tasks"
    assert pair_of("push-back", TASKS) == ["coffee-push", "push-back"], "the last of an odd number"


def test_trainings_have_the_settings_of_the_preset(tmp_path):
    options = TrainingOptions(tmp_path / "data", tmp_path / "runs", None, "cpu", 0)
    settings = training_settings(Training("sweep", "dora", 8, 5), options)
    assert (settings.finetune.method, settings.finetune.lora.rank, settings.prepare.max_episodes) == ("dora", 8, 5)
    assert (settings.finetune.num_steps, settings.finetune.learning_rate, settings.model.path) == (120, 0.001, "mini")
    assert settings.demos == str(tmp_path / "data/train/sweep")
    few = TrainingOptions(tmp_path / "data", tmp_path / "runs", 3, "cpu", 0)
    assert training_settings(Training("sweep", "lora", 8, 5), few).finetune.num_steps == 3


def test_after_the_deadline_no_training_begins(tmp_path):
    options, training = TrainingOptions(tmp_path / "data", tmp_path, 1, "cpu", 0), Training("sweep", "lora", 4, 1)
    assert train(training, options, until_s=0) is None and not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="sweep"):
        train(training, options, until_s=float("inf"))  # there are no demonstrations


def test_a_training_that_a_signal_stopped_does_not_count_as_done(tmp_path, monkeypatch):
    stopped = StageResult("finetune", {}, {}, [], partial=True)
    monkeypatch.setattr(adapter_variants, "prepare_training_set", lambda settings, resume: None)
    monkeypatch.setattr(adapter_variants, "finetune_adapter", lambda settings, resume: stopped)
    options, training = TrainingOptions(tmp_path / "data", tmp_path, 1, "cpu", 0), Training("sweep", "lora", 4, 1)
    with pytest.raises(RuntimeError, match="stopped"):
        train(training, options, until_s=float("inf"))
    assert not list(tmp_path.rglob("training.json"))


def test_demonstrations_and_tests_are_recorded_from_different_regions():
    args = argparse.Namespace(tasks=TASKS, num_demos=10, demo_counts=[1, 20], test_episodes=12, seen_episodes=2,
                              seen_tasks=None, readout_episodes=8)  # fmt: skip
    recordings = all_recordings(args)
    train_sets = [words for name, words in recordings.items() if name.startswith("train/")]
    assert len(train_sets) == len(TASKS) and all(words[-1] == "20" and "test" not in words for words in train_sets)
    assert all("test" in recordings[name] for name in ("test", "seen")) and "test" not in recordings["readout"]


def test_nearest_demonstration_is_of_the_same_task():
    real = clips_of(["sweep", "push-back"], [10, 10])
    demos = {"sweep": clips_of(["sweep"] * 2, [100, 30]), "push-back": clips_of(["push-back"], [200])}
    assert nearest_demonstrations(real, demos)[:, 0, 0, 0, 0].tolist() == [30, 200]


def test_metrics_of_clips():
    assert differences(torch.tensor([[[1], [5]], [[2], [2]]]), torch.tensor([[[1], [5]], [[2], [9]]])) == {
        "equal_clips": 1, "max_levels": 7}  # fmt: skip
    both = mean_over([{"psnr": np.array([1.0, np.nan])}, {"psnr": np.array([2.0, np.nan])}])
    assert as_lists(both) == {"psnr": [1.5, None]}


def test_rows_have_means_of_tasks_and_paired_tests():
    rng, keys = np.random.default_rng(0), ("psnr_moving", "hand_cm", "object_end_cm")
    base = {key: rng.normal(10, 3, 12).tolist() for key in keys} | {"success": [0.0] * 12}
    better = {key: [value - 2 for value in base[key]] for key in keys} | {"success": [0.0] * 6 + [1.0] * 6}
    better["psnr_moving"][3] = None
    off, trainings = {"clips": 2, "equal_clips": 2, "max_levels": 0}, [
        {"seconds": 2.0, "step_s": 0.1, "final_loss": 0.5, "adapter_mb": 1.0}]  # fmt: skip
    measured = {
        "recording": {"heldout": {"success": [1.0] * 12}},
        BASE: {"heldout": base},
        "reference": {"heldout": better, "adapters": 2, "off": off},
        "same": {"heldout": base, "adapters": 2, "off": off},
    }
    real = clips_of(["sweep"] * 6 + ["push-back"] * 6)
    rows = {row["name"]: row for row in rows_of(measured, "heldout", real, "reference")}
    assert rows["reference"]["tasks"]["push-back"]["success"] == 1 and rows["reference"]["success"] == 0.5
    assert rows["reference"]["p_base"]["hand_cm"] == pytest.approx(2 / 2**12, abs=1e-5)
    assert rows["reference"]["p_base"]["psnr_moving"] == pytest.approx(2 / 2**11, abs=1e-5), "without the missing clip"
    assert rows["same"]["p_base"]["hand_cm"] == 1 and rows["same"]["p_reference"]["hand_cm"] < 0.001
    assert "p_base" not in rows[BASE] and "p_reference" not in rows["reference"]
    report = {"rows": list(rows.values()), "reference": "reference", "left_out": ["rank 4: no time left"],
              "trainings": {"reference": trainings}}  # fmt: skip
    text = tables(report)
    assert "| base |" in text and "| same |" in text and "+2.00" in text and "Left out: rank 4" in text
    assert p_values({key: np.array(base[key], float) for key in base}, base)["success"] == 1


def test_a_folder_is_continued_with_its_own_options_only(tmp_path: Path):
    args = argparse.Namespace(out=tmp_path, lora_steps=120, minutes=5)
    check_options(args, FREE_OPTIONS)
    check_options(argparse.Namespace(out=tmp_path, lora_steps=120, minutes=9), FREE_OPTIONS)
    with pytest.raises(SystemExit, match="--lora_steps=120"):
        check_options(argparse.Namespace(out=tmp_path, lora_steps=60, minutes=9), FREE_OPTIONS)
