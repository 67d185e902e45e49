"""Time and memory of converting ever more episodes, v2.1 -> v3.0 -> v2.1: both should not depend on how many there are.

    python benchmarks/convert_scale.py --episodes 3000 10000 --out benchmarks/results/convert_scale.json
    python benchmarks/convert_scale.py --episodes 40

The episodes are tiny (videos of a few kilobytes), so that what is measured is the work on each episode and not on its
pixels. Memory is the sum of all processes' resident sets. What comes back is compared with what was there: rows of
random episodes, their videos frame by frame, and the metadata of all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from export_scale import command
from export_speed import CAMERA
from synthetic_run import make_run

from dreamgen.data.video import read_video

NUM_COMPARED = 20


def main() -> None:
    """Measure each count, print the table and write the results."""
    args = parse_arguments()
    rows = [measure(count, args) for count in args.episodes]
    if args.out:
        shape = [args.num_frames, args.size, args.size, args.dims]
        Path(args.out).write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "shape": shape, "rows": rows},
                                             indent=1) + "\n")  # fmt: skip
    measures = "s | CPU s | CPU ms an episode | peak MB"
    print(f"| episodes | to v3.0 {measures} | back to v2.1 {measures} | what came back |\n" + "|---" * 10 + "|")
    for row in rows:
        cells = [f"{row['episodes']:,}"]
        for part in ("there", "back"):
            seconds, cpu_s, peak_mb = row[f"{part}_s"], row[f"{part}_cpu_s"], row[f"{part}_mb"]
            cells += [f"{seconds:.0f}", f"{cpu_s:.0f}", f"{1000 * cpu_s / row['episodes']:.2f}", f"{peak_mb:.0f}"]
        print("| " + " | ".join([*cells, row["equal"]]) + " |")


def measure(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Export so many clips as v2.1, convert them there and back, and compare."""
    folder = Path(tempfile.mkdtemp(prefix="convert-scale-", dir=args.folder))
    try:
        run = make_run(folder / "run", count, args.size, args.size, args.num_frames, args.dims)
        _, status, _ = command("export", "--out", str(run.root), "--formats=[lerobot-v2.1]", "--keep_free_gib=0")
        assert status == 0, f"dreamgen export ended with {status}"
        source, there, back = run.datasets / "lerobot-v2.1", folder / "v30", folder / "v21"
        measured: dict[str, Any] = {"episodes": count}
        for name, one, two in (("there", source, there), ("back", there, back)):
            metrics, status, _ = command("convert", str(one), str(two))
            assert status == 0, f"dreamgen convert ended with {status}"
            measured |= {f"{name}_{key}": value for key, value in metrics.items()}
        return measured | {"equal": compare(source, back, count)}
    finally:
        shutil.rmtree(folder)


def compare(source: Path, back: Path, count: int) -> str:
    """Compare two v2.1 datasets: the metadata of all episodes, rows and frames of some."""
    for name in ("episodes.jsonl", "tasks.jsonl"):
        assert (source / "meta" / name).read_bytes() == (back / "meta" / name).read_bytes(), f"{name} differs"
    with (source / "meta/episodes_stats.jsonl").open() as one, (back / "meta/episodes_stats.jsonl").open() as two:
        for lines in zip_longest(one, two):
            rows = [json.loads(line) for line in lines]
            assert rows[0]["episode_index"] == rows[1]["episode_index"]
            given, came = (
                np.concatenate([np.ravel(row["stats"][feature][stat])
                                for feature, metrics in rows[0]["stats"].items() for stat in metrics])
                for row in rows
            )  # fmt: skip
            np.testing.assert_allclose(came, given, rtol=1e-6, atol=1e-9)
    for number in np.random.default_rng(0).integers(0, count, NUM_COMPARED).tolist():
        place = f"chunk-{number // 1000:03d}"
        rows = f"data/{place}/episode_{number:06d}.parquet"
        one, two = (pq.ParquetFile(root / rows).read() for root in (source, back))
        assert one.equals(two.select(one.column_names)), f"{rows} differs"
        video = f"videos/{place}/{CAMERA}/episode_{number:06d}.mp4"
        assert (read_video(source / video) == read_video(back / video)).all(), f"{video} differs"
    return f"statistics of all, rows and frames of {NUM_COMPARED} equal"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[3000, 10_000])
    parser.add_argument("--num_frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="side of the frames")
    parser.add_argument("--dims", type=int, default=7)
    parser.add_argument("--folder", help="where to work; the system's temporary folder when not given")
    parser.add_argument("--out", help="JSON with the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
