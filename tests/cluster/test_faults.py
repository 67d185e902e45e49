"""Time limits, crash records and room for workers; and kills of workers, nodes and drivers by a seeded schedule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreamgen.cluster.faults import FIRST_LIMIT_S, MIN_LIMIT_S, TimeLimit, crash_record
from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.ray_cluster import PoolSize, local_resources, ray_pool_size, room
from dreamgen.errors import UserError
from dreamgen.generate.stage import cost_of
from dreamgen.run.records import Job
from tests.fixtures.jobs import SAMPLED_PLAINLY

REPOSITORY = Path(__file__).parents[2]


def job(num_frames: int) -> Job:
    return Job(
        clip_id="a" * 20, first_frame_sha256="b" * 64, instruction="push", prompt="push", negative_prompt="", seed=0,
        height=32, width=48, num_frames=num_frames, fps=16, num_inference_steps=36, guidance_scale=7.0, model="mini",
        model_sha256="c", adapter_sha256=None, dtype="float32", codec="h264", crf=18, gop=2, source="",
        **SAMPLED_PLAINLY,
    )  # fmt: skip


def test_the_time_limit_grows_with_a_task_and_with_the_slowest_one_so_far():
    assert TimeLimit(50.0).of(job(93)) == 50.0
    limit = TimeLimit(None, cost_of)
    assert limit.of(job(93)) == FIRST_LIMIT_S
    limit.add(job(93), 60.0)
    assert limit.of(job(93)) == MIN_LIMIT_S
    limit.add(job(93), 600.0)
    assert limit.of(job(93)) == pytest.approx(12_000)
    assert limit.of(job(93 * 2)) == pytest.approx(24_000)


def test_the_record_of_a_crash_names_the_workers_and_the_error():
    record = crash_record("generate", "a" * 20, 3, RuntimeError("out of memory\nmore"))
    assert record.status == "failed" and record.attempt == 3 and "more" in record.traceback
    assert record.error.startswith("KilledWorkers: 3 workers") and record.error.endswith("out of memory")


@pytest.mark.parametrize(
    ("gpus", "others", "nodes", "expected"),
    [
        (1.0, {}, [{"GPU": 8, "CPU": 64}, {"GPU": 1, "CPU": 64}, {"CPU": 64}], 9),
        (2.0, {}, [{"GPU": 3, "CPU": 64}, {"GPU": 3, "CPU": 64}], 2),  # a worker never spans two nodes
        (0.4, {}, [{"GPU": 2, "CPU": 64}], 4),  # nor two GPUs
        (1 / 3, {}, [{"GPU": 1, "CPU": 64}], 3),
        (1.0, {}, [{"GPU": 8, "CPU": 3}], 3),
        (1.0, {"big": 0.5}, [{"GPU": 8, "CPU": 64, "big": 1}, {"GPU": 8, "CPU": 64}], 2),
    ],
)
def test_room_is_counted_on_each_node(gpus, others, nodes, expected):
    assert room(PoolSize(1, gpus, PoolOptions("generate").cpus_per_worker, others), nodes) == expected


@pytest.mark.parametrize(
    ("options", "device", "num_gpus", "num_cpus", "resources"),
    [
        ({}, "auto", 0, 1, {}),
        ({}, "auto", 1, 1, {}),
        ({}, "cuda", 2, 2, {}),
        ({}, "auto", 8, 8, {}),
        ({}, "cpu", 8, 1, {}),
        ({"num_workers": 3}, "auto", 0, 3, {}),
        ({"num_workers": 3}, "auto", 2, 3, {}),  # too many for the GPUs; refused once Ray runs
        ({"cpus_per_worker": 4.0}, "auto", 2, 8, {}),
        ({"cpus_per_worker": 0.25}, "auto", 8, 2, {}),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 0.5}, "auto", 2, 2, {}),
        ({"gpus_per_worker": 1 / 3}, "auto", 2, 6, {}),
        ({"gpus_per_worker": 0.4}, "auto", 2, 4, {}),  # a worker never spans two GPUs
        ({"gpus_per_worker": 2.0}, "auto", 8, 4, {}),
        ({"gpus_per_worker": 0.0}, "auto", 2, 1, {}),
        ({"resources_per_worker": {"fast": 0.5}}, "auto", 0, 1, {"fast": 1}),
        ({"resources_per_worker": {"fast": 0.5}}, "auto", 8, 8, {"fast": 4}),
    ],
)
def test_ray_on_this_machine_starts_with_room_for_a_worker_on_every_gpu(options, device, num_gpus, num_cpus, resources):
    started = local_resources(PoolOptions("generate", **options), device, num_gpus)
    expected_gpus = 0 if device == "cpu" else num_gpus
    assert started == {"num_cpus": num_cpus, "num_gpus": expected_gpus, "resources": resources}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_gpus", "options", "expected"),
    [
        (2, {}, PoolSize(2, 1.0, 1.0, {}, is_fixed=False, has_environment=True)),
        (
            2,
            {"gpus_per_worker": 0.5, "cpus_per_worker": 0.5, "resources_per_worker": {"fast": 0.25}},
            PoolSize(4, 0.5, 0.5, {"fast": 0.25}, is_fixed=False, has_environment=True),
        ),
        (
            0,
            {"resources_per_worker": {"fast": 0.25}},
            PoolSize(1, 0.0, 1.0, {"fast": 0.25}, is_fixed=False, has_environment=True),
        ),
    ],
)
def test_ray_started_on_this_machine_has_that_room(monkeypatch, num_gpus, options, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)  # Ray believes it
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_pool_size(PoolOptions("generate", **options), "auto") as size:
        assert size == expected


def test_ray_does_not_start_for_a_gpu_that_does_not_exist():
    with pytest.raises(UserError, match="Ray has none"):
        local_resources(PoolOptions("generate"), "cuda", 0)


@pytest.mark.slow
def test_no_clip_is_lost_or_made_twice_when_workers_nodes_and_drivers_are_killed(tmp_path):
    command = ["benchmarks/faults.py", "--kills", "3", "--clips", "12", "--nodes", "2", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "faults.json")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    metrics = json.loads((tmp_path / "faults.json").read_text())
    assert {kill["kind"] for kill in metrics["kills"]} == {"worker", "node", "driver"}
    assert metrics["num_clips"] == 12 and metrics["driver_starts"] >= 2
    assert [metrics[name] for name in ("num_lost", "num_twice", "num_other_bytes")] == [0, 0, 0]
