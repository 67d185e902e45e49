"""Each stage on a full disk ends with one message that names the folder, without a traceback and without leftovers."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreamgen.cli.main import main
from dreamgen.run.journal import read_journal
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.runs import make_run
from tests.fixtures.world import make_world
from tests.models.test_inverse_dynamics import small_model

SMALL = ["--video.height=32", "--video.width=48", "--video.num_frames=9", "--model.dtype=float32", "--model.device=cpu",
         "--model.safety_checker=false"]  # fmt: skip
ROOM = 1500  # bytes of one file: enough for a lease and a line of the journal


@contextmanager
def small_files(num_bytes: int = ROOM):
    """Let no file of this process grow beyond some bytes; writing more fails as on a file system that has no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails_for_lack_of_room(capsys, folder, *words, room=ROOM) -> str:
    """Run a command; return its message, which must name a folder below `folder`."""
    capsys.readouterr()
    with small_files(room):
        status = main(list(map(str, words)))
    error = capsys.readouterr().err
    assert status == 1, error
    last = error[error.rindex("error: ") :]
    assert last.startswith(f"error: {folder}") and "has no space left" in last.splitlines()[0], error
    assert "found:   File too large" in last and "Traceback" not in error
    assert not list(folder.rglob(".*.tmp*"))
    return last


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run with a training set and a tiny world model."""
    folder = tmp_path_factory.mktemp("full_disk")
    demos, model = write_lerobot_v21(folder / "demos", num_episodes=2, num_frames=9), make_world(folder / "world")
    assert main(["prepare", "--demos", str(demos), "--out", str(folder / "run"), f"--model.path={model}", *SMALL]) == 0
    return folder


@pytest.fixture
def run(prepared, tmp_path):
    return shutil.copytree(prepared / "run", tmp_path / "run")


@pytest.fixture
def curated(tmp_path):
    """A run up to curate, with an inverse-dynamics model."""
    run = make_run(tmp_path / "curated")
    run.idm.mkdir(exist_ok=True)
    small_model().save(run.idm)
    return run.root


def test_prepare(prepared, tmp_path, capsys):
    words = ("--demos", prepared / "demos", *SMALL)
    fails_for_lack_of_room(capsys, tmp_path / "run", "prepare", "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run/train").exists()


def test_finetune_at_its_cache(run, capsys):
    message = fails_for_lack_of_room(capsys, run / "cache", "finetune", "--out", run, "--tracker=none")
    assert "--resume" in message


def test_plan(run, capsys):
    fails_for_lack_of_room(capsys, run, "plan", "--out", run)
    assert not (run / "jobs.parquet").exists()


def test_label_at_its_model(run, curated, capsys):
    for name in ("train", "idm"):
        shutil.rmtree(curated / name)
    (run / "train").rename(curated / "train")
    words = ("--num_steps=2", "--image_px=32", "--horizon=4")
    fails_for_lack_of_room(capsys, curated, "label", "--out", curated, *words)
    assert not (curated / "idm").exists()


def test_label_keeps_no_clip_as_failed(curated, capsys):
    fails_for_lack_of_room(capsys, curated / "labels", "label", "--out", curated, room=700)
    assert not [r for r in read_journal(curated / "journal", "label").values() if r.status == "failed"]


@pytest.mark.parametrize("stage", ["curate", "report"])
def test_curate_and_report(curated, capsys, stage):
    fails_for_lack_of_room(capsys, curated, stage, "--out", curated)


@pytest.mark.parametrize("name", ["lerobot-v3.0", "lerobot-v2.1", "robomimic", "aloha"])
def test_export(curated, capsys, name):
    words = (f"--formats=[{name}]", "--num_workers=1")
    fails_for_lack_of_room(capsys, curated / "datasets", "export", "--out", curated, *words, room=6000)
    assert main(["export", "--out", str(curated), *words, "--resume"]) == 0


def test_convert_and_manifest(prepared, tmp_path, capsys):
    target = tmp_path / "target"
    fails_for_lack_of_room(capsys, tmp_path, "convert", prepared / "demos", target)
    assert not target.exists()
    assert main(["convert", str(prepared / "demos"), str(target)]) == 0
    (target / "manifest.sha256").unlink()
    fails_for_lack_of_room(capsys, target, "check", target, "--write_manifest", room=100)


def test_a_disk_that_is_full(small_disk, prepared, capsys):
    """The limit of this one is a file system's: what libraries say about it differs."""
    run = shutil.copytree(prepared / "run", small_disk / "run")
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while filler.write(b"x" * 4096):
            pass
    with (small_disk / "filler").open("r+b") as filler:
        filler.truncate((small_disk / "filler").stat().st_size - 3 * 4096)
    assert main(["finetune", "--out", str(run), "--tracker=none"]) == 1
    error = capsys.readouterr().err
    assert f"error: {run / 'cache'}" in error and "No space left on device" in error and "Traceback" not in error


def test_what_is_printed_has_no_room(curated):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "dreamgen", "status", "--out", str(curated)], stdout=full,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 1 and done.stderr == "error: stdout: No space left on device\n"
