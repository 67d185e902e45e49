"""The pool on a cluster whose nodes differ, join and leave, with clips that kill, hang, or break the GPU."""

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
from dreamgen.cluster.pool import ClipPool
from dreamgen.cluster.ray_cluster import PoolSize, alive_nodes, ray_pool_size, room
from dreamgen.cluster.schedule import DEPTH
from dreamgen.config.settings import GenerateSettings
from dreamgen.generate import stage
from dreamgen.generate.worker import GenerationWorker
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.records import JournalRecord
from tests.fixtures.local_ray import started_again
from tests.fixtures.plain_worker import Plain, Task
from tests.fixtures.world import make_world, planned_run, tiny_settings, write_pairs

# A cluster of three nodes takes ten seconds to start, and its clips wait for faults to be noticed.
pytestmark = pytest.mark.slow

# Two clips that a worker is given at once begin in an order that the driver does not know: the other one may be blamed,
# is then made with nothing beside it, and is cleared.
ONCE_SUSPECTED = 2
GPU_FAULT = "CUDA error: an illegal memory access was encountered"


class BreaksItsGpu(GenerationWorker):
    """The real worker, whose decoder meets a broken GPU at one clip in the first process that comes to it."""

    def make(self, task: Any) -> JournalRecord | None:
        run, clip_id = self.what.run, getattr(task, "clip_id", "")
        mark = run.root / "broken"
        if mark.exists() or not (run.root / f"{clip_id}.breaks").exists():
            return super().make(task)
        mark.write_text(str(os.getpid()))

        def broken(*_: Any, **__: Any) -> None:
            raise torch.AcceleratorError(GPU_FAULT)

        self.generator.model.pipe.vae.decode = broken  # and it stays so, as a GPU in an error state does
        return super().make(task)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room, a node of two GPUs and one of one GPU that is also `fast`; no GPU is real."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    head = {"num_cpus": 0, "num_gpus": 0}
    cluster = started_again(lambda: Cluster(initialize_head=True, head_node_args=head))
    cluster.add_node(num_cpus=2, num_gpus=2)
    cluster.add_node(num_cpus=1, num_gpus=1, resources={"fast": 1})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    torch.set_num_threads(torch_threads)


def make_all(size: PoolSize, tasks: list[Task], marks: Path, **settings: Any) -> list[JournalRecord]:
    with ClipPool(size, GenerateSettings(**settings), Plain, str(marks)) as pool:
        return list(pool.make_clips(iter(tasks), lambda: False))


def tasks_until(is_enough: Callable[[], bool], length_s: float) -> Iterator[Task]:
    """Yield clips until there are enough: how many a machine makes before all its workers have begun is its own affair.

    The pool must not read far ahead (`LOOK_AHEAD`). The last of 1,000 clips ends a test that would never have enough.
    """
    for number in range(1000):
        if is_enough():
            return
        yield Task(f"clip{number}", length_s=length_s)


def make_until(is_enough: Callable[[list[JournalRecord]], bool], size: PoolSize, marks: Path) -> list[JournalRecord]:
    """Make clips of 0.2 s until their records are enough."""
    records: list[JournalRecord] = []
    with ClipPool(size, GenerateSettings(), Plain, str(marks)) as pool:
        for record in pool.make_clips(tasks_until(lambda: is_enough(records), 0.2), lambda: False):
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
    ("settings", "expected"),
    [
        (GenerateSettings(), 3),
        (GenerateSettings(gpus_per_worker=0.5, cpus_per_worker=0.5), 6),
        (GenerateSettings(gpus_per_worker=0.4, cpus_per_worker=0.1), 6),  # none lies across two GPUs
        (GenerateSettings(gpus_per_worker=0.25, cpus_per_worker=0.25, resources_per_worker={"fast": 0.5}), 2),
    ],
)
def test_a_cluster_that_is_there_is_joined_and_left_running(cluster, monkeypatch, settings, expected):
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with ray_pool_size(settings, "auto") as size:
            assert ray.get_runtime_context().gcs_address == cluster.address
            assert (size.num_workers, size.is_fixed) == (expected, False)
        assert not ray.is_initialized()
    finally:
        ray.init(address=cluster.address, log_to_driver=False)  # it runs on
    assert len(alive_nodes()) == 3


def test_each_gpu_has_its_own_worker_wherever_it_is(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    size = sized(1.0)
    assert size.num_workers == 3
    records = make_until(lambda records: len(places_of(records)) == 3 and len(records) >= 30, size, tmp_path)
    places = places_of(records)
    assert len(places) == 3 and set(places.values()) == {1}
    assert sorted(Counter(node for node, _ in places).values()) == [1, 2]


def test_a_fraction_of_a_gpu_puts_several_workers_on_it_where_a_resource_is(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    size = sized(0.5, fast=0.5)
    assert size.num_workers == 2
    records = make_until(lambda records: places_of(records).total() == 2 and len(records) >= 20, size, tmp_path)
    assert list(places_of(records).values()) == [2]
    fast = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("fast"))
    assert {record.metrics["node"] for record in records} == {fast}


def test_a_clip_that_kills_every_worker_is_set_aside_and_the_others_are_made(cluster, tmp_path):
    tasks = [Task(f"clip{n}", "kill" if n == 2 else "none", 0.2) for n in range(10)]
    with ClipPool(sized(1.0), GenerateSettings(max_attempts=3), Plain, str(tmp_path)) as pool:
        records = {record.clip_id: record for record in pool.make_clips(iter(tasks), lambda: False)}
        assert pool.num_replaced >= 2  # the last need not be, where nothing is left to do
    killer = records.pop("clip2")
    assert killer.status == "failed" and killer.attempt == 3 and killer.error.startswith("KilledWorkers: 3 workers")
    assert len(records) == 9 and {r.status for r in records.values()} == {"ok"}
    assert max(r.attempt for r in records.values()) <= ONCE_SUSPECTED


def test_a_clip_that_hangs_is_tried_elsewhere_and_not_for_ever(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.5)
    tasks = [Task("once", "hang once"), Task("ever", "hang"), *(Task(f"clip{n}") for n in range(6))]
    found = make_all(sized(1.0), tasks, tmp_path, clip_limit_s=6.0, max_attempts=3)
    records = {record.clip_id: record for record in found}
    assert len(found) == len(records) == 8
    assert records["once"].status == "ok" and (tmp_path / "once").exists()
    ever = records.pop("ever")
    assert ever.status == "failed" and ever.attempt == 3 and "HungWorker: a clip took longer than 6 s" in ever.error
    assert {r.status for r in records.values()} == {"ok"} and max(r.attempt for r in records.values()) <= ONCE_SUSPECTED


def test_a_node_that_joins_gets_workers_and_one_that_leaves_loses_no_clip(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(pool_module, "LOOK_AHEAD", 1)
    first = cluster.add_node(num_cpus=1, resources={"here": 1})
    cluster.wait_for_nodes()
    records, joined, left_after = [], None, None
    tasks = tasks_until(lambda: left_after is not None and len(records) > left_after + 8, 0.4)
    with ClipPool(sized(0.0, here=1.0), GenerateSettings(max_attempts=2), Plain, str(tmp_path)) as pool:
        for record in pool.make_clips(tasks, lambda: False):
            records.append(record)
            nodes = {r.metrics["node"] for r in records}
            if len(records) == 2:
                joined = cluster.add_node(num_cpus=1, resources={"here": 1})
            if len(nodes) == 2 and first is not None:
                # Without a word to Ray, with a clip at work and one waiting.
                cluster.remove_node(first, allow_graceful=False)
                first_id, first, left_after = first.node_id, None, len(records)
    assert first is None, "the node that joined got no worker"
    assert sorted(r.clip_id for r in records) == sorted(f"clip{n}" for n in range(len(records)))
    assert {(r.status, r.attempt) for r in records} == {("ok", 1)}  # a node's loss counts for no clip
    # What the node that left had finished may arrive later, and it had two clips in hand.
    after = Counter(r.metrics["node"] for r in records[left_after:])
    assert after[joined.node_id] == after.total() - after[first_id] and after[first_id] <= DEPTH
    cluster.remove_node(joined)


def test_a_broken_gpu_costs_its_worker_and_no_clip(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "GenerationWorker", BreaksItsGpu)
    world, pairs = make_world(tmp_path / "world"), write_pairs(tmp_path / "pairs")
    settings = tiny_settings(tmp_path / "run", world, pairs, plan={"num_seeds": 2})
    run = planned_run(settings)
    jobs = read_jobs(run.jobs)
    (run.root / f"{jobs[1].clip_id}.breaks").touch()
    result = stage.generate(settings)
    assert not result.partial and result.metrics["num_done"] == len(jobs) == 6
    records = read_journal(run.journal, "generate")
    # One of the two that were in hand met it first; the one beside it was made again and counts nothing.
    (blamed,) = [record for record in records.values() if record.attempt > 1]
    assert blamed.attempt == 2 and blamed.clip_id in (jobs[0].clip_id, jobs[1].clip_id)
    broken = (run.root / "broken").read_text()
    after = {records[job.clip_id].worker.split(":")[1] for job in jobs[1:]}
    assert len(after) == 1 and broken not in after, "another process made them"
