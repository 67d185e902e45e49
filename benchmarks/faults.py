"""Workers, nodes and drivers are killed while clips are made on a Ray cluster of several nodes; nothing may show.

    python benchmarks/faults.py                                   30 kills
    python benchmarks/faults.py --kills 3 --clips 12 --nodes 2    a short one
    python benchmarks/faults.py --seed 7                          another schedule; the same seed repeats it

The cluster's nodes are processes of this machine (`ray.cluster_utils.Cluster`), each with its own workers; the model is
the real classes at a tiny size. A worker dies by SIGKILL, a node with all that runs on it, a driver by SIGKILL too, and
is started again by the same command. Afterwards: each clip has one `ok` record, over all drivers' journals, and a file
with the bytes of the undisturbed run. A driver that dies after a clip's file is there and before its record leaves work
that counts as not done, so that clip is generated again, to the same bytes; its record is still the only one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' fixtures
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from ray.cluster_utils import Cluster

from dreamgen.cluster.local_ray import without_unused_processes
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import as_store
from dreamgen.run.journal_files import read_files
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import make_world, planned_run, tiny_settings, write_pairs

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS = ("worker", "node", "driver")
PATIENCE_S = 900
NODE = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20}


@dataclass(frozen=True)
class Work:
    """What is disturbed.

    Args:
        journal: Its journal, with a record for each clip.
        actor: Name of its workers' processes.
        command: Arguments of Python for a driver; the run folder follows.
    """

    journal: str
    actor: str
    command: tuple[str, ...]


GENERATE = Work("generate", "ray::GenerationWorker", ("-m", "dreamgen", "generate", "--out"))


@dataclass(frozen=True)
class Kill:
    """One entry of the schedule.

    Args:
        kind: worker, node or driver.
        at_clips: How many clips have a record when it is due.
        delay_s: How long after that.
        pick: Which of the victims there are then, as a share of their number.
    """

    kind: str
    at_clips: int
    delay_s: float
    pick: float


def main() -> None:
    """Make the clips undisturbed, then disturbed; compare, print the table, and fail if anything was lost."""
    args = parse_arguments()
    kills = schedule(args.seed, args.kills, args.clips)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        undisturbed, disturbed = (planned(Path(folder), name, args) for name in ("undisturbed", "disturbed"))
        with started_cluster() as cluster:
            nodes = [add_node(cluster) for _ in range(args.nodes)]
            driver = start_driver(cluster, GENERATE, undisturbed)
            assert driver.wait(PATIENCE_S) == 0, "the undisturbed run failed"
            begun_s = time.monotonic()
            driver_starts, events = disturb(cluster, nodes, GENERATE, disturbed, kills)
            elapsed_s = time.monotonic() - begun_s
        metrics = {"seed": args.seed, "elapsed_s": round(elapsed_s, 1), "driver_starts": driver_starts}
        metrics |= compare(disturbed, undisturbed) | {"kills": [asdict(kill) for kill in kills], "events": events}
    if args.out:
        Path(args.out).write_text(json.dumps(metrics, indent=1) + "\n")
    counts = Counter(kill.kind for kill in kills)
    print("| kills of workers | nodes | drivers | clips | lost | recorded twice | other bytes | tried again | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {counts['worker']} | {counts['node']} | {counts['driver']} | {args.clips} | {metrics['num_lost']} | "
        f"{metrics['num_twice']} | {metrics['num_other_bytes']} | {metrics['num_tried_again']} | {elapsed_s:.0f} |"
    )
    sys.exit(1 if metrics["num_lost"] or metrics["num_twice"] or metrics["num_other_bytes"] else 0)


def schedule(seed: int, num_kills: int, num_clips: int) -> list[Kill]:
    """Draw the kills from a seed: of every kind at least one, spread over the job."""
    chance = random.Random(seed)
    kinds = [*chance.sample(KINDS, k=len(KINDS)), *chance.choices(KINDS, k=num_kills)][:num_kills]
    # The last kills come while there still are clips to make.
    due = sorted(chance.randint(1, max(1, num_clips - 4)) for _ in kinds)
    return [Kill(kind, at, chance.uniform(0, 0.5), chance.random()) for kind, at in zip(kinds, due, strict=True)]


def planned(folder: Path, name: str, args: argparse.Namespace) -> RunFolder:
    """Plan a run of the tiny model; all runs plan the same clips."""
    world = folder / "world"
    if not world.is_dir():
        make_world(world)
        write_pairs(folder / "pairs")
    settings = tiny_settings(
        folder / name, world, folder / "pairs",
        plan={"num_seeds": -(-args.clips // 3), "num_inference_steps": args.steps},
        generate={"num_workers": None, "resources_per_worker": {"worker": 1.0}},
    )  # fmt: skip
    return planned_run(settings)


@contextmanager
def started_cluster() -> Iterator[Cluster]:
    """Start a cluster whose only node, the head, has room for no worker; end it with all nodes that joined."""
    with without_unused_processes():  # which take as long to start as a worker
        cluster = Cluster(initialize_head=True, connect=False, head_node_args=NODE | {"num_cpus": 0})
        try:
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Cluster) -> Any:
    """Let a node with room for one worker join."""
    return cluster.add_node(**NODE, resources={"worker": 1})


def start_driver(cluster: Cluster, work: Work, run: RunFolder) -> subprocess.Popen:
    """Begin, or go on with, the work."""
    assert cluster.address is not None, "its head node runs"
    return subprocess.Popen(
        [sys.executable, *work.command, str(run.root)],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )  # fmt: skip


def disturb(cluster: Cluster, nodes: list[Any], work: Work, run: RunFolder, kills: list[Kill]) -> tuple[int, list[str]]:
    """Do the work while the kills happen, and go on until the command says that all is done.

    Returns:
        How often a driver was started, and what happened when.
    """
    driver, num_starts, events = start_driver(cluster, work, run), 1, []
    begun_s = time.monotonic()

    def say(what: str) -> None:
        events.append(f"{time.monotonic() - begun_s:.1f} s: {what}")
        print(events[-1], file=sys.stderr, flush=True)

    try:
        for kill in kills:
            while not is_due(kill, work, run):
                if driver.poll() is not None:  # it gave up, or is done but for what it set aside
                    say(f"a driver ended with {driver.returncode}")
                    driver, num_starts = start_driver(cluster, work, run), num_starts + 1
                assert time.monotonic() - begun_s < PATIENCE_S * 2, "no progress"
                time.sleep(0.02)
            time.sleep(kill.delay_s)
            if kill.kind == "driver":
                driver.kill()
                driver.wait()
                driver, num_starts = start_driver(cluster, work, run), num_starts + 1
                victim = "driver"
            elif kill.kind == "node":
                node = nodes.pop(int(kill.pick * len(nodes)))
                cluster.remove_node(node, allow_graceful=False)
                nodes.append(add_node(cluster))
                victim = "node"
            else:
                pid = wait_for_worker(work, nodes, kill.pick, driver)
                os.kill(pid, signal.SIGKILL)
                victim = f"worker {pid}"
            say(f"killed {victim} at {num_ok(work, run)} clips")
        while (status := driver.wait(PATIENCE_S)) != 0 and num_starts < len(kills) + 9:
            say(f"a driver ended with {status}")
            driver, num_starts = start_driver(cluster, work, run), num_starts + 1
    finally:
        if driver.poll() is None:
            driver.kill()
    assert driver.returncode == 0, f"the work was not done after {num_starts} drivers"
    return num_starts, events


def is_due(kill: Kill, work: Work, run: RunFolder) -> bool:
    """Say whether the job is as far as a kill waits for."""
    return num_ok(work, run) >= kill.at_clips


def num_ok(work: Work, run: RunFolder) -> int:
    """Count clips with an ok record."""
    return len({clip_id for clip_id, *_ in ok_records(work, run)})


def wait_for_worker(work: Work, nodes: list[Any], pick: float, driver: subprocess.Popen) -> int:
    """Return the process of a worker of these nodes; they are few while others load."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and driver.poll() is None:
        raylets = {p.process.pid for node in nodes for p in node.all_processes["raylet"]}
        workers = sorted(pid for pid, parent, name in processes() if parent in raylets and work.actor in name)
        if workers:
            return workers[int(pick * len(workers))]
        time.sleep(0.05)
    raise AssertionError("no worker to kill: more or longer clips leave more time for the kills")


def processes() -> list[tuple[int, int, str]]:
    """List (process, parent, command line) of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found.append((int(folder.name), parent, (folder / "cmdline").read_bytes().decode(errors="replace")))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


SEEN: dict[tuple[str, Path], set[tuple[str, float, int]]] = {}


def ok_records(work: Work, run: RunFolder) -> set[tuple[str, float, int]]:
    """Return (clip id, time, attempt) of each ok record that any look at the drivers' journals has shown.

    A journal that is put together keeps the last record of a clip only, so what was seen before is remembered.
    """
    table = read_files(as_store(run.journal), work.journal, ("clip_id", "status", "time_s", "attempt"))
    seen = SEEN.setdefault((work.journal, run.root), set())
    seen |= {(r["clip_id"], r["time_s"], r["attempt"]) for r in table.to_pylist() if r["status"] == "ok"}
    return seen


def compare(run: RunFolder, undisturbed: RunFolder) -> dict[str, Any]:
    """Compare clips and records of a run with an undisturbed one's."""
    records = Counter(clip_id for clip_id, *_ in ok_records(GENERATE, run))
    ids = [job.clip_id for job in read_jobs(undisturbed.jobs)]
    wanted = {clip_id for clip_id in ids if undisturbed.clip_file(clip_id).is_file()}
    made = {clip_id for clip_id in ids if run.clip_file(clip_id).is_file()}
    other = [i for i in wanted & made if sha256(run.clip_file(i)) != sha256(undisturbed.clip_file(i))]
    tried_again = {clip_id for clip_id, _, attempt in ok_records(GENERATE, run) if (attempt or 1) > 1}
    return {
        "num_clips": len(wanted), "num_lost": len(wanted - (made & set(records))) + len(wanted ^ made),
        "num_twice": sum(count > 1 for count in records.values()), "num_other_bytes": len(other),
        "num_tried_again": len(tried_again),
    }  # fmt: skip


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clips", type=int, default=120, help="a multiple of 3")
    parser.add_argument("--steps", type=int, default=120, help="denoising steps of a clip: its length in time")
    parser.add_argument("--nodes", type=int, default=3, help="each has room for one worker")
    parser.add_argument("--out", help="write the metrics and the times of all events as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
