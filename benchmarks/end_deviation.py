"""How often the score `end_deviation` rejects real clips, and how far generated clips are: docs/curation.md.

    python examples/metaworld/record.py --set heldout --episodes_per_task 40 --seed 7 --out data/heldout40
    python benchmarks/end_deviation.py --metaworld data/heldout40 --runs runs/proof/*/curated runs/proof/*/base \\
        --save benchmarks/results/curation_end_deviation.json

For each task of the recordings, some are drawn as demonstrations and the others are measured against them, 20 times.
The clips of runs, such as those of `benchmarks/policy/proof.py`, are measured against the run's own training set.

Axes: N recordings, D demonstrations, H height, W width, C channels, K values of cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from metaworld_clips import read_clips
from metrics import markdown_table, shown, write_report

from dreamgen.curate.demonstration_pictures import color_cells
from dreamgen.curate.scores.end_deviation import end_excess, usual_excess
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.frame_features import SMALL_PX
from dreamgen.extensions.score import SCORES
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder

LIMITS = (1.5, 2.0, 3.0)
NUM_DRAWS = 20


def main() -> None:
    """Measure recordings and runs, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metaworld", type=Path, help="recordings of examples/metaworld/record.py")
    parser.add_argument("--num_demos", type=int, nargs="+", default=[5, 10, 20], help="recordings that are drawn")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="run folders with train/ and clips/")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--save", help="JSON with the results")
    args = parser.parse_args()
    real = false_alarms(args.metaworld, args.num_demos, args.seed) if args.metaworld else []
    runs = [run_row(folder) for folder in args.runs]
    write_report({"limits": LIMITS, "num_draws": NUM_DRAWS, "seed": args.seed, "real": real, "runs": runs}, args.save)
    names = [f"> {limit:g}" for limit in LIMITS]
    print(markdown_table(["task", "demonstrations", "real clips", *names], [
        [row["task"], row["num_demos"], row["num"], *(shown(share, ".1%") for share in row["rejected"])] for row in real
    ]))  # fmt: skip
    print(markdown_table(["run", "clips", "median", "largest", *names], [
        [row["run"], len(row["values"]), *(f"{f(row['values']):.2f}" for f in (np.median, np.max)), *row["rejected"]]
        for row in runs if row["values"]
    ]))  # fmt: skip


def false_alarms(recordings: Path, num_demos: list[int], seed: int) -> list[dict[str, Any]]:
    """Return a row for each task and number of demonstrations: the share of other recordings beyond each limit."""
    clips, random = read_clips(recordings), np.random.default_rng(seed)
    begin_NK, end_NK = (cells_of(clips.video_NTHWC[:, frame].numpy()) for frame in (0, -1))
    rows = []
    for task in sorted(set(clips.task_N)):
        numbers_N = np.flatnonzero(clips.task_N == task)
        for num in num_demos:
            values = []
            for _ in range(NUM_DRAWS):
                demos_D, others = np.split(random.permutation(numbers_N), [num])
                usual = usual_excess(begin_NK[demos_D], end_NK[demos_D])
                excesses = (end_excess(begin_NK[i], end_NK[i], begin_NK[demos_D], end_NK[demos_D]) for i in others)
                values += [excess / usual for excess in excesses if usual is not None and excess is not None]
            rows.append({"task": task, "num_demos": num, "num": len(values), "rejected": shares(values)})
    return rows


def cells_of(frame_NHWC: np.ndarray) -> np.ndarray:
    """Return cells_NK of whole frames."""
    size = (SMALL_PX, SMALL_PX)
    return color_cells(np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frame_NHWC]))


def shares(values: list[float]) -> list[float | None]:
    """Return the share of values beyond each limit; None without values."""
    return [round(float(np.mean(np.array(values) > limit)), 4) if values else None for limit in LIMITS]


def run_row(folder: Path) -> dict[str, Any]:
    """Return the value of each clip of a run that has one, and how many are beyond each limit."""
    run = RunFolder(folder)
    jobs = [job for job in read_jobs(run.jobs) if run.clip_file(job.clip_id).is_file()]
    measured = [SCORES.get("end_deviation").measure(ClipContext(run, job)) for job in jobs]
    values = [round(value, 3) for value in measured if value is not None]
    return {"run": "/".join(folder.parts[-2:]), "clips": len(jobs), "values": values,
            "rejected": [int((np.array(values) > limit).sum()) for limit in LIMITS]}  # fmt: skip


if __name__ == "__main__":
    main()
