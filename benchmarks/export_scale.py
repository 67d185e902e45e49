"""Time and memory of exporting and checking ever more episodes: both should not depend on how many there are.

    python benchmarks/export_scale.py --clips 10000 30000 100000 --out benchmarks/results/export_scale.json
    python benchmarks/export_scale.py --clips 50 100

The episodes are tiny (videos of a few kilobytes), so that what is measured is the work on each episode and not on its
pixels. Memory is the sum of all processes' resident sets, CPU their user and system time, which other work on the
machine disturbs less than the time. Frames are compared with the clips beside each measure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from export_speed import PeakMemory, check_v21, check_v30, children_cpu_s
from synthetic_run import make_run

CHECKS = {"lerobot-v3.0": check_v30, "lerobot-v2.1": check_v21}


def main() -> None:
    """Measure each count, print the table and write the results."""
    args = parse_arguments()
    rows = [measure(count, args) for count in args.clips]
    if args.out:
        shape = [args.num_frames, args.size, args.size, args.dims]
        metrics = {"format": args.format, "cores": len(os.sched_getaffinity(0)), "shape": shape, "rows": rows}
        Path(args.out).write_text(json.dumps(metrics, indent=1) + "\n")
    measures = "s | CPU s | CPU ms per episode | peak MB"
    print(f"| episodes | export {measures} | check {measures} | findings | frames |\n" + "|---" * 11 + "|")
    for row in rows:
        cells = [f"{row['episodes']:,}"]
        for part in ("export", "check"):
            seconds, cpu_s, peak_mb = row[f"{part}_s"], row[f"{part}_cpu_s"], row[f"{part}_mb"]
            cells += [f"{seconds:.0f}", f"{cpu_s:.0f}", f"{1000 * cpu_s / row['episodes']:.2f}", f"{peak_mb:.0f}"]
        print("| " + " | ".join([*cells, str(row["findings"]), row["frames"]]) + " |")


def measure(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Make a run of so many clips, export it, check the dataset, and compare random frames."""
    folder = Path(tempfile.mkdtemp(prefix="export-scale-", dir=args.folder))
    try:
        run = make_run(folder / "run", count, args.size, args.size, args.num_frames, args.dims)
        options = ["--out", str(run.root), f"--formats=[{args.format}]", "--keep_free_gib=0"]
        export, status, _ = command("export", *options)
        assert status == 0, f"dreamgen export ended with {status}"
        check, status, output = command("check", "--json", str(run.datasets / args.format))
        shape = argparse.Namespace(clips=count, num_frames=args.num_frames, dims=args.dims, checked=20)
        frames = CHECKS[args.format](run, shape)
        num_errors = json.loads(output)[0]["figures"]["num_errors"]
        measured = {f"export_{key}": value for key, value in export.items()}
        measured |= {f"check_{key}": value for key, value in check.items()}
        return {"episodes": count, **measured, "findings": num_errors, "frames": frames}
    finally:
        shutil.rmtree(folder)


def command(*words: str) -> tuple[dict[str, float], int, str]:
    """Run a command of dreamgen; return time, CPU time and peak memory of all its processes, exit status and stdout."""
    start_s, cpu_s = time.monotonic(), children_cpu_s()
    process = subprocess.Popen([sys.executable, "-m", "dreamgen", *words], stdout=subprocess.PIPE, text=True)
    with PeakMemory(process.pid) as memory:
        output, _ = process.communicate()
    metrics = {"s": time.monotonic() - start_s, "cpu_s": children_cpu_s() - cpu_s, "mb": memory.peak_bytes / 1e6}
    return metrics, process.returncode, output


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--format", default="lerobot-v3.0", choices=CHECKS)
    parser.add_argument("--num_frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="side of the frames")
    parser.add_argument("--dims", type=int, default=7)
    parser.add_argument("--folder", help="where to work; the system's temporary folder when not given")
    parser.add_argument("--out", help="JSON with the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
