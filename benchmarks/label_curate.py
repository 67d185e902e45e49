"""Clips that label and curate process a second, for several numbers of workers; the outcome of all must be the same.

    python benchmarks/label_curate.py --clips 1000 --workers 1 2 4 8 16 --out benchmarks/results/label_curate.json
    python benchmarks/label_curate.py --clips 60 --workers 1 2 --stages curate

Times are those of the stages as `dreamgen run` calls them, with the start of Ray and of the workers; a few distinct
clips are drawn and encoded as generate encodes them, and the others are hard links to these. The inverse-dynamics
model has its default size and is hardly trained.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from metrics import markdown_table, write_report
from synthetic_run import drawn_frames, labels_of, make_run

from dreamgen.config.loading import settings_from_dict
from dreamgen.data.video import write_png, write_video
from dreamgen.run.jobs import iter_jobs
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm

NUM_DEMOS, IDM_STEPS = 3, 5
CODE = """
import json, sys, time
from dreamgen.config.loading import settings_from_dict
settings = settings_from_dict(json.loads(sys.argv[2]))
from dreamgen.pipeline import label_and_curate
from dreamgen.curate.stage import curate
call = {"label+curate": label_and_curate, "curate": curate}[sys.argv[1]]
start_s = time.monotonic()
call(settings)
print(time.monotonic() - start_s)
"""


def main() -> None:
    """Measure each number of workers in turn, repeatedly, and print the table."""
    args = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="label-curate-", dir=args.folder))
    try:
        run = prepared_run(folder / "run", args)
        seconds: dict[int, list[float]] = {num: [] for num in args.workers}
        outcomes = set()
        for _, num in itertools.product(range(args.repeats), args.workers):
            seconds[num].append(measure(run, args, num))
            outcomes.add(outcome_hash(run))
    finally:
        shutil.rmtree(folder)
    rows = [row_of(num, times, args.clips, seconds) for num, times in seconds.items()]
    report = {
        "stages": args.stages, "clips": args.clips, "shape": [args.num_frames, args.height, args.width],
        "gpus_per_worker": args.gpus_per_worker, "cores": len(os.sched_getaffinity(0)), "rows": rows,
        "num_outcomes": len(outcomes),
    }  # fmt: skip
    write_report(report, args.out)
    columns = ["workers", "clips/s", "slowest to fastest", "of the first row"]
    print(markdown_table(columns, [
        [row["workers"], f"{row['clips_per_s']:.2f}", f"{row['min']:.2f} to {row['max']:.2f}", f"{row['ratio']:.2f}"]
        for row in rows
    ]))  # fmt: skip
    print(f"outcomes: {len(outcomes)} (1: labels and scores are the same for every number of workers)")
    sys.exit(len(outcomes) != 1)


def row_of(num: int, times: list[float], num_clips: int, seconds: dict[int, list[float]]) -> dict[str, Any]:
    """Return a row of the report; the ratio is the median over the repeats, each against the first row's."""
    first = next(iter(seconds.values()))
    return {
        "workers": num, "clips_per_s": num_clips / statistics.median(times), "min": num_clips / max(times),
        "max": num_clips / min(times), "seconds": times,
        "ratio": statistics.median(a / b for a, b in zip(first, times, strict=True)),
    }  # fmt: skip


def prepared_run(folder: Path, args: argparse.Namespace) -> RunFolder:
    """Make a run whose clips are generated and not labeled, with an inverse-dynamics model."""
    run = make_run(folder, args.clips, args.height, args.width, args.num_frames, args.dims)
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


def measure(run: RunFolder, args: argparse.Namespace, num_workers: int) -> float:
    """Return the seconds that the stages take from the beginning, in a process of their own."""
    for folder in (run.scores, *([] if args.stages == "curate" else [run.labels])):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run.root / "journal")
    shutil.copytree(run.root / "journal-generated", run.root / "journal")
    settings = json.dumps(settings_of(run, args, num_workers))
    done = subprocess.run([sys.executable, "-c", CODE, args.stages, settings], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{args.stages} ended with {done.returncode}"
    seconds = float(done.stdout.split()[-1])
    print(f"{num_workers} workers: {args.clips / seconds:.2f} clips/s at {time.strftime('%X')}", file=sys.stderr)
    return seconds


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
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--dims", type=int, default=44)
    parser.add_argument("--folder", help="where to work; the system's temporary folder when not given")
    parser.add_argument("--out", help="JSON with the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
