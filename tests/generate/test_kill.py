"""generate, killed and interrupted half way as a real process, ends with the clips of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch

from dreamgen.generate.clip import make_clip
from dreamgen.generate.clip_status import STAGE
from dreamgen.generate.stage import generate
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import clip_generator, make_world, planned_run, tiny_settings, write_pairs

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 300


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    ray.shutdown()


class Driver:
    """`dreamgen generate` in a process group of its own, as a terminal gives it."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dreamgen", "generate", "--out", str(run.root)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""},
        )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def kill_child(self, name: str) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        next(child for child in children if name in " ".join(child.cmdline())).kill()

    def wait_for_records(self, num_records: int) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while len(read_journal(self.run.journal, STAGE)) < num_records:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline_s, "no clip within the time"
            time.sleep(0.01)


def wait_until_gone(worker: str) -> bool:
    pid, deadline_s = worker.split(":")[1], time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return not Path(f"/proc/{pid}").exists()


def clips_of(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.clips.glob("*/*.mp4") if not path.name.startswith(".")}


@pytest.mark.slow
def test_killed_and_interrupted_run_ends_as_an_undisturbed_one(tmp_path):
    world, pairs = make_world(tmp_path / "world"), write_pairs(tmp_path / "pairs")
    plan = {"num_seeds": 3, "num_inference_steps": 40}
    settings = tiny_settings(tmp_path / "run", world, pairs, plan=plan)
    run = planned_run(settings)
    jobs = read_jobs(run.jobs)

    with Driver(run) as driver:
        driver.wait_for_records(2)
        driver.process.send_signal(signal.SIGKILL)
        assert driver.process.wait() == -signal.SIGKILL
    after_kill = read_journal(run.journal, STAGE)
    assert 2 <= len(after_kill) < len(jobs)
    made = {clip_id: run.clip_file(clip_id).stat().st_mtime_ns for clip_id in after_kill}
    assert wait_until_gone(next(iter(after_kill.values())).worker), "the dead driver's worker lives on"

    with Driver(run) as driver:
        driver.wait_for_records(len(after_kill) + 1)
        os.killpg(driver.process.pid, signal.SIGINT)
        stdout, stderr = driver.process.communicate(timeout=PATIENCE_S)
    assert driver.process.returncode == 3, stderr
    assert "Traceback" not in stderr and "Ctrl-C" in stderr
    assert f"dreamgen generate --out {run.root}" in stdout
    after_interrupt = read_journal(run.journal, STAGE)
    assert len(after_kill) < len(after_interrupt) < len(jobs)
    assert all(run.clip_file(clip_id).is_file() for clip_id in after_interrupt)

    result = generate(settings)
    assert not result.partial and result.metrics["num_done"] == len(jobs)
    assert not ray.is_initialized()  # it was started by the stage, so it is ended by it
    records = read_journal(run.journal, STAGE)
    assert set(records) == {job.clip_id for job in jobs}
    assert set(clips_of(run)) == {f"{job.clip_id}.mp4" for job in jobs}
    assert all(run.clip_file(clip_id).stat().st_mtime_ns == time_ns for clip_id, time_ns in made.items())
    num_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in run.journal.iterdir())
    assert num_lines == len(jobs)  # nothing was made twice

    undisturbed = planned_run(tiny_settings(tmp_path / "undisturbed", world, pairs, plan=plan))
    generator = clip_generator(settings, undisturbed)
    for job in read_jobs(undisturbed.jobs):
        assert make_clip(generator, job).status == "ok"
    assert clips_of(run) == clips_of(undisturbed)


@pytest.mark.slow
def test_generate_ends_when_ray_dies_or_it_is_told_to_end(tmp_path):
    world, pairs = make_world(tmp_path / "world"), write_pairs(tmp_path / "pairs")
    plan = {"num_seeds": 300, "num_inference_steps": 40}  # more than are made until Ray's processes have noticed
    run = planned_run(tiny_settings(tmp_path / "run", world, pairs, plan=plan))
    num_made = 0
    for name in ("RuntimeEnvAgent", "/raylet/raylet"):
        with Driver(run) as driver:
            driver.wait_for_records(num_made + 1)
            driver.kill_child(name)
            _, stderr = driver.process.communicate(timeout=PATIENCE_S)
        assert driver.process.returncode == 1, stderr
        assert "Ray is gone" in stderr and "Traceback" not in stderr
        num_made = len(read_journal(run.journal, STAGE))

    with Driver(run) as driver:
        driver.wait_for_records(num_made + 1)
        driver.process.terminate()
        _, stderr = driver.process.communicate(timeout=PATIENCE_S)
    assert driver.process.returncode == 3, stderr
    assert "stopped." in stderr and "Traceback" not in stderr and "***" not in stderr
