"""With `keep_best` the adapter has the weights of the lowest held-out loss, also after an interruption."""

import csv
import json
import math
import shutil
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from finetune import finetune
from finetune.best_weights import BestWeights, mean_of_levels
from finetune.checkpoint import whole_checkpoints
from tests.finetune.conftest import training_settings, write_training_set

ADAPTER = "pytorch_lora_weights.safetensors"
TUNE = {"validation_clips": 1, "validate_every": 1, "keep_best": True, "checkpoint_every": 1, "keep_checkpoints": 100}
# The first step lowers the loss, and the rates after it are far too high.
RISING = {"num_steps": 3, "warmup_steps": 1, "learning_rate": 0.03, "decay_from": 1.0, "decay_to": 10.0}


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


def checkpoint(run, step):
    return run / f"finetune/checkpoints/step-{step:06d}"


def without_adapter(world, run):
    """Train, remove the adapter, and return the settings, with which the training can go on."""
    write_training_set(run, num_clips=3)
    settings = training_settings(run, world, finetune=TUNE | RISING)
    finetune(settings)
    shutil.rmtree(run / "adapter")
    return settings


def test_the_adapter_has_the_weights_of_the_lowest_loss(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    result = finetune(training_settings(tmp_path, world, finetune=TUNE | RISING))
    losses = losses_by_step(tmp_path)
    assert min(losses, key=losses.__getitem__) == result.metrics["best_step"] == 1, losses
    assert same_tensors(tmp_path / "adapter" / ADAPTER, checkpoint(tmp_path, 1) / ADAPTER)
    assert not same_tensors(tmp_path / "adapter" / ADAPTER, checkpoint(tmp_path, 2) / ADAPTER)
    card = (tmp_path / "adapter/README.md").read_text()
    assert "| weights of step | 1, with the lowest geometric mean" in card
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["README.md", "loss.svg", ADAPTER]


def test_the_moving_average_is_what_is_kept(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    result = finetune(training_settings(tmp_path, world, finetune=TUNE | RISING | {"ema_decay": 0.5}))
    step = result.metrics["best_step"]
    assert step == 1
    average = load_file(checkpoint(tmp_path, step) / "ema.safetensors")
    written = load_file(tmp_path / "adapter" / ADAPTER)
    assert len(average) == len(written)
    assert {value.sum().item() for value in average.values()} == {value.sum().item() for value in written.values()}
    assert not same_tensors(tmp_path / "adapter" / ADAPTER, checkpoint(tmp_path, step) / ADAPTER)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_resumed_training_writes_the_same_adapter(world, tmp_path, stopped_after):
    write_training_set(tmp_path, num_clips=3)
    settings = training_settings(tmp_path, world, finetune=TUNE | RISING)
    finetune(settings)
    (tmp_path / "adapter").rename(tmp_path / "whole")
    for later in whole_checkpoints(tmp_path / "finetune/checkpoints")[stopped_after:]:
        shutil.rmtree(later)
    resumed = finetune(settings, resume=True)
    assert resumed.metrics["best_step"] == 1
    assert same_tensors(tmp_path / "adapter" / ADAPTER, tmp_path / "whole" / ADAPTER)


def test_what_was_best_before_the_checkpoint_is_compared_with(world, tmp_path):
    settings = without_adapter(world, tmp_path)
    state = json.loads((checkpoint(tmp_path, 2) / "state.json").read_text())
    assert state["best_step"] == 1 and state["best_loss"] == pytest.approx(losses_by_step(tmp_path)[1])
    (checkpoint(tmp_path, 2) / "state.json").write_text(json.dumps({**state, "best_loss": 1e6}))
    assert finetune(settings, resume=True).metrics["best_step"] == 3  # of which it has nothing better


def test_a_training_goes_on_in_another_run(world, tmp_path):
    for name in ("one", "other"):
        write_training_set(tmp_path / name, num_clips=3)
    finetune(training_settings(tmp_path / "one", world, finetune=TUNE | RISING))
    words = TUNE | RISING | {"resume_from": str(checkpoint(tmp_path / "one", 2))}
    assert finetune(training_settings(tmp_path / "other", world, finetune=words)).metrics["best_step"] == 1
    assert same_tensors(tmp_path / "other/adapter" / ADAPTER, tmp_path / "one/adapter" / ADAPTER)


def test_damaged_best_weights_are_told_before_a_step(world, tmp_path):
    settings = without_adapter(world, tmp_path)
    path = checkpoint(tmp_path, 2) / "best.safetensors"
    for wrong in ({"another": torch.zeros(1)}, {name: value[:1] for name, value in load_file(path).items()}):
        save_file(wrong, path)
        with pytest.raises(UserError, match=r"best\.safetensors does not fit the model"):
            finetune(settings, resume=True)
    path.unlink()
    with pytest.raises(UserError, match=r"best\.safetensors is missing or damaged"):
        finetune(settings, resume=True)


def test_without_held_out_clips_it_is_refused(world, tmp_path):
    write_training_set(tmp_path)
    with pytest.raises(UserError, match="keep_best needs held-out clips"):
        finetune(training_settings(tmp_path, world, finetune={"keep_best": True}))
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_only_a_lower_loss_replaces_what_is_kept():
    best, parameter = BestWeights(), torch.nn.Parameter(torch.zeros(2))

    def add(step, loss):
        with torch.no_grad():
            parameter.fill_(step)
        if best.add(step, {0.2: loss, 0.8: loss}):
            best.keep({"p": parameter})
        return best.step, best.tensors["p"][0].item() if best.tensors else None

    assert add(0, 0.1) == (0, None)  # an adapter that changes nothing
    assert add(1, math.nan) == (0, None)
    assert add(2, 0.5) == (2, 2.0)
    assert add(3, 0.6) == add(4, math.nan) == add(5, 0.5) == (2, 2.0)
    assert add(6, 0.4) == (6, 6.0) and add(7, 0.5) == (6, 6.0)
    with best.in_place_of({"p": parameter}):
        assert parameter.tolist() == [6, 6]
    assert parameter.tolist() == [7, 7]


def test_levels_count_equally():
    assert mean_of_levels({0.2: 0.4, 0.8: 0.1}) == pytest.approx(0.2)
    assert mean_of_levels({0.2: 0.8, 0.8: 0.05}) == pytest.approx(0.2)
    assert math.isnan(mean_of_levels({0.2: 0.4, 0.8: math.nan}))
