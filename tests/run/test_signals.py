"""SIGTERM and Ctrl-C end long commands with status 3, one message, and neither leases nor temporary files left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dreamgen.cli.main import main
from dreamgen.run.signals import sigterm_interrupts
from tests.fixtures.demos import write_lerobot_v21, write_plain

SMALL = ["--video.height=32", "--video.width=48", "--video.num_frames=9"]
PATIENCE_S = 300


def heed_interrupts() -> None:
    """Undo what a shell does to commands in the background: they, and the tests among them, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(words, has_begun, number, whole_group) -> str:
    """Start a command, signal it once it has begun, and return its stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "dreamgen", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=heed_interrupts,
    ) as process:  # fmt: skip
        deadline_s = time.monotonic() + PATIENCE_S
        while not has_begun():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, stderr
    assert "stopped." in stderr and "Traceback" not in stderr and "***" not in stderr
    return stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_prepare_on_two_processes(tmp_path, number, whole_group):
    demos, run = write_plain(tmp_path / "demos", num_episodes=40, num_frames=100), tmp_path / "run"
    words = ("prepare", "--demos", demos, "--out", run, *SMALL, "--num_workers=2")

    def both_work() -> bool:
        names = sorted(path.name for path in demos.glob("*.mp4"))
        done = {path.name for path in run.glob(".train.*/videos/*.mp4")}
        return bool(done & set(names[:20])) and bool(done & set(names[20:]))

    interrupted(words, both_work, number, whole_group)
    assert not run.exists() or not list(run.iterdir())  # neither temporary files nor a lease


@pytest.mark.slow
def test_training_of_inverse_dynamics(tmp_path):
    demos, run = write_lerobot_v21(tmp_path / "demos", num_episodes=2), tmp_path / "run"
    assert main(["prepare", "--demos", str(demos), "--out", str(run), *SMALL]) == 0
    lease = run / "journal/idm.0-of-1.lease"
    interrupted(("finetune_idm", "--out", run), lease.exists, signal.SIGTERM, False)
    assert not lease.exists() and not (run / "idm").exists()


@pytest.fixture
def default_handler():
    """Ray, started by another test of this process, leaves a handler of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_interrupts_the_body_and_is_as_before_after_it(default_handler):
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    own = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with sigterm_interrupts():
            signal.raise_signal(signal.SIGTERM)  # a program that calls the command line has a handler of its own
    finally:
        signal.signal(signal.SIGTERM, own)
