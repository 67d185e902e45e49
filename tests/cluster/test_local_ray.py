"""Ray on this machine: who can reach it, and that nothing of it outlives its driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from dreamgen.cluster.actors import Actors, PoolWorker
from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.ray_cluster import ray_pool_size

REPOSITORY = Path(__file__).parents[2]
LONGEST_LIFE_S = 120.0
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DRIVER = """
import ray
from dreamgen.cluster.local_ray import local_ray

class Busy:
    def work(self):
        while True:
            pass

with local_ray("test", {"num_cpus": 1}, {}):
    busy = ray.remote(Busy).remote()
    ray.get(busy.__ray_ready__.remote())
    result = busy.work.remote()
    print(ray.get_runtime_context().gcs_address, flush=True)
    ray.get(result)
"""


@pytest.mark.slow
def test_ray_is_reachable_with_its_token_on_loopback_only_and_ends_with_a_killed_driver():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    address = driver.stdout.readline().strip()
    processes = psutil.Process(driver.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {process.name() for process in processes}

    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    ]
    assert set(listening) == {"127.0.0.1"}

    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]

    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(processes, timeout=LONGEST_LIFE_S)
    assert not alive


class ReportsItself(PoolWorker):
    """Says in which process it runs, and with which variables."""

    def load(self, payload: None, num_threads: int, without_gpu: bool) -> None:
        pass

    def report(self) -> tuple[int, dict[str, str | None]]:
        return os.getpid(), {name: os.environ.get(name) for name in THREADS}


def unused_workers(num: int) -> set[int]:
    """Wait until Ray has as many workers without an actor, and return their process ids."""
    for _ in range(round(LONGEST_LIFE_S / 0.1)):
        found = {p.pid for p in psutil.Process().children(recursive=True) if p.cmdline()[:1] == ["ray::IDLE"]}
        if len(found) >= num:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"fewer than {num} workers after {LONGEST_LIFE_S} s")


@pytest.mark.slow
def test_workers_run_in_the_processes_that_ray_starts_with_itself(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {name: os.environ.get(name) for name in THREADS}
    options = PoolOptions("test", num_workers=2, gpus_per_worker=0.0, threads_per_worker=3)
    with ray_pool_size(options, "cpu") as size, Actors(size, options, ReportsItself, None) as actors:
        started = unused_workers(2)
        for _ in range(2):
            actors.start()
        found = dict(ray.get([worker.actor.report.remote() for worker in actors.workers.values()]))
    assert found == dict.fromkeys(started, dict.fromkeys(THREADS, "3"))
    assert {name: os.environ.get(name) for name in THREADS} == before


def test_processes_end_when_the_body_is_left_and_others_do_not():
    script = ["import time; time.sleep(600)"]
    other = subprocess.Popen([sys.executable, "-c", *script])
    code = f"""
import subprocess, sys
from dreamgen.cluster.process_cleanup import processes_end_with_driver
with processes_end_with_driver():
    print(subprocess.Popen([sys.executable, "-c", {script[0]!r}], start_new_session=True).pid)
"""
    begun_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    left = int(done.stdout)
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - begun_s < 300 and other.poll() is None
    other.kill()
    other.wait()
