"""What a job of a million clips costs around the clips: planning, its journal, starting again half way, status.

    python benchmarks/million_jobs.py --num 10000 100000 1000000 --out benchmarks/results/million_jobs.json
    python benchmarks/million_jobs.py --num 2000

Each phase is a process of its own, timed from its start to its end, libraries included, so that its peak memory is its
own. First frames are drawn, at the mini model's size; half of the clips are files of one byte, as no clip has to be
generated to be counted. Each time comes with a check of the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

NUM_FRAMES, NUM_SEEDS = 100, 10
NAMES = {
    "plan": "plan",
    "write": "journal, written record by record",
    "start": "start again, half of it done, to the first job",
    "status": "status",
}


def main() -> None:
    """Measure each size, print the table, and write the metrics."""
    args = parse_arguments()
    if args.phase:
        print(json.dumps(PHASES[args.phase](Path(args.folder), args.num[0]) | {"peak_gb": peak_gb()}))
        return
    rows = []
    for num in args.num:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            make_table(Path(folder), num)
            for phase in PHASES:
                begun_s = time.perf_counter()
                result = run_phase(phase, folder, num)
                rows.append({"num": num, "phase": phase, "wall_s": time.perf_counter() - begun_s} | result)
                print(json.dumps(rows[-1]), file=sys.stderr)
    if args.out:
        Path(args.out).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print("| phase | jobs | s | CPU s | peak GB | check |\n|---|---|---|---|---|---|")
    for phase in NAMES:
        for row in (row for row in rows if row["phase"] == phase):
            print(
                f"| {NAMES[phase]} | {row['num']:,} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row['peak_gb']:.2f} |"
                f" {row['check']} |"
            )


def plan_phase(folder: Path, num: int) -> dict[str, Any]:
    """Plan `num` jobs from a table, as the command does."""
    from dreamgen.plan.stage import plan

    metrics = plan(settings_of(folder)).metrics
    assert (metrics["num_new"], metrics["num_first_frames"]) == (num, NUM_FRAMES), metrics
    size_mb = (folder / "run" / "jobs.parquet").stat().st_size / 1e6
    return {"check": f"{metrics['num_new']:,} new, {size_mb:.1f} MB", "cpu_s": time.process_time()}


def write_phase(folder: Path, num: int) -> dict[str, Any]:
    """Write the records of the first half of the jobs, each counted only after its sync."""
    from dreamgen.run.jobs import job_columns
    from dreamgen.run.journal import Journal
    from dreamgen.run.records import JournalRecord
    from dreamgen.run.run_folder import RunFolder

    run = RunFolder(folder / "run")
    ids = job_columns(run.jobs, ["clip_id"])["clip_id"].to_pylist()[: num // 2]
    metrics = {"safety_checker": True, "device": "cuda", "num_frames": 93, "num_bytes": 1}
    num_synced, now_s = 0, time.time()
    with Journal(run.journal, "generate") as journal:
        for number, clip_id in enumerate(ids):
            record = JournalRecord(
                clip_id, "generate", "ok", file=f"clips/{clip_id[:2]}/{clip_id}.mp4",
                metrics={**metrics, "dream_s": 100 + number % 977 / 1000, "encode_s": 1.5},
                worker=f"node-{number % 25}:{1000 + number % 200}", time_s=now_s - (len(ids) - number) / 100,
            )  # fmt: skip
            num_synced += len(journal.add(record))
        num_synced += len(journal.flush())
    assert num_synced == len(ids)
    size_mb = sum(path.stat().st_size for path in (run.root / "journal").iterdir()) / 1e6
    return {"check": f"{num_synced:,} synced, {size_mb:.1f} MB", "cpu_s": time.process_time()}


def clips_phase(folder: Path, num: int) -> dict[str, Any]:
    """Put a file of one byte where each recorded clip lies."""
    from dreamgen.run.jobs import job_columns
    from dreamgen.run.run_folder import RunFolder

    run = RunFolder(folder / "run")
    for number in range(256):
        (run.clips / f"{number:02x}").mkdir(parents=True)
    for clip_id in job_columns(run.jobs, ["clip_id"])["clip_id"].to_pylist()[: num // 2]:
        run.clip_file(clip_id).write_bytes(b"x")
    return {"check": f"{num // 2:,} files", "cpu_s": time.process_time()}


def start_phase(folder: Path, num: int) -> dict[str, Any]:
    """Do what generate does before its workers start: lease, journal, what is left, its texts, the first job."""
    from dreamgen.generate.clip_status import clip_status, remove_half_written
    from dreamgen.generate.texts import TEXT_FIELDS, prompt_tasks
    from dreamgen.run.journal import Journal
    from dreamgen.run.lease import hold
    from dreamgen.run.run_folder import RunFolder
    from dreamgen.run.shard import Shard

    run = RunFolder(folder / "run")
    with hold(run.journal, "generate", Shard()), Journal(run.journal, "generate"):
        remove_half_written(run)
        now = clip_status(run)
        left = now.left
        num_texts = len(prompt_tasks(run, left.distinct(TEXT_FIELDS)))
        first = next(iter(left))
    counts = now.counts()
    assert (counts["num_done"], len(left)) == (num // 2, num - num // 2), counts
    assert first.seed == NUM_SEEDS // 2
    return {"check": f"{len(left):,} left, {num_texts} texts", "cpu_s": time.process_time()}


def status_phase(folder: Path, num: int) -> dict[str, Any]:
    """Read the job as another shell does."""
    from dreamgen.status import status

    metrics = status(settings_of(folder)).metrics
    assert (metrics["num_done"], metrics["num_left"]) == (num // 2, num - num // 2), metrics
    assert len(metrics["clips_per_hour_of_node"]) == 25
    check = f"{metrics['num_done']:,} done, {metrics['clips_per_hour']:,.0f} an hour"
    return {"check": check, "cpu_s": time.process_time()}


PHASES = {
    "plan": plan_phase,
    "write": write_phase,
    "clips": clips_phase,
    "start": start_phase,
    "status": status_phase,
}


def make_table(folder: Path, num: int) -> None:
    """Draw first frames and write a table with an instruction for each, repeated until there are enough."""
    import numpy as np

    from dreamgen.data.images import write_png

    random = np.random.default_rng(0)
    for number in range(NUM_FRAMES):
        write_png(folder / f"{number}.png", random.integers(0, 256, (48, 64, 3), np.uint8))
    with (folder / "table.csv").open("w", encoding="utf-8") as table:
        table.write("image,instruction\n")
        for row in range(num // NUM_SEEDS):
            table.write(f"{row % NUM_FRAMES}.png,pick up object {row // NUM_FRAMES}\n")


def settings_of(folder: Path) -> Any:
    """Return the settings of the mini preset for the drawn table."""
    from dreamgen.config.loading import find_preset, read_yaml, settings_from_dict

    settings = settings_from_dict({**read_yaml(find_preset("mini")), "out": str(folder / "run")})
    plan = replace(settings.plan, first_frames=str(folder / "table.csv"), num_seeds=NUM_SEEDS, num_first_frames=None)
    return replace(settings, plan=replace(plan, instructions=[]))


def run_phase(phase: str, folder: str, num: int) -> dict[str, Any]:
    """Run one phase in a process of its own and return what it printed."""
    command = [sys.executable, __file__, "--phase", phase, "--folder", folder, "--num", str(num)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peak_gb() -> float:
    """Return this process's highest resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="jobs, by tens of 10")
    parser.add_argument("--folder", default=None, help="where the runs are made; the temporary folder when not given")
    parser.add_argument("--out", default=None, help="JSON to write")
    parser.add_argument("--phase", choices=PHASES, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
