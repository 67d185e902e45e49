"""Shares of a job, and the lease by which no two drivers work on the same one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dreamgen.errors import UserError
from dreamgen.run import lease as lease_module
from dreamgen.run.files import atomic_file
from dreamgen.run.lease import Lease, hold, read_leases
from dreamgen.run.shard import Shard

PATIENCE_S = 120.0  # longer than any machine keeps a beat waiting


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease_module, "DEAD_AFTER_S", PATIENCE_S)
    monkeypatch.setattr(lease_module, "BEAT_EVERY_S", 0.05)


def test_shares_are_whole_and_apart():
    random = np.random.default_rng(0)
    ids = pa.array([random.bytes(10).hex() for _ in range(2000)])
    held = np.stack([Shard(index, 7).holds(ids) for index in range(7)])
    assert (held.sum(axis=0) == 1).all() and held.sum(axis=1).min() > 200
    halves = [Shard(index, 2) for index in range(2)]
    for small in (Shard(index, 4) for index in range(4)):
        for half in halves:
            assert small.overlaps(half) == bool((small.holds(ids) & half.holds(ids)).any())
    assert Shard().overlaps(Shard(3, 4)) and Shard(1, 3).overlaps(Shard(0, 2)) and not Shard(0, 4).overlaps(Shard(2, 4))


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/0", "", "1/2/3"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UserError, match="not a valid share"):
        Shard.parse(text)


def other_driver(folder: Path, shard: str) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from dreamgen.run.lease import hold; "
        "from dreamgen.run.shard import Shard\n"
        f"with hold(Path({str(folder)!r}), 'generate', Shard.parse({shard!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_driver_is_not_disturbed_and_a_killed_one_is_replaced(tmp_path, monkeypatch):
    with other_driver(tmp_path, "0/2") as process:
        try:
            for shard in ("0/2", "0/1", "2/4", "1/3"):
                with pytest.raises(UserError, match="another driver is working") as caught:
                    hold(tmp_path, "generate", Shard.parse(shard)).__enter__()
                assert f"process {process.pid}" in caught.value.actual and "--shard" in caught.value.allowed
            with hold(tmp_path, "generate", Shard(1, 2)):
                assert [lease.shard for lease in read_leases(tmp_path, "generate")] == ["0/2", "1/2"]
        finally:
            process.kill()
    monkeypatch.setattr(lease_module.time, "sleep", lambda _: pytest.fail("watched, as one that is far away would be"))
    with hold(tmp_path, "generate", Shard()) as is_lost:
        assert not is_lost()
        assert [lease.shard for lease in read_leases(tmp_path, "generate")] == ["0/1"]
    assert list(tmp_path.iterdir()) == []


def while_waiting(monkeypatch, *actions: Callable[[], None]) -> None:
    """Do these, one at each look at another machine's lease, instead of sleeping between the looks."""
    left = iter(actions)
    monkeypatch.setattr(lease_module.time, "sleep", lambda _: next(left)())


def test_another_machines_driver_is_watched(tmp_path, monkeypatch):
    theirs = Lease("generate", "0/1", host="elsewhere", pid=1)
    path = tmp_path / theirs.name

    def write(beat: int) -> None:
        with atomic_file(path) as temporary:  # as a driver does; half a file would be no lease
            temporary.write_text(json.dumps(asdict(replace(theirs, beat=beat))))

    write(0)
    with monkeypatch.context() as patched, pytest.raises(UserError, match="another driver is working"):
        while_waiting(patched, lambda: None, lambda: write(1))
        hold(tmp_path, "generate", Shard()).__enter__()
    monkeypatch.setattr(lease_module, "DEAD_AFTER_S", 0.2)
    with hold(tmp_path, "generate", Shard()) as is_lost:  # it fell silent
        assert read_leases(tmp_path, "generate")[0].host == os.uname().nodename
        write(2000)  # and wakes up, taking its lease back
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_lost() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert is_lost()
    assert path.exists()  # it is theirs


def test_a_lease_that_cannot_be_read_for_a_moment_is_not_gone(tmp_path, monkeypatch):
    theirs = Lease("generate", "0/1", host="elsewhere", pid=1)
    path = tmp_path / theirs.name
    path.write_text(json.dumps(asdict(theirs)))
    renewed = json.dumps(asdict(replace(theirs, beat=1)))
    while_waiting(monkeypatch, lambda: path.write_text("{"), lambda: None, lambda: path.write_text(renewed))
    with pytest.raises(UserError, match="another driver is working"):
        hold(tmp_path, "generate", Shard()).__enter__()


def test_an_interrupt_while_a_lease_is_taken_leaves_none(tmp_path, monkeypatch):
    def write_and_interrupt(store, mine):
        write(store, mine)
        raise KeyboardInterrupt

    write = lease_module._write
    monkeypatch.setattr(lease_module, "_write", write_and_interrupt)
    with pytest.raises(KeyboardInterrupt), hold(tmp_path / "journal", "generate", Shard()):
        pytest.fail("the lease was not taken")
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_process_of_the_same_number_is_another(tmp_path):
    ours = Lease("generate", "0/1")
    assert ours.process and not ours.is_known_dead()
    (tmp_path / ours.name).write_text(json.dumps(asdict(replace(ours, process=ours.process + "0"))))
    with hold(tmp_path, "generate", Shard()):
        pass


def test_of_several_that_begin_at_once_one_gets_it(tmp_path):
    got, refused, begin = [], [], threading.Barrier(8)
    deadline_s = time.monotonic() + PATIENCE_S

    def take() -> None:
        begin.wait()
        try:
            with hold(tmp_path, "generate", Shard()):
                got.append(1)
                while len(refused) < 7 and time.monotonic() < deadline_s:
                    time.sleep(0.02)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
