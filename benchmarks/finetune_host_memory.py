"""RAM of each process of a training over its steps: does it grow?

    python benchmarks/finetune_host_memory.py --out benchmarks/results/finetune_host_memory.json
    python benchmarks/finetune_host_memory.py --num_steps 60 --every 10    # a smoke test

The mini model trains in a process of its own, from the cache (with and without processes that read ahead) and without
it. Each time loss.csv gets a line, the resident memory of the training's process and of each of its children is read
from outside. The table has the slope of a straight line through the samples after the first fifth of the steps, with
its 95 % confidence interval. A process grows where all of that interval lies above the limit; then the status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from environments import with_checkout
from finetune_trainer import write_training_set

from finetune.training_log import read_steps

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH, NUM_FRAMES = 64, 64, 9
VARIANTS = {
    "cache": ["--cache=disk", "--num_workers=0"],
    "cache, 2 readers": ["--cache=disk", "--num_workers=2"],
    "no cache, 2 readers": ["--cache=none", "--num_workers=2"],
}
MB = 1e6


def main() -> None:
    """Measure, print the table, and write the results."""
    args = parse_arguments()
    rows = []
    for name in args.variants:
        with tempfile.TemporaryDirectory() as folder:
            samples = sample_training(Path(folder), VARIANTS[name], args)
        processes = sorted({process for sample in samples for process in sample["rss_bytes"]})
        for process in processes:
            points = [(sample["step"], sample["rss_bytes"].get(process)) for sample in samples]
            grown = growth(points, args.num_steps // 5)
            rows.append({"variant": name, "process": process, **grown, "points": points, "num_steps": args.num_steps})
        print(table(rows[-len(processes) :]), file=sys.stderr, flush=True)
    report = {"every": args.every, "limit_mb": args.limit_mb, "rows": rows}
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(report, indent=1))
    print(table(rows))
    growing = [row for row in rows if row["slope_low"] > args.limit_mb]
    for row in growing:
        print(f"{row['variant']}, {row['process']}: grows", file=sys.stderr)
    sys.exit(bool(growing))


def sample_training(run: Path, switches: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and return the resident bytes of its processes at each line of loss.csv."""
    size = argparse.Namespace(height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES)
    write_training_set(run / "train", size)
    command = [
        sys.executable, "-m", "finetune", f"--out={run}", "--model.path=mini", "--model.dtype=float32",
        "--model.device=cpu", "--model.safety_checker=false", f"--video.height={HEIGHT}", f"--video.width={WIDTH}",
        f"--video.num_frames={NUM_FRAMES}", "--lora.rank=4", f"--num_steps={args.num_steps}",
        f"--log_every={args.every}", f"--checkpoint_every={max(1, args.num_steps // 5)}", f"--tracker={args.tracker}",
        *switches,
    ]  # fmt: skip
    samples: list[dict[str, Any]] = []
    with subprocess.Popen(command, cwd=ROOT, env=with_checkout(ROOT), stdout=subprocess.DEVNULL) as training:
        while training.poll() is None:
            time.sleep(0.05)
            lines = read_steps(run / "finetune" / "loss.csv")
            if lines and (not samples or int(lines[-1]["step"]) > samples[-1]["step"]):
                samples.append({"step": int(lines[-1]["step"]), "rss_bytes": resident(training.pid)})
    if training.returncode:
        sys.exit(f"the training ended with status {training.returncode}: {' '.join(command)}")
    return samples


def resident(pid: int) -> dict[str, int]:
    """Return the resident bytes of a process and of its children, by their order."""
    found = {}
    try:
        training = psutil.Process(pid)
        found["training"] = training.memory_info().rss
        for number, child in enumerate(sorted(training.children(), key=lambda child: child.pid), start=1):
            found[f"reader {number}"] = child.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it is done
    return found


def growth(points: list[tuple[int, int | None]], from_step: int) -> dict[str, float]:
    """Fit a line to resident memory over steps; the interval takes the samples' errors for independent.

    Args:
        points: Step and bytes; None where the process was not there.
        from_step: Samples before it are left out: caches and arenas fill.

    Returns:
        First and last MB, and the slope in MB a 1,000 steps with its interval.
    """
    steps, values = np.array([(step, rss / MB) for step, rss in points if rss and step >= from_step]).T
    centred = steps - steps.mean()
    spread = (centred**2).sum()
    slope = (centred * values).sum() / spread
    residual = values - values.mean() - slope * centred
    # Student's t for many degrees of freedom (Cornish-Fisher): 1.96 + 2.4 / df is within 1 % from 8 degrees on.
    df = max(len(steps) - 2, 1)
    margin = (1.96 + 2.4 / df) * np.sqrt((residual**2).sum() / df / spread)
    return {
        "first_mb": float(values[0]), "last_mb": float(values[-1]), "num_samples": len(steps),
        "slope": 1000 * float(slope), "slope_low": 1000 * float(slope - margin),
        "slope_high": 1000 * float(slope + margin),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| training | process | samples | first MB | last MB | MB a 1,000 steps (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {row['process']} | {row['num_samples']} | {row['first_mb']:.1f} "
            f"| {row['last_mb']:.1f} | {row['slope']:+.2f} ({row['slope_low']:+.2f} to {row['slope_high']:+.2f}) |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=50, help="steps between samples")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--tracker", default="tensorboard")
    parser.add_argument("--limit_mb", type=float, default=10.0, help="growth a 1,000 steps that counts as none")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
