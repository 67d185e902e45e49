"""An interrupted training goes on as if it had never stopped, from a checkpoint that is whole or absent."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamgen.cli.main import main as dreamgen
from dreamgen.config.loading import parse_settings
from dreamgen.errors import UserError
from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.__main__ import main
from finetune.checkpoint import whole_checkpoints
from finetune.random_state import random_states, set_random_states
from finetune.schedule import learning_rate
from tests.finetune.conftest import training_settings, write_training_set
from tests.finetune.curves import checkpoint_names, curve

VARIANTS = {
    # Three clips and three windows a step: checkpoints lie inside of epochs and between two lines of loss.csv.
    "lora": {"gradient_accumulation_steps": 2, "batch_size": 2, "log_every": 2},
    "dora with an average": {"method": "dora", "ema_decay": 0.9, "gradient_accumulation_steps": 2, "log_every": 3},
    "encoding at every step": {"cache": "none", "num_workers": 0},
    "all weights": {"method": "full", "learning_rate": 1e-4},
}


def settings_for(folder, world, **tune):
    settings = training_settings(folder, world, finetune={"num_steps": 7, **tune})
    if not (folder / "train").exists():
        write_training_set(folder, num_clips=3, num_frames=13)
    return settings


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run whose training was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    finetune(settings_for(folder, world))
    return folder


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal in the middle of an optimizer step."""

    def rate(now, tune):
        if now == step - 1:
            signal.raise_signal(number)
        return learning_rate(now, tune)

    monkeypatch.setattr("finetune.train.learning_rate", rate)


def stopped(monkeypatch, settings, step, **options):
    """Train until a signal in the given step, and return the result."""
    with monkeypatch.context() as patched:
        signal_at(patched, step)
        return finetune(settings, **options)


@pytest.mark.parametrize("tune", VARIANTS.values(), ids=VARIANTS)
def test_stopped_twice_and_resumed_is_as_if_never_stopped(tune, world, tmp_path, monkeypatch):
    finetune(settings_for(tmp_path / "whole", world, **tune))
    settings = settings_for(tmp_path / "parts", world, **tune)
    for step in (3, 5):
        result = stopped(monkeypatch, settings, step, resume=True)
        assert result.partial and result.metrics["interrupted"] is True and result.metrics["step"] == step
        assert result.outputs["checkpoint"].name == f"step-{step:06d}" and "--resume" in result.notes[-1]
        assert not (tmp_path / "parts/adapter").exists()
    result = finetune(settings, resume=True)
    assert not result.partial and "step-000005" in result.notes[0]
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")  # to the last bit
    weights = [load_file(next((tmp_path / name / "adapter").rglob("*.safetensors"))) for name in ("whole", "parts")]
    assert weights[0].keys() == weights[1].keys() and weights[0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_crash_costs_the_steps_since_the_checkpoint_and_none_else(whole, world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path / "crash", world, checkpoint_every=2)

    def crash(now, tune):
        if now == 5:
            raise RuntimeError("a crash in step 6")
        return learning_rate(now, tune)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="a crash"):
        patched.setattr("finetune.train.learning_rate", crash)
        finetune(settings)
    assert len(curve(tmp_path / "crash")) == 5 and checkpoint_names(tmp_path / "crash") == [
        "step-000002",
        "step-000004",
    ]
    (tmp_path / "crash/finetune/loss.csv").open("a").write("6,0.5")  # a line that a kill cut short
    finetune(settings, resume=True)
    assert curve(tmp_path / "crash") == curve(whole)
    assert adapter_sha256(tmp_path / "crash/adapter") == adapter_sha256(whole / "adapter")


def test_without_resume_a_training_begins_again_and_the_old_files_are_kept(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world)
    stopped(monkeypatch, settings, 3)
    result = finetune(settings)
    assert len(curve(tmp_path)) == 7 and "finetune.interrupted-1" in result.notes[0]
    assert checkpoint_names(tmp_path, "finetune.interrupted-1") == ["step-000003"]


def test_only_latest_insists_on_a_checkpoint(world, tmp_path):
    settings = settings_for(tmp_path, world, num_steps=2)
    before = sorted(tmp_path.rglob("*"))
    for asked in ("latest", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match="checkpoint"):
            finetune(replace(settings, finetune=replace(settings.finetune, resume_from=asked)))
    assert sorted(tmp_path.rglob("*")) == before
    finetune(settings, resume=True)
    assert len(curve(tmp_path)) == 2


def test_resume_is_a_switch_or_names_a_checkpoint():
    for tokens, asked in (
        (["--resume"], None), (["--resume", "latest"], "latest"), (["--resume=latest"], "latest"),
        (["--resume", "--out=x"], None), (["--resume", "a/step-000002"], "a/step-000002"),
        (["--resume_from=latest"], "latest"),
    ):  # fmt: skip
        settings, switches = parse_settings(tokens, "finetune", flags=("resume",))
        assert settings.finetune.resume_from == asked
        assert switches["resume"] is (tokens[0] != "--resume_from=latest")
    with pytest.raises(UserError, match="unexpected argument"):
        parse_settings(["--resume", "latest"], "generate", flags=("resume",))


def test_old_checkpoints_are_let_go_of_but_never_the_one_gone_on_from(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world, checkpoint_every=1, keep_checkpoints=2)
    stopped(monkeypatch, settings, 3)
    assert checkpoint_names(tmp_path) == ["step-000002", "step-000003"]
    folder = tmp_path / "finetune/checkpoints"
    assert (folder / "last").readlink() == Path("step-000003")
    (folder / ".step-000004.1-abc.tmp").mkdir()  # what a killed process leaves
    (folder / ".last.1.tmp").symlink_to("step-000001")
    finetune(settings, resume=True)
    assert checkpoint_names(tmp_path) == ["step-000003", "step-000005", "step-000006"]
    assert (folder / "last").resolve().name == "step-000006" and not list(folder.glob(".*"))


def test_an_older_checkpoint_can_be_named_and_later_ones_are_kept_aside(whole, world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path / "back", world, checkpoint_every=2, keep_checkpoints=9)
    stopped(monkeypatch, settings, 5)
    folder = tmp_path / "back/finetune/checkpoints"
    back = replace(settings, finetune=replace(settings.finetune, resume_from=str(folder / "step-000002")))
    result = finetune(back)
    assert {path.name for path in folder.iterdir()} == {
        "last", "step-000002", "step-000004", "step-000006", "step-000004.left-1", "step-000005.left-1",
    }  # fmt: skip
    assert "step-000004.left-1" in " ".join(result.notes)
    assert curve(tmp_path / "back") == curve(whole)
    assert "resume_from: null" in (tmp_path / "back/run.yaml").read_text()


def test_a_checkpoint_of_another_folder_is_gone_on_with_in_a_new_run(whole, world, tmp_path, monkeypatch):
    stopped(monkeypatch, settings_for(tmp_path / "old", world), 4)
    settings = settings_for(tmp_path / "new", world)
    finetune(
        replace(
            settings, finetune=replace(settings.finetune, resume_from=str(tmp_path / "old/finetune/checkpoints/last"))
        )
    )
    assert curve(tmp_path / "new") == curve(whole)[4:]
    assert checkpoint_names(tmp_path / "old") == ["step-000004"]


def test_what_decides_the_result_may_not_change_and_the_rest_may(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world, gradient_accumulation_steps=2)
    stopped(monkeypatch, settings, 3)
    changed = {"learning_rate": 0.5, "gradient_accumulation_steps": 3, "log_every": 2, "ema_decay": 0.5}
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(UserError) as caught:
        finetune(replace(settings, finetune=replace(settings.finetune, **changed), seed=1), resume=True)
    message = str(caught.value)
    for sentence in ("learning_rate: 0.01 -> 0.5", "gradient_accumulation_steps: 2 -> 3", "ema_decay: None -> 0.5",
                     "seed: 0 -> 1"):  # fmt: skip
        assert sentence in message
    assert "log_every" not in message and checkpoint_names(tmp_path) == ["step-000003"]
    finetune(replace(settings, finetune=replace(settings.finetune, log_every=3, checkpoint_every=2)), resume=True)


def test_another_training_set_is_refused(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world)
    stopped(monkeypatch, settings, 2)
    metadata = tmp_path / "train/metadata.csv"
    metadata.write_text("\n".join(metadata.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="training set"):
        finetune(settings, resume=True)


@pytest.mark.parametrize(
    "file", [WEIGHTS_NAME, "optimizer.safetensors", "ema.safetensors", "random.safetensors", "state.json"]
)
def test_a_damaged_checkpoint_is_named(file, world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world, ema_decay=0.5)
    stopped(monkeypatch, settings, 2)
    path = tmp_path / "finetune/checkpoints/step-000002" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        finetune(settings, resume=True)
    if file.endswith("safetensors"):
        save_file({"other": torch.zeros(1)}, path)
        with pytest.raises(UserError, match=file.replace(".", r"\.")):
            finetune(settings, resume=True)


def test_a_full_disk_ends_the_training_with_the_last_checkpoint_whole(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world, checkpoint_every=2)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(now, tune):
        if now == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        return learning_rate(now, tune)

    with monkeypatch.context() as patched:
        patched.setattr("finetune.train.learning_rate", fill_disk)
        try:
            with pytest.raises(UserError, match="checkpoints has no space left") as caught:
                finetune(settings)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "--resume" in str(caught.value) and checkpoint_names(tmp_path) == ["step-000002"]
    assert not list((tmp_path / "finetune/checkpoints").glob(".*"))
    finetune(settings, resume=True)
    assert len(curve(tmp_path)) == 7


def test_the_trackers_curve_goes_on_without_a_step_twice(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world, tracker="tensorboard", checkpoint_every=2)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(
            "finetune.train.learning_rate", lambda now, tune: learning_rate(now, tune) if now < 5 else 1 / 0
        )
        patched.setattr("finetune.train.set_learning_rate", lambda *_: None)
        try:
            finetune(settings)
        except ZeroDivisionError as error:
            raise RuntimeError from error
    state = json.loads((tmp_path / "finetune/checkpoints/last/state.json").read_text())
    finetune(settings, resume=True)
    events = EventAccumulator(str(tmp_path / "finetune/tracker"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert (
        json.loads((tmp_path / "finetune/checkpoints/last/state.json").read_text())["tracker_run"]
        == state["tracker_run"]
    )


def test_the_commands_stop_and_go_on(world, tmp_path, monkeypatch, capsys):
    settings = settings_for(tmp_path, world)
    RunFolder(tmp_path).record(settings, ["finetune"])
    with monkeypatch.context() as patched:
        signal_at(patched, 2)
        assert main([f"--out={tmp_path}", "--model.device=cpu"]) == 3
    assert f"dreamgen finetune --out {tmp_path} --resume" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        signal_at(patched, 4, signal.SIGINT)
        assert dreamgen(["finetune", f"--out={tmp_path}", "--model.device=cpu", "--resume"]) == 3
    message = capsys.readouterr().out
    assert "interrupted=True" in message and f"dreamgen finetune --out {tmp_path} --resume" in message
    assert dreamgen(["finetune", f"--out={tmp_path}", "--model.device=cpu", "--resume", "latest"]) == 0
    assert len(curve(tmp_path)) == 7
    assert main([f"--out={tmp_path}", "--model.device=cpu", "--resume"]) == 0
    assert "kept" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "finetune")
    assert main([f"--out={tmp_path}", "--model.device=cpu", "--resume=latest"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_every_generator_is_put_back():
    accelerator = Accelerator(cpu=True)
    draws = lambda: (torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.normal(size=3).tolist())  # noqa: E731
    draws()  # leaves the second number of a pair behind
    states = random_states(accelerator)
    first = draws()
    assert draws() != first
    set_random_states(states, 0, accelerator.device)
    assert draws() == first
    assert {len(rows) for rows in states.values()} == {1}


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_to_go_on_from(world, tmp_path):
    finetune(settings_for(tmp_path / "whole", world, num_steps=4))
    for moment in ("optimizer", "state", "rename", "renamed", "prune", "pruned", "log", "adapter"):
        settings_for(tmp_path / moment, world)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(tmp_path), str(world)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    assert left == {
        "optimizer": ["step-000001", "step-000002"],
        "state": ["step-000001", "step-000002"], "rename": ["step-000001", "step-000002"],
        "renamed": ["step-000001", "step-000002", "step-000003"],
        "prune": ["step-000001", "step-000002", "step-000003"], "pruned": ["step-000002", "step-000003"],
        "log": ["step-000001", "step-000002"], "adapter": ["step-000002", "step-000003"],
    }  # fmt: skip
    for moment in left:
        assert curve(tmp_path / moment) == curve(tmp_path / "whole"), moment
        assert adapter_sha256(tmp_path / moment / "adapter") == adapter_sha256(tmp_path / "whole/adapter"), moment
        folder = tmp_path / moment / "finetune/checkpoints"
        assert not list(folder.glob(".*")) and (folder / "last").resolve() == whole_checkpoints(folder)[-1].resolve()
