"""Clips that label and curate process a second, for several numbers of workers; the outcome of all must be the same.

    python benchmarks/label_curate.py --clips 1000 --workers 1 2 4 8 16 --out benchmarks/results/label_curate.json
    python benchmarks/label_curate.py --clips 60 --workers 1 2 --stages curate
    python benchmarks/label_curate.py --clips 1000 --gpus 1 2 --out benchmarks/results/label_curate_gpus.json
    python benchmarks/label_curate.py --clips 24 --workers 1 --repeats 5 --against ../before   another checkout in turn

Times are those of the stages as `dreamgen run` calls them, with the start of Ray and of the workers; "once started"
leaves out the first and the last tenth of the clips, and with them the start. A few distinct clips are drawn and
encoded as generate encodes them, and the others are hard links to these. The inverse-dynamics model has its default
size and is hardly trained. CPU seconds and memory are given for one worker, which is the process of the command.

With `--gpus`, labels are computed on that many GPUs, with their share of the cores: 16 of 32 for one of two GPUs.
Workers are then counted on each GPU, one for each of its cores unless `--workers` says otherwise.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from environments import visible_gpus, with_checkout
from metrics import markdown_table, shown, write_report
from synthetic_run import drawn_clip, drawn_frames, labels_of, make_run

from dreamgen.config.loading import settings_from_dict
from dreamgen.data.images import write_png
from dreamgen.run.jobs import iter_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_DEMOS, IDM_STEPS = 3, 1
GENERATED = "journal-generated"  # a copy of the journal before label and curate
CODE = """
import json, os, resource, sys, time
os.sched_setaffinity(0, json.loads(sys.argv[3]))  # Ray's processes and workers inherit it
from dreamgen.config.loading import settings_from_dict
settings = settings_from_dict(json.loads(sys.argv[2]))
from dreamgen.pipeline import label_and_curate
from dreamgen.curate.stage import curate
call = {"label+curate": label_and_curate, "curate": curate}[sys.argv[1]]
start_s, start_cpu_s = time.monotonic(), time.process_time()
call(settings)
peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.monotonic() - start_s, time.process_time() - start_cpu_s, peak_gib)
"""


def main() -> None:
    """Measure each number of workers in turn, repeatedly, and print the table."""
    args = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="label-curate-", dir=args.folder))
    try:
        run = prepared_run(folder / "run", args)
        measured: dict[Case, list[Times]] = {case: [] for case in cases_of(args)}
        outcomes = set()
        for _, case in itertools.product(range(args.repeats), measured):
            measured[case].append(measure(run, args, case))
            outcomes.add(outcome_hash(run))
    finally:
        shutil.rmtree(folder)
    first = next(iter(measured.values()))
    rows = [row_of(case, times, args.clips, first) for case, times in measured.items()]
    report = {
        "stages": args.stages, "clips": args.clips, "shape": [args.num_frames, args.height, args.width],
        "cores": len(os.sched_getaffinity(0)), "gpu": torch.cuda.get_device_name() if gpus_here() else None,
        "rows": rows, "num_outcomes": len(outcomes),
    }  # fmt: skip
    write_report(report, args.out)
    print(table_of(rows))
    print(f"outcomes: {len(outcomes)} (1: labels and scores are the same for every number of workers)")
    sys.exit(len(outcomes) != 1)


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the table of all rows; the last ratio is that of the first row's rate once started."""
    columns = ["GPUs", "cores", "workers", "clips/s", "slowest to fastest", "times the first", "once started",
               "times the first", "CPU s a clip", "GiB"]  # fmt: skip
    first = rows[0]["started_clips_per_s"]
    return markdown_table(columns, [
        [row["gpus"], row["cores"], f"{row['workers']}{', before' * row['against']}", f"{row['clips_per_s']:.2f}",
         f"{row['min']:.2f} to {row['max']:.2f}", f"{row['ratio']:.2f}", shown(row["started_clips_per_s"], ".2f"),
         shown(first and row["started_clips_per_s"] / first, ".2f"), shown(row["cpu_s_per_clip"], ".3f"),
         shown(row["peak_gib"], ".2f")]
        for row in rows
    ])  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is measured in turn.

    Args:
        checkout: Whose code runs.
        num_workers: In all.
        num_gpus: That the stages see; None: all, as nothing is said about GPUs.
        gpus_per_worker: 0 computes labels on the CPU.
        cores: That the stages may use.
    """

    checkout: Path
    num_workers: int
    num_gpus: int | None
    gpus_per_worker: float
    cores: tuple[int, ...]


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Return the cases of the command line, each checkout with each number of GPUs and of workers."""
    cores, cases = whole_cores(), []
    of_machine = max(gpus_here(), *(args.gpus or [1]))
    for checkout in [REPOSITORY, *([args.against.resolve()] if args.against else [])]:
        for num_gpus in args.gpus or [None]:
            share = cores if num_gpus is None else cores[: max(1, len(cores) * num_gpus // of_machine)]
            of_gpu = max(1, len(share) // (num_gpus or 1))
            for num in args.workers or ([1, 2] if num_gpus is None else [of_gpu]):
                fraction = 0.0 if num_gpus is None else math.floor(1e4 / num) / 1e4  # Ray counts in these steps
                fraction = fraction if args.gpus_per_worker is None else args.gpus_per_worker
                cases.append(Case(checkout, num * (num_gpus or 1), num_gpus, fraction, share))
    return cases


def gpus_here() -> int:
    """Return how many GPUs this process sees."""
    return torch.cuda.device_count()


def whole_cores() -> tuple[int, ...]:
    """Return the cores of this process, the threads of one core side by side, so that a share has whole cores."""

    def siblings(core: int) -> tuple[int, int]:
        file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/core_cpus_list")
        first = file.read_text().replace("-", ",").split(",")[0] if file.is_file() else core
        return int(first), core

    return tuple(sorted(os.sched_getaffinity(0), key=siblings))


@dataclass(frozen=True)
class Times:
    """What one run of the stages took.

    Args:
        wall_s: Seconds.
        cpu_s: Of user and system, in the process of the command; workers of Ray are others.
        peak_gib: Memory of that process, with its libraries.
        started_clips_per_s: Clips a second from the first tenth of the labels to the last; None without labels.
    """

    wall_s: float
    cpu_s: float
    peak_gib: float
    started_clips_per_s: float | None


def row_of(case: Case, times: list[Times], num_clips: int, first: list[Times]) -> dict[str, Any]:
    """Return a row of the report; the ratio is the median over the repeats, each against the first row's."""
    seconds, is_here = [time.wall_s for time in times], case.num_workers == 1
    started = [time.started_clips_per_s for time in times if time.started_clips_per_s is not None]
    return {
        "against": case.checkout != REPOSITORY, "workers": case.num_workers, "gpus": case.num_gpus,
        "gpus_per_worker": case.gpus_per_worker, "cores": len(case.cores),
        "clips_per_s": num_clips / statistics.median(seconds), "min": num_clips / max(seconds),
        "max": num_clips / min(seconds), "seconds": seconds,
        "ratio": statistics.median(a.wall_s / b.wall_s for a, b in zip(first, times, strict=True)),
        "started_clips_per_s": statistics.median(started) if started else None,
        "cpu_s_per_clip": statistics.median(t.cpu_s for t in times) / num_clips if is_here else None,
        "cpu_s": [t.cpu_s for t in times] if is_here else None,
        "peak_gib": max(t.peak_gib for t in times) if is_here else None,
    }  # fmt: skip


def prepared_run(folder: Path, args: argparse.Namespace) -> RunFolder:
    """Make a run whose clips are generated, with an inverse-dynamics model; its journal begins as `GENERATED` is."""
    run = make_run(folder, args.clips, args.height, args.width, args.num_frames, args.dims)
    shutil.rmtree(run.labels)
    (run.root / GENERATED).mkdir()
    for path in (run.root / "journal").glob("generate-*"):
        shutil.copy(path, run.root / GENERATED)
    frames = {}
    for number, job in enumerate(iter_jobs(run.jobs)):
        drawn = number % 8
        if drawn not in frames:
            frames[drawn] = folder / f"first_{drawn}.png"
            write_png(frames[drawn], next(drawn_frames(drawn, 1, args.height, args.width)))
        path = run.first_frame_file(str(job.first_frame_sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(frames[drawn], path)
    for name in ("videos", "metas", "trajectories"):
        (run.train / name).mkdir(parents=True)
    rows = []
    for number in range(NUM_DEMOS):
        name = f"demo_{number}"
        os.link(drawn_clip(folder, number), run.train / "videos" / f"{name}.mp4")
        action_TA, state_TS = labels_of(number, args.num_frames, args.dims)
        vectors = pa.list_(pa.float32())
        table = {"action": pa.array(list(action_TA), vectors), "observation.state": pa.array(list(state_TS), vectors)}
        pq.write_table(pa.table(table), run.train / "trajectories" / f"{name}.parquet")
        (run.train / "metas" / f"{name}.txt").write_text("move")
        rows.append((f"videos/{name}.mp4", "The robot arm moves.", "move", "drawn", args.num_frames))
    with (run.train / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "prompt", "instruction", "source", "num_frames"), *rows])
    settings = settings_from_dict(settings_of(run, args))
    finetune_idm(replace(settings, idm=replace(settings.idm, num_steps=IDM_STEPS)))
    return run


def settings_of(run: RunFolder, args: argparse.Namespace, case: Case | None = None) -> dict[str, Any]:
    """Return the settings of the run, for the workers of a case."""
    video = {"height": args.height, "width": args.width, "num_frames": args.num_frames, "fps": 16}
    label = {"num_workers": case.num_workers, "gpus_per_worker": case.gpus_per_worker} if case else {}
    return {"out": str(run.root), "video": video, "label": label}


def measure(run: RunFolder, args: argparse.Namespace, case: Case) -> Times:
    """Return what the stages take from the beginning, in a process of their own."""
    for folder in (run.scores, *([] if args.stages == "curate" else [run.labels])):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run.root / "journal")
    shutil.copytree(run.root / GENERATED, run.root / "journal")
    command = [sys.executable, "-c", CODE, args.stages, *map(json.dumps, (settings_of(run, args, case), case.cores))]
    seen = {} if case.num_gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(visible_gpus(case.num_gpus))}
    environment = with_checkout(case.checkout, **seen)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=case.checkout, env=environment)
    assert done.returncode == 0, f"{args.stages} ended with {done.returncode}"
    wall_s, cpu_s, peak_gib = map(float, done.stdout.split()[-3:])
    times = Times(wall_s, cpu_s, peak_gib, started_rate(run))
    what = f"{case.num_workers} workers" + ("" if case.num_gpus is None else f" on {case.num_gpus} GPUs")
    print(f"{what}: {args.clips / times.wall_s:.2f} clips/s at {time.strftime('%X')}", file=sys.stderr)
    return times


def started_rate(run: RunFolder) -> float | None:
    """Return the clips labeled a second once all workers run and before the first of them ends; None without labels."""
    times_s = sorted(record.time_s for record in read_journal(run.journal, "label").values())
    if not times_s:
        return None
    start, end = len(times_s) // 10, len(times_s) - 1 - len(times_s) // 10
    return (end - start) / max(times_s[end] - times_s[start], 1e-9)


def outcome_hash(run: RunFolder) -> str:
    """Return a hash of all labels and of the score table."""
    state = hashlib.sha256()
    for path in sorted(run.labels.rglob("*.parquet")):
        state.update(path.read_bytes())
    state.update(repr(pq.read_table(run.scores / "scores.parquet").to_pylist()).encode())
    return state.hexdigest()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", help="default: 1 and 2, or one a core with --gpus")
    parser.add_argument("--gpus", type=int, nargs="+", help="numbers of GPUs, each with its share of the cores")
    parser.add_argument("--stages", choices=["label+curate", "curate"], default="label+curate")
    parser.add_argument("--gpus_per_worker", type=float, help="default: 0, or what fills the GPUs with --gpus")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, whose code takes turns with this one's")
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--dims", type=int, default=44)
    parser.add_argument("--folder", help="where to work; the system's temporary folder when not given")
    parser.add_argument("--out", help="JSON with the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
