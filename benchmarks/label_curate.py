"""Clips that label and curate process a second, for several numbers of workers; the outcome of all must be the same.

    python benchmarks/label_curate.py --clips 1000 --workers 1 2 4 8 16 --out benchmarks/results/label_curate.json
    python benchmarks/label_curate.py --clips 60 --workers 1 2 --stages curate
    python benchmarks/label_curate.py --clips 24 --workers 1 --repeats 5 --against ../before   another checkout in turn

Times are those of the stages as `dreamgen run` calls them, with the start of Ray and of the workers; a few distinct
clips are drawn and encoded as generate encodes them, and the others are hard links to these. The inverse-dynamics
model has its default size and is hardly trained. CPU seconds and memory are given for one worker, which is the process
of the command.
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
from environments import with_checkout
from metrics import markdown_table, write_report
from synthetic_run import drawn_frames, labels_of, make_run

from dreamgen.config.loading import settings_from_dict
from dreamgen.data.images import write_png
from dreamgen.data.video import write_video
from dreamgen.run.jobs import iter_jobs
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_DEMOS, IDM_STEPS = 3, 5
GENERATED = "journal-generated"  # a copy of the journal before label and curate
CODE = """
import json, resource, sys, time
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
        checkouts = [REPOSITORY, *([args.against.resolve()] if args.against else [])]
        measured: dict[tuple[Path, int], list[Times]] = {key: [] for key in itertools.product(checkouts, args.workers)}
        outcomes = set()
        for _, (checkout, num) in itertools.product(range(args.repeats), measured):
            measured[checkout, num].append(measure(run, args, num, checkout))
            outcomes.add(outcome_hash(run))
    finally:
        shutil.rmtree(folder)
    first = next(iter(measured.values()))
    rows = [
        {"against": checkout != REPOSITORY, **row_of(num, times, args.clips, first)}
        for (checkout, num), times in measured.items()
    ]
    report = {
        "stages": args.stages, "clips": args.clips, "shape": [args.num_frames, args.height, args.width],
        "gpus_per_worker": args.gpus_per_worker, "cores": len(os.sched_getaffinity(0)), "rows": rows,
        "num_outcomes": len(outcomes),
    }  # fmt: skip
    write_report(report, args.out)
    columns = ["workers", "clips/s", "slowest to fastest", "of the first row", "CPU s a clip", "GiB"]
    print(markdown_table(columns, [
        [f"{row['workers']}{', before' * row['against']}", f"{row['clips_per_s']:.2f}",
         f"{row['min']:.2f} to {row['max']:.2f}", f"{row['ratio']:.2f}", f"{row['cpu_s_per_clip'] or math.nan:.3f}",
         f"{row['peak_gib'] or math.nan:.2f}"]
        for row in rows
    ]))  # fmt: skip
    print(f"outcomes: {len(outcomes)} (1: labels and scores are the same for every number of workers)")
    sys.exit(len(outcomes) != 1)


@dataclass(frozen=True)
class Times:
    """What one run of the stages took.

    Args:
        wall_s: Seconds.
        cpu_s: Of user and system, in the process of the command; workers of Ray are others.
        peak_gib: Memory of that process, with its libraries.
    """

    wall_s: float
    cpu_s: float
    peak_gib: float


def row_of(num: int, times: list[Times], num_clips: int, first: list[Times]) -> dict[str, Any]:
    """Return a row of the report; the ratio is the median over the repeats, each against the first row's."""
    seconds, is_here = [time.wall_s for time in times], num == 1
    return {
        "workers": num, "clips_per_s": num_clips / statistics.median(seconds), "min": num_clips / max(seconds),
        "max": num_clips / min(seconds), "seconds": seconds,
        "ratio": statistics.median(a.wall_s / b.wall_s for a, b in zip(first, times, strict=True)),
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
        video = drawn_frames(number, args.num_frames, args.height, args.width)
        write_video(run.train / "videos" / f"{name}.mp4", video, 16)
        action_TA, state_TS = labels_of(number, args.num_frames, args.dims)
        vectors = pa.list_(pa.float32())
        table = {"action": pa.array(list(action_TA), vectors), "observation.state": pa.array(list(state_TS), vectors)}
        pq.write_table(pa.table(table), run.train / "trajectories" / f"{name}.parquet")
        (run.train / "metas" / f"{name}.txt").write_text("move")
        rows.append((f"videos/{name}.mp4", "The robot arm moves.", "move", "drawn", args.num_frames))
    with (run.train / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "prompt", "instruction", "source", "num_frames"), *rows])
    settings = settings_from_dict(settings_of(run, args, None))
    finetune_idm(replace(settings, idm=replace(settings.idm, num_steps=IDM_STEPS)))
    return run


def settings_of(run: RunFolder, args: argparse.Namespace, num_workers: int | None) -> dict[str, Any]:
    """Return the settings of the run for so many workers."""
    video = {"height": args.height, "width": args.width, "num_frames": args.num_frames, "fps": 16}
    label = {"num_workers": num_workers, "gpus_per_worker": args.gpus_per_worker}
    return {"out": str(run.root), "video": video, "label": label}


def measure(run: RunFolder, args: argparse.Namespace, num_workers: int, checkout: Path) -> Times:
    """Return what the stages take from the beginning, in a process of their own, with the code of a checkout."""
    for folder in (run.scores, *([] if args.stages == "curate" else [run.labels])):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run.root / "journal")
    shutil.copytree(run.root / GENERATED, run.root / "journal")
    settings = json.dumps(settings_of(run, args, num_workers))
    command = [sys.executable, "-c", CODE, args.stages, settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=checkout, env=with_checkout(checkout))
    assert done.returncode == 0, f"{args.stages} ended with {done.returncode}"
    times = Times(*map(float, done.stdout.split()[-3:]))
    print(f"{num_workers} workers: {args.clips / times.wall_s:.2f} clips/s at {time.strftime('%X')}", file=sys.stderr)
    return times


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
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", choices=["label+curate", "curate"], default="label+curate")
    parser.add_argument("--gpus_per_worker", type=float, default=0.0)
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
