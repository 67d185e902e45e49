"""With `keep_best` the adapter has the weights of the lowest held-out loss, also after an interruption."""

import csv
import json
import math
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file

from dreamgen.errors import UserError
from finetune import finetune
from finetune.best_weights import mean_of_levels
from finetune.checkpoint import whole_checkpoints
from tests.finetune.conftest import training_settings, write_training_set

ADAPTER = "pytorch_lora_weights.safetensors"
TUNE = {"validation_clips": 1, "validate_every": 1, "keep_best": True, "checkpoint_every": 1, "keep_checkpoints": 100}
RISING = {"num_steps": 2, "warmup_steps": 1, "learning_rate": 0.05, "decay_from": 1.0, "decay_to": 50.0}


def losses_by_step(run):
    """Return the geometric mean of each step's losses in validation.csv."""
    steps = defaultdict(list)
    with (run / "finetune/validation.csv").open() as stream:
        for row in csv.DictReader(stream):
            steps[int(row["step"])].append(float(row["loss"]))
    return {step: math.prod(losses) ** (1 / len(losses)) for step, losses in steps.items()}


def same_tensors(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_adapter_has_the_weights_of_the_lowest_loss(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    result = finetune(training_settings(tmp_path, world, finetune=TUNE | RISING))
    losses = losses_by_step(tmp_path)
    best = min(losses, key=losses.__getitem__)
    assert (result.metrics["best_step"], best) == (1, 1), losses  # the second step's rate is too high
    folder = tmp_path / "finetune/checkpoints"
    assert [path.name for path in folder.glob("best-*")] == ["best-000001"]
    assert same_tensors(tmp_path / "adapter" / ADAPTER, folder / "step-000001" / ADAPTER)
    assert "1, with the lowest validation loss" in (tmp_path / "adapter/README.md").read_text()
    assert not (tmp_path / "adapter/best.json").exists()


def test_the_moving_average_is_what_is_kept(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    result = finetune(training_settings(tmp_path, world, finetune=TUNE | RISING | {"ema_decay": 0.5}))
    assert result.metrics["best_step"] == 1
    average = load_file(tmp_path / "finetune/checkpoints/step-000001/ema.safetensors")
    written = load_file(tmp_path / "adapter" / ADAPTER)
    assert len(average) == len(written)
    assert {value.sum().item() for value in average.values()} == {value.sum().item() for value in written.values()}
    assert not same_tensors(tmp_path / "adapter" / ADAPTER, tmp_path / "finetune/checkpoints/step-000001" / ADAPTER)


def test_a_resumed_training_writes_the_same_adapter(world, tmp_path):
    for name in ("whole", "resumed"):
        write_training_set(tmp_path / name, num_clips=3)
    whole = finetune(training_settings(tmp_path / "whole", world, finetune=TUNE | RISING))
    settings = training_settings(tmp_path / "resumed", world, finetune=TUNE | RISING)
    finetune(settings)
    folder = tmp_path / "resumed/finetune/checkpoints"
    (tmp_path / "resumed/adapter").rename(tmp_path / "resumed/first")
    assert [checkpoint.name for checkpoint in whole_checkpoints(folder)] == ["step-000001"]  # as if killed after it
    resumed = finetune(settings, resume=True)
    assert resumed.metrics["best_step"] == whole.metrics["best_step"] == 1
    assert same_tensors(tmp_path / "resumed/adapter" / ADAPTER, tmp_path / "whole/adapter" / ADAPTER)


def test_without_held_out_clips_it_is_refused(world, tmp_path):
    write_training_set(tmp_path)
    with pytest.raises(UserError, match="keep_best needs held-out clips"):
        finetune(training_settings(tmp_path, world, finetune={"keep_best": True}))
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["train"]'


def test_levels_count_equally_and_nan_is_never_best():
    assert mean_of_levels({0.2: 0.4, 0.8: 0.1}) == pytest.approx(0.2)
    assert mean_of_levels({0.2: 0.8, 0.8: 0.05}) == pytest.approx(0.2)
    assert math.isnan(mean_of_levels({0.2: 0.4, 0.8: math.nan}))
