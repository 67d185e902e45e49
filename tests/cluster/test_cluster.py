"""The pool on a cluster whose nodes differ, join and leave, with tasks that crash, hang, or break the GPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from dreamgen.cluster import pool as pool_module
from dreamgen.cluster.local_ray import without_unused_processes
from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.pool import WorkerPool
from dreamgen.cluster.ray_cluster import PoolSize, alive_nodes, ray_pool_size, room
from dreamgen.cluster.schedule import Schedule
from dreamgen.generate import stage
from dreamgen.generate.worker import GenerationWorker
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.records import JournalRecord
from tests.fixtures.local_ray import started_again
from tests.fixtures.plain_worker import PlainWorker, Task
from tests.fixtures.world import make_world, planned_run, tiny_settings, write_pairs

# A cluster of three nodes takes ten seconds to start, and the tests wait until faults are noticed.
pytestmark = pytest.mark.slow

# The driver does not know which of the two tasks of a worker started first, so a crash may count as an attempt of the
# other one, which is then retried exclusively.
MAX_ATTEMPTS_BESIDE_A_CRASH = 2
GPU_FAULT = "CUDA error: an illegal memory access was encountered"


class BreaksItsGpu(GenerationWorker):
    """The real worker; its decoder raises GPU errors from one clip on, in the first process that reaches this clip."""

    def make(self, task: Any) -> JournalRecord | None:
        run, clip_id = self.generator.run, task.task_id
        mark = run.root / "broken"
        if mark.exists() or not (run.root / f"{clip_id}.breaks").exists():
            return super().make(task)
        mark.write_text(str(os.getpid()))

        def broken(*_: Any, **__: Any) -> None:
            raise torch.AcceleratorError(GPU_FAULT)

        # For good, as on a GPU in an error state. Every way of decoding begins with this layer.
        self.generator.model.pipe.vae.post_quant_conv.forward = broken
        return super().make(task)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node without room, a node with two GPUs, and one with a GPU and the resource `fast`; no GPU is real."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    head = {"num_cpus": 0, "num_gpus": 0}
    with without_unused_processes():
        cluster = started_again(lambda: Cluster(initialize_head=True, head_node_args=head))
        cluster.add_node(num_cpus=2, num_gpus=2)
        cluster.add_node(num_cpus=1, num_gpus=1, resources={"fast": 1})
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    torch.set_num_threads(torch_threads)


def make_all(size: PoolSize, tasks: list[Task], folder: Path, **options: Any) -> list[JournalRecord]:
    with WorkerPool(size, PoolOptions("generate", **options), PlainWorker, str(folder)) as pool:
        return list(pool.run(iter(tasks), lambda: False))


def tasks_until(is_enough: Callable[[], bool], length_s: float) -> Iterator[Task]:
    """Yield tasks until there are enough, however long the workers take to start.

    The pool must not read far ahead (`LOOK_AHEAD`). 1,000 tasks end a test that would never have enough.
    """
    for number in range(1000):
        if is_enough():
            return
        yield Task(f"clip{number}", length_s=length_s)


def make_until(is_enough: Callable[[list[JournalRecord]], bool], size: PoolSize, folder: Path) -> list[JournalRecord]:
    """Run tasks of 0.2 s until `is_enough` accepts their records."""
    records: list[JournalRecord] = []
    with WorkerPool(size, PoolOptions("generate"), PlainWorker, str(folder)) as pool:
        for record in pool.run(tasks_until(lambda: is_enough(records), 0.2), lambda: False):
            records.append(record)
    return records


def sized(gpus: float, cpus: float = 0.1, **resources: float) -> PoolSize:
    size = PoolSize(1, gpus, cpus, resources, is_fixed=False)
    return PoolSize(room(size, alive_nodes()), gpus, cpus, resources, is_fixed=False)


def places_of(records: list[JournalRecord]) -> Counter:
    """Count the workers on each GPU of each node."""
    workers = {(r.metrics["node"], tuple(r.metrics["gpus"]), r.metrics["pid"]) for r in records}
    return Counter(place[:2] for place in workers)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PoolOptions("generate"), 3),
        (PoolOptions("generate", gpus_per_worker=0.5, cpus_per_worker=0.5), 6),
        (PoolOptions("generate", gpus_per_worker=0.4, cpus_per_worker=0.1), 6),  # a worker never spans two GPUs
        (PoolOptions("generate", gpus_per_worker=0.25, cpus_per_worker=0.25, resources_per_worker={"fast": 0.5}), 2),
    ],
)
def test_a_running_cluster_is_joined_and_left_running(cluster, monkeypatch, options, expected):
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with ray_pool_size(options, "auto") as size:
            assert ray.get_runtime_context().gcs_address == cluster.address
            assert (size.num_workers, size.is_fixed) == (expected, False)
        assert not ray.is_initialized()
    finally:
        ray.init(address=cluster.address, log_to_driver=False)  # the cluster still runs
    assert len(alive_nodes()) == 3


def test_each_gpu_of_the_cluster_has_a_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    size = sized(1.0)
    assert size.num_workers == 3
    records = make_until(lambda records: len(places_of(records)) == 3 and len(records) >= 30, size, tmp_path)
    places = places_of(records)
    assert len(places) == 3 and set(places.values()) == {1}
    assert sorted(Counter(node for node, _ in places).values()) == [1, 2]


def test_fractions_of_a_gpu_share_it_on_nodes_with_the_resource(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    size = sized(0.5, fast=0.5)
    assert size.num_workers == 2
    records = make_until(lambda records: places_of(records).total() == 2 and len(records) >= 20, size, tmp_path)
    assert list(places_of(records).values()) == [2]
    fast = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("fast"))
    assert {record.metrics["node"] for record in records} == {fast}


@pytest.mark.parametrize(("max_loading_per_node", "expected"), [(2, 2), (None, 10)])
def test_workers_load_at_a_time_as_many_as_the_options_allow(cluster, tmp_path, max_loading_per_node, expected):
    size = PoolSize(10, 0.0, 0.1, {"fast": 0.01})
    options = PoolOptions("generate", max_loading_per_node=max_loading_per_node)
    pool = WorkerPool(size, options, PlainWorker, str(tmp_path))
    pool._num_wanted, pool._num_nodes = size.num_workers, 1
    with pool:
        for _ in range(2):  # no worker has loaded yet: its result is taken from the pool's events
            pool._start_workers(Schedule([Task(f"clip{number}") for number in range(20)], 1))
        assert len(pool._workers) == expected


def test_a_task_that_crashes_every_worker_fails_and_the_others_are_made(cluster, tmp_path):
    tasks = [Task(f"clip{n}", "kill" if n == 2 else "none", 0.2) for n in range(10)]
    with WorkerPool(sized(1.0), PoolOptions("generate", max_attempts=3), PlainWorker, str(tmp_path)) as pool:
        records = {record.clip_id: record for record in pool.run(iter(tasks), lambda: False)}
        assert pool.num_replaced >= 2  # the last worker is not replaced if no task is left
    crashed = records.pop("clip2")
    assert crashed.status == "failed" and crashed.attempt == 3 and crashed.error.startswith("KilledWorkers: 3 workers")
    assert len(records) == 9 and {r.status for r in records.values()} == {"ok"}
    assert max(r.attempt for r in records.values()) <= MAX_ATTEMPTS_BESIDE_A_CRASH


def test_a_task_that_hangs_is_retried_elsewhere_until_no_attempt_is_left(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "CHECK_EVERY_S", 0.5)
    tasks = [Task("once", "hang once"), Task("ever", "hang"), *(Task(f"clip{n}") for n in range(6))]
    found = make_all(sized(1.0), tasks, tmp_path, task_limit_s=10.0, max_attempts=3)
    records = {record.clip_id: record for record in found}
    assert len(found) == len(records) == 8
    assert records["once"].status == "ok" and (tmp_path / "once").exists()
    ever = records.pop("ever")
    assert ever.status == "failed" and ever.attempt == 3 and "HungWorker: a clip took longer than 10 s" in ever.error
    # On a busy machine an innocent task may pass the limit too, so its number of attempts is not known.
    assert {r.status for r in records.values()} == {"ok"}


def test_a_node_that_joins_gets_workers_and_one_that_leaves_loses_no_task(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "CHECK_EVERY_S", 0.5)
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    first = cluster.add_node(num_cpus=1, resources={"here": 1})
    cluster.wait_for_nodes()
    records, joined, left_after = [], None, None

    def after_it_left() -> list[str]:
        return [] if left_after is None else [record.metrics["node"] for record in records[left_after:]]

    tasks = tasks_until(lambda: joined is not None and after_it_left().count(joined.node_id) > 8, 0.4)
    with WorkerPool(sized(0.0, here=1.0), PoolOptions("generate", max_attempts=2), PlainWorker, str(tmp_path)) as pool:
        for record in pool.run(tasks, lambda: False):
            records.append(record)
            nodes = {r.metrics["node"] for r in records}
            if len(records) == 2:
                joined = cluster.add_node(num_cpus=1, resources={"here": 1})
            if len(nodes) == 2 and first is not None:
                # Without notice to Ray, with one task running and one queued.
                cluster.remove_node(first, allow_graceful=False)
                first_id, first, left_after = first.node_id, None, len(records)
    assert first is None, "the node that joined got no worker"
    assert sorted(r.clip_id for r in records) == sorted(f"clip{n}" for n in range(len(records)))
    assert {(r.status, r.attempt) for r in records} == {("ok", 1)}  # a lost node counts as no attempt
    # The processes of a node that left may live, and return results, until they notice it.
    assert set(after_it_left()) <= {joined.node_id, first_id} and after_it_left()[-1] == joined.node_id
    cluster.remove_node(joined)


def test_a_broken_gpu_costs_a_worker_and_no_clip(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "GenerationWorker", BreaksItsGpu)
    world, pairs = make_world(tmp_path / "world"), write_pairs(tmp_path / "pairs")
    settings = tiny_settings(tmp_path / "run", world, pairs, plan={"num_seeds": 2})
    run = planned_run(settings)
    jobs = read_jobs(run.jobs)
    (run.root / f"{jobs[1].clip_id}.breaks").touch()
    result = stage.generate(settings)
    assert not result.partial and result.metrics["num_done"] == len(jobs) == 6
    records = read_journal(run.journal, "generate")
    # Either of the two assigned clips met the error first; the other one was requeued without an attempt.
    (retried,) = [record for record in records.values() if record.attempt > 1]
    assert retried.attempt == 2 and retried.clip_id in (jobs[0].clip_id, jobs[1].clip_id)
    broken = (run.root / "broken").read_text()
    after = {records[job.clip_id].worker.split(":")[1] for job in jobs[1:]}
    assert len(after) == 1 and broken not in after, "another process must have made them"
