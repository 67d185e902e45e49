"""Two processes on the CPU (gloo) train what one with twice the accumulation trains, and none waits for ever."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dreamgen.config.loading import parse_settings
from dreamgen.models.adapter_files import WEIGHTS_NAME
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.launch import main as launch
from finetune.launch import take_number
from finetune.resume import resume_command
from finetune.training_log import read_steps
from tests.finetune.conftest import training_settings, write_training_set
from tests.finetune.curves import checkpoint_names, curve

ROOT = Path(__file__).parents[2]
TUNE = {"num_steps": 4, "method": "dora", "ema_decay": 0.5, "log_every": 3}


def settings_for(folder, world, **tune):
    # Three clips for two processes: an epoch ends in the middle of a step.
    if not (folder / "train").exists():
        write_training_set(folder, num_clips=3, num_frames=13)
    return training_settings(folder, world, finetune={**TUNE, **tune})


def two_processes(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def same(one, other):
    """Compare two trainings up to rounding, which another order of sums changes and Adam makes larger."""
    for row, wanted in zip(curve(one), curve(other), strict=True):
        assert list(map(float, row)) == pytest.approx(list(map(float, wanted)), rel=1e-3)
    weights, wanted = (load_file(run / "adapter" / WEIGHTS_NAME) for run in (one, other))
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (weights[name] - tensor).norm() < 0.02 * tensor.norm(), name


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(world, tmp_path):
    finetune(settings_for(tmp_path / "one", world, gradient_accumulation_steps=2))
    RunFolder(tmp_path / "two").record(settings_for(tmp_path / "two", world), ["finetune"])
    done = two_processes("-m", "finetune", f"--out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "two", tmp_path / "one")
    assert done.stdout.count("final_loss") == 1  # one process speaks
    counted = [line for line in done.stdout.splitlines() if line.startswith("num_samples")]
    assert counted == ["num_samples: 8"]


@pytest.mark.slow
def test_processes_stop_together_and_fail_together(world, tmp_path):
    finetune(settings_for(tmp_path / "one", world, gradient_accumulation_steps=4))
    for name in ("stopped", "full_disk", "broken_clip"):
        settings_for(tmp_path / name, world)
    done = two_processes(Path(__file__).with_name("two_process_driver.py"), tmp_path, world)
    outcomes = {rank: json.loads((tmp_path / f"outcome-{rank}.json").read_text()) for rank in (0, 1)}

    # Rank 1 alone got a signal, in its second step. Gradients cross over in each step's last batch only.
    for rank in (0, 1):
        assert outcomes[rank]["stopped"] == {"partial": True, "step": 2, "syncs": [False, True, False, True]}
    assert checkpoint_names(tmp_path / "stopped") == ["step-000002"]
    # One process goes on with twice the accumulation, and the steps are the same.
    finetune(settings_for(tmp_path / "stopped", world, gradient_accumulation_steps=4), resume=True)
    same(tmp_path / "stopped", tmp_path / "one")

    # Rank 0 alone could not write.
    assert "has no space left" in outcomes[0]["full_disk"]
    assert "main process could not write" in outcomes[1]["full_disk"]
    assert not checkpoint_names(tmp_path / "full_disk")
    # Rank 1 alone met a broken clip and ended; the launcher ended the other instead of letting it wait.
    assert done.returncode != 0 and "is damaged" in outcomes[1]["broken_clip"] and "broken_clip" not in outcomes[0]
    assert not (tmp_path / "broken_clip/adapter").exists()


def launched(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "finetune.launch", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_a_refusal_under_our_launcher_is_told_once_and_is_its_status(tmp_path):
    done = launched("--num_processes=2", f"--out={tmp_path}", "--num_stepz=3")
    assert done.returncode == 2
    assert done.stderr.count("unknown setting: finetune.num_stepz") == 1
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr


@pytest.mark.slow
def test_a_signal_to_our_launcher_stops_the_training_at_a_checkpoint(world, tmp_path):
    RunFolder(tmp_path).record(settings_for(tmp_path, world, num_steps=100_000, log_every=1), ["finetune"])
    command = [sys.executable, "-m", "finetune.launch", "--num_processes=2", f"--out={tmp_path}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        loss = tmp_path / "finetune/loss.csv"
        while run.poll() is None and (not loss.exists() or len(loss.read_text().splitlines()) < 3):
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 3, stderr
    assert "Traceback" not in stderr and "--resume" in stdout
    assert len(checkpoint_names(tmp_path)) == 1 and not (tmp_path / "adapter").exists()


@pytest.mark.slow
def test_two_processes_train_one_vae(world, tmp_path):
    settings = settings_for(tmp_path, world)
    tune = replace(
        settings.finetune_vae, num_steps=8, batch_size=1, learning_rate=1e-2, warmup_steps=2, num_workers=0,
        log_every=1, validation_clips=1, validate_every=4, ema_decay=0.5,
    )  # fmt: skip
    given = RunFolder(tmp_path / "given")
    given.root.mkdir()
    given.record(replace(settings, finetune_vae=tune), ["finetune_vae"])
    done = launched("--num_processes=2", "finetune_vae", f"--config_path={given.settings_file}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("final_loss") == 1  # one process speaks
    losses = [float(row["loss"]) for row in read_steps(tmp_path / "finetune_vae/loss.csv")]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert [row["step"] for row in read_steps(tmp_path / "finetune_vae/validation.csv")] == ["4", "8"]
    assert (tmp_path / "vae/config.json").is_file()
    # What resumes it later has only the run folder's settings.
    resumed, _ = parse_settings([f"--out={tmp_path}", "--resume"], "finetune_vae", flags=("resume",))
    assert resumed.finetune_vae == tune


def test_the_command_that_resumes_names_the_launcher_and_the_processes(world, tmp_path, monkeypatch):
    settings = settings_for(tmp_path, world)
    ending = f" --out {tmp_path} --resume"
    assert resume_command("finetune_idm", settings, 1) == f"dreamgen finetune_idm{ending}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    here = "python -m finetune.launch --num_processes=4"
    assert resume_command("finetune", settings, 4) == f"{here}{ending}"
    assert resume_command("finetune_vae", settings, 4) == f"{here} finetune_vae{ending}"
    assert resume_command("finetune", settings, 8) == f"accelerate launch -m finetune{ending}"


def test_our_launchers_own_word_is_read_and_checked(capsys):
    assert take_number(["--out=x", "--num_processes", "2", "--resume"]) == (2, ["--out=x", "--resume"])
    assert take_number(["--num_processes=8"]) == (8, []) and take_number(["--out=x"]) == (None, ["--out=x"])
    for wrong in (["--num_processes=none"], ["--num_processes=0"], ["--num_processes"]):
        assert launch(wrong) == 2
        assert "--num_processes is not a number of processes" in capsys.readouterr().err
