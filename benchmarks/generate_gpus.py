"""Clips an hour of several GPUs of one host against one: a worker a GPU, as `generate` places them, all at once.

    python benchmarks/generate_gpus.py --processes 1 2 --out benchmarks/results/generate_gpus.json
    python benchmarks/generate_gpus.py -- --model mini --height 64 --width 64 --num_frames 9 --num_steps 4     # smoke

Each process is benchmarks/generate.py with one GPU of its own and no published loop; what follows `--` goes to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import visible_gpus

HERE = Path(__file__).parent


def main() -> None:
    """Measure each number of processes, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--level", default="exact")
    parser.add_argument("--num_clips", type=int, default=4)
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("rest", nargs="*", help="for benchmarks/generate.py")
    args = parser.parse_args()
    rows = []
    for count in args.processes:
        reports = run_together(count, args)
        clip_s = [report["rows"][0]["clip_s"] for report in reports]
        rows.append({"processes": count, "clip_s": clip_s, "clips_an_hour": sum(3600 / s for s in clip_s)})
    for row in rows:
        row["speedup"] = row["clips_an_hour"] / (rows[0]["clips_an_hour"] / rows[0]["processes"])
    if args.out:
        Path(args.out).write_text(json.dumps({"machine": reports[0]["machine"], "rows": rows}, indent=1))
    print(f"{reports[0]['machine']}, {args.level}\n")
    print("| processes | s a clip, each | clips an hour | times one |\n|---|---|---|---|")
    for row in rows:
        each = ", ".join(f"{s:.2f}" for s in row["clip_s"])
        print(f"| {row['processes']} | {each} | {row['clips_an_hour']:.1f} | {row['speedup']:.3f} |")


def run_together(count: int, args: argparse.Namespace) -> list[dict]:
    """Start one process a GPU at the same time. Returns the report of each."""
    gpus = visible_gpus(count)
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{index}.json" for index in range(count)]
        options = ["--levels", args.level, "--num_clips", str(args.num_clips), "--num_published", "0", *args.rest]
        processes = [
            subprocess.Popen(
                [sys.executable, HERE / "generate.py", *options, "--out", out],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": gpus[index]},
                stdout=subprocess.DEVNULL,
            )
            for index, out in enumerate(outs)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise SystemExit("a process failed; its error stands above")
        return [json.loads(out.read_text()) for out in outs]


if __name__ == "__main__":
    main()
