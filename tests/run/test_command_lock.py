"""Commands that write the same files of a run wait for each other, also across containers that share a host's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace

import pytest

from dreamgen.errors import UserError
from dreamgen.run import lease as lease_module
from dreamgen.run.jobs import read_jobs
from dreamgen.run.lease import Lease, hold, hold_command
from dreamgen.run.process_identity import machine_name, process_space, process_start
from dreamgen.run.shard import Shard
from dreamgen.stages import STAGES
from tests.fixtures.leftovers import OTHER_HOST, leftover
from tests.fixtures.runs import make_run, run_settings


@pytest.mark.parametrize("stage", ["prepare", "finetune", "plan", "label", "curate"])
def test_a_command_that_runs_already_is_named(tmp_path, stage):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    settings = run_settings(run.root)
    code = (
        "import sys; from pathlib import Path; from dreamgen.run.lease import hold_command\n"
        f"with hold_command(Path({str(run.root)!r}), ({stage!r},)):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is running in this run folder") as caught:
            STAGES[stage].call(settings)
        assert f"process {other.pid} on" in caught.value.actual
        other.stdin.close()
    with hold_command(run.root, STAGES[stage].locks):
        pass
    assert not list((run.root / "journal").glob("*.lease"))


def test_half_written_files_of_killed_processes_are_swept(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    left = []
    for folder in ("first_frames/ab", "labels/ab", "scores"):
        left.append(run.root / folder / f".x.{2**22 + 1}-{'0' * 16}.tmp.png")
        left[-1].parent.mkdir(parents=True, exist_ok=True)
        left[-1].write_bytes(b"half")
    left += [
        leftover(run.root / name) for name in ("run.yaml", "jobs.parquet", "report.html", "made_from/adapter.json")
    ]
    kept = [leftover(run.root / "run.yaml", pid=os.getpid()), leftover(run.root / "run.yaml", host=OTHER_HOST)]
    for stage in ("finetune", "plan", "label", "curate"):
        with suppress(UserError):  # the run has no training set and no model
            STAGES[stage].call(run_settings(run.root, plan={"first_frames": str(tmp_path / "none")}))
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in kept)
    assert run.label_file(next(iter(read_jobs(run.jobs))).clip_id).exists()


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), hold_command(tmp_path / "run", ("prepare",)):
        raise UserError("no demonstrations")
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_another_container_is_watched_and_not_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "DEAD_AFTER_S", 0.5)
    mine = Lease("generate", "0/1")
    assert mine.is_of_this_machine() and mine.process == process_start(os.getpid())
    boot, space, start = mine.process.split(":")
    # The same host name, kernel and process id, in another PID namespace.
    theirs = replace(mine, owner="them", pid=2**22 + 1, process=f"{boot}:{int(space) + 1}:{start}")
    assert not theirs.is_of_this_machine() and not theirs.is_known_dead()
    assert replace(theirs, process=f"{process_space()}:1").is_known_dead()
    (tmp_path / mine.name).write_text(json.dumps(asdict(theirs)))
    with hold(tmp_path, "generate", Shard()):  # it was watched, and did not renew its lease
        assert json.loads((tmp_path / mine.name).read_text())["owner"] != "them"
    assert machine_name().startswith(f"{os.uname().nodename}.")
