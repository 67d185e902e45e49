"""generate where clips go to an object store, in shares by several drivers, and onto a disk that fills up."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from dreamgen.errors import CannotWrite
from dreamgen.generate.clip_status import STAGE, clip_status
from dreamgen.generate.stage import generate
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.store import Store
from dreamgen.status import status
from tests.fixtures.local_ray import start_ray
from tests.fixtures.s3 import CREDENTIALS, s3_server
from tests.fixtures.world import make_world, planned_run, tiny_settings, write_pairs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("storage")
    make_world(base / "world")
    write_pairs(base / "pairs")
    return base


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def cluster(bucket):  # after the credentials, which its workers inherit
    start_ray(2)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_shares_in_an_object_store_are_the_clips_of_a_local_run(base, bucket, cluster, tmp_path, monkeypatch):
    local = tiny_settings(tmp_path / "local", base / "world", base / "pairs", plan={"num_seeds": 2})
    here = planned_run(local)
    assert generate(local).metrics["num_done"] == 6

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = replace(local, out=bucket % "runs/dreams")
    assert plan(there).metrics["num_new"] == 6 and plan(there).metrics["num_new"] == 0
    num_of_shard = []
    for number in range(2):
        # Each driver on a machine of its own.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache_{number}"))
        share = replace(there, generate=replace(there.generate, shard=f"{number}/2"))
        result = generate(share)
        num_of_shard.append(result.metrics["num_done"])
        assert result.metrics["num_left"] == result.metrics["num_failed"] == 0
        assert generate(share).notes == ["nothing was left to do"]
        assert list((tmp_path / f"cache_{number}").rglob("*.mp4")) == []  # what was sent is not kept
    assert sum(num_of_shard) == 6

    run = RunFolder.of(there, may_be_remote=True)
    assert status(there).metrics | {"num_done": 6, "num_left": 0} == status(there).metrics
    store = Store(there.out)
    for job in read_jobs(here.jobs):
        name = here.clip_file(job.clip_id).relative_to(here.root).as_posix()
        assert store.read(name) == here.clip_file(job.clip_id).read_bytes()
    lost = read_jobs(here.jobs)[0].clip_id
    store.remove(f"clips/{lost[:2]}/{lost}.mp4")
    assert [job.clip_id for job in clip_status(run).left] == [lost]


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(base, cluster, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (it takes root)")
    try:
        settings = tiny_settings(disk / "run", base / "world", base / "pairs", plan={"num_seeds": 2})
        run = planned_run(settings)
        generate(replace(settings, generate=replace(settings.generate, limit=2)))
        made = read_journal(run.journal, STAGE)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"x" * (free - 1024))
        with pytest.raises(CannotWrite, match="no space left") as caught:
            generate(settings)
        assert "same command again" in caught.value.next_step
        assert read_journal(run.journal, STAGE) == made  # nothing is failed, nothing forgotten
        (disk / "filler").unlink()
        assert generate(settings).metrics | {"num_done": 6, "num_failed": 0} == generate(settings).metrics
        assert all(record.attempt == 1 for record in read_journal(run.journal, STAGE).values())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
