"""What the driver and Ray add to the time of clips: many workers on one machine that sleep instead of generating.

    python benchmarks/ray_overhead.py                              200 workers, 20,000 clips of 1 s
    python benchmarks/ray_overhead.py --workers 4 --clips 40 --clip_s 0.05 --ceiling_clips 100

The pool, its schedule and its actors are those of `dreamgen generate`; only the model is missing. Ideal is the number
of clips times their length over the number of workers. Real clips are far longer, so this overhead is an upper bound.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray reads this when it is imported: send no usage statistics.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.pool import WorkerPool
from dreamgen.cluster.ray_cluster import PoolSize
from dreamgen.run.records import JournalRecord

PROMPT = "The robot arm is performing a task. Pick up the red cube and put it into the drawer. " * 8


@dataclass(frozen=True)
class Clip:
    """A task about as large as a real job."""

    task_id: str
    prompt: str = PROMPT


class Sleeper:
    """A worker like `GenerationWorker` whose GPU is a lock and whose model sleeps."""

    def __init__(self) -> None:
        self.gpu = threading.Lock()

    def node(self) -> str:
        """Return the id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    def load(self, clip_s: float, num_threads: int, without_gpu: bool) -> None:
        """Set the length of a clip."""
        self.clip_s = clip_s

    def make(self, clip: Clip) -> JournalRecord:
        """Sleep for the time of a clip."""
        with self.gpu:
            if not clip.task_id.startswith("quick"):
                time.sleep(self.clip_s)
        metrics = {"num_frames": 93, "num_bytes": 1234567, "dream_s": self.clip_s, "encode_s": 0.5}
        file = f"clips/{clip.task_id[:2]}/{clip.task_id}.mp4"
        return JournalRecord(clip.task_id, "generate", "ok", file=file, metrics=metrics, worker=f"host:{os.getpid()}")

    def withdraw(self) -> None:
        """Do nothing: the benchmark runs to its end."""


def main() -> None:
    """Measure overhead and ceiling, check that each clip was made once, print the tables and write the metrics."""
    args = parse_arguments()
    size = PoolSize(args.workers, 0.0, 0.001)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )  # fmt: skip
    begun_s = time.monotonic()
    with WorkerPool(size, PoolOptions("generate"), Sleeper, args.clip_s) as pool:
        for _ in pool.run(clips("quick"), lambda: pool.num_loaded == args.workers):
            pass
        started_s = time.monotonic() - begun_s
        paced = measure(pool, itertools.islice(clips("paced"), args.clips), args.clips)
        quick = measure(pool, itertools.islice(clips("quick"), args.ceiling_clips), args.ceiling_clips)
    ray.shutdown()

    ideal_s = args.clips * args.clip_s / args.workers
    metrics = {
        "workers": args.workers, "clips": args.clips, "clip_s": args.clip_s, "ideal_s": ideal_s,
        "cores": os.cpu_count(), "load_before": args.load, "load_after": os.getloadavg()[0],
        "start_of_workers_s": started_s, "overhead": paced["elapsed_s"] / ideal_s - 1, "paced": paced, "ceiling": quick,
    }  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps(metrics, indent=1) + "\n")
    print("| workers | clips | ideal s | measured s | overhead | driver's CPU ms a clip |\n|---|---|---|---|---|---|")
    print(
        f"| {args.workers} | {args.clips:,} of {args.clip_s:g} s | {ideal_s:.1f} | {paced['elapsed_s']:.2f} | "
        f"{100 * metrics['overhead']:.2f} % | {paced['driver_cpu_ms']:.2f} |"
    )
    print("\n| clips done | driver's memory MiB |\n|---|---|")
    for done, mib in paced["memory"]:
        print(f"| {done:,} | {mib:.1f} |")
    print(
        f"\nWith clips that take no time: {args.ceiling_clips / quick['elapsed_s']:,.0f} clips a second through "
        f"{args.workers} workers on {os.cpu_count()} cores; the driver's own share is {quick['driver_cpu_ms']:.2f} ms "
        f"of CPU a clip. Load of the machine: {metrics['load_before']:.1f} before, {metrics['load_after']:.1f} after."
    )


def measure(pool: WorkerPool, tasks: Iterable[Clip], num_clips: int) -> dict[str, Any]:
    """Make the clips and measure time, CPU and memory of this process; each clip must be made once."""
    seen = collections.Counter()
    with sampled_memory(seen) as samples:
        begun_s, cpu_s = time.monotonic(), time.process_time()
        for record in pool.run(tasks, lambda: False):
            assert record.status == "ok" and record.attempt == 1, record
            seen["done"] += 1
            seen["sum"] += int(record.clip_id[5:])
        elapsed_s, cpu_s = time.monotonic() - begun_s, time.process_time() - cpu_s
    assert seen["done"] == num_clips and seen["sum"] == num_clips * (num_clips - 1) // 2, seen
    sampled = [samples[round(share * (len(samples) - 1))] for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)]
    return {"elapsed_s": elapsed_s, "driver_cpu_ms": 1000 * cpu_s / num_clips, "memory": sampled}


@contextmanager
def sampled_memory(counter: collections.Counter) -> Iterator[list[tuple[int, float]]]:
    """Yield a list that gets (clips done, MiB resident) twice a second."""
    samples, is_over = [], threading.Event()

    def sample() -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((counter["done"], pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            if is_over.wait(0.5):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield samples
    is_over.set()
    thread.join()


def clips(kind: str) -> Iterator[Clip]:
    """Yield clips without end."""
    return (Clip(f"{kind}{number:d}") for number in itertools.count())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--clip_s", type=float, default=1.0, help="seconds that a worker sleeps for a clip")
    parser.add_argument("--ceiling_clips", type=int, default=20_000, help="clips that take no time, for the ceiling")
    parser.add_argument("--out", help="write the metrics as JSON")
    args = parser.parse_args()
    args.load = os.getloadavg()[0]
    return args


if __name__ == "__main__":
    main()
