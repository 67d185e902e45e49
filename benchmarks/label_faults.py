"""Workers, nodes and drivers are killed while clips are labeled and measured; the outcome must be one process's.

    python benchmarks/label_faults.py                                   30 kills
    python benchmarks/label_faults.py --kills 3 --clips 24 --frames 9   a short one
    python benchmarks/label_faults.py --seed 7                          another schedule; the same seed repeats it

The cluster and the kills are those of `benchmarks/faults.py`, with two nodes that have room for one worker each. The
same clips are labeled and curated in one process without Ray. Afterwards the labels must have the same bytes, records
the same content but for their times and processes, the score table the same rows, and each clip one record in each
journal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from faults import REPOSITORY, Work, add_node, disturb, ok_records, schedule, started_cluster
from label_curate import GENERATED, prepared_run
from metrics import markdown_table, write_report

from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder

CODE = """
import sys
from dreamgen.config.loading import settings_from_dict
from dreamgen.pipeline import label_and_curate
from pathlib import Path
import json
label_and_curate(settings_from_dict({**json.loads(Path(sys.argv[1], "settings.json").read_text()), "out": sys.argv[1]}))
"""
PASS = Work("label", "ray::ClipWorker", ("-c", CODE))
STAGES = ("label", "measure", "curate")


def main() -> None:
    """Do the work in one process, then on a disturbed cluster; compare, and fail if anything differs."""
    args = parse_arguments()
    kills = schedule(args.seed, args.kills, args.clips)
    with tempfile.TemporaryDirectory(prefix="label-faults-", dir=args.folder) as folder:
        alone, disturbed = prepared(Path(folder), args)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run([sys.executable, "-c", CODE, str(alone.root)], cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, "the undisturbed run failed"
        with started_cluster() as cluster:
            nodes = [add_node(cluster) for _ in range(2)]
            begun_s = time.monotonic()
            driver_starts, events = disturb(cluster, nodes, PASS, disturbed, kills)
            elapsed_s = time.monotonic() - begun_s
        report = {"seed": args.seed, "elapsed_s": round(elapsed_s, 1), "driver_starts": driver_starts}
        report |= compare(disturbed, alone) | {"kills": [asdict(kill) for kill in kills], "events": events}
    write_report(report, args.out)
    counts = Counter(kill.kind for kill in kills)
    wrong = ("num_lost", "num_twice", "num_other_labels", "num_other_records", "num_other_rows")
    print(markdown_table(
        ["kills of workers", "nodes", "drivers", "clips", *(name.removeprefix("num_") for name in wrong)],
        [[*(str(counts[kind]) for kind in ("worker", "node", "driver")), str(args.clips),
          *(str(report[name]) for name in wrong)]],
    ))  # fmt: skip
    sys.exit(any(report[name] for name in wrong))


def prepared(folder: Path, args: argparse.Namespace) -> tuple[RunFolder, RunFolder]:
    """Make two runs with the same generated clips and the same inverse-dynamics model."""
    sizes = {"height": args.px, "width": args.px, "num_frames": args.frames, "dims": 8, "gpus_per_worker": 0.0}
    alone = prepared_run(folder / "alone", argparse.Namespace(clips=args.clips, **sizes))
    shutil.rmtree(alone.root / "journal")
    shutil.copytree(alone.root / GENERATED, alone.root / "journal")
    video = {"height": args.px, "width": args.px, "num_frames": args.frames, "fps": 16}
    label = {"num_workers": 2, "resources_per_worker": {"worker": 1.0}}
    disturbed = RunFolder(Path(shutil.copytree(alone.root, folder / "disturbed")))
    for run, settings in ((alone, {"num_workers": 1}), (disturbed, label)):
        write_report({"video": video, "label": settings}, str(run.root / "settings.json"))
    return alone, disturbed


def compare(run: RunFolder, alone: RunFolder) -> dict[str, Any]:
    """Compare what both runs wrote."""
    ids = [job.clip_id for job in read_jobs(alone.jobs)]
    lost, twice, other_records = set[str](), set[str](), set[tuple[str, str]]()
    for stage in STAGES:
        seen = Counter(clip_id for clip_id, *_ in ok_records(replace(PASS, journal=stage), run))
        twice |= {clip_id for clip_id, count in seen.items() if count > 1}
        ours, expected = (read_journal(one.journal, stage) for one in (run, alone))
        lost |= set(ids) - set(ours) | set(expected) ^ set(ours)
        for clip_id in set(ours) & set(expected):
            pair = [replace(records[clip_id], time_s=0.0, worker=None) for records in (ours, expected)]
            if pair[0] != pair[1]:
                other_records.add((stage, clip_id))
    labels = {clip_id: [one.label_file(clip_id) for one in (run, alone)] for clip_id in ids}
    lost |= {clip_id for clip_id, paths in labels.items() if not all(path.is_file() for path in paths)}
    other_labels = [i for i, (ours, expected) in labels.items()
                    if i not in lost and ours.read_bytes() != expected.read_bytes()]  # fmt: skip
    rows = [pq.read_table(one.scores / "scores.parquet").to_pylist() for one in (run, alone)]
    other_rows = sum(a != b for a, b in zip(*rows, strict=False)) + abs(len(rows[0]) - len(rows[1]))
    return {
        "num_clips": len(ids), "num_lost": len(lost), "num_twice": len(twice), "num_other_labels": len(other_labels),
        "num_other_records": len(other_records), "num_other_rows": other_rows,
    }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--frames", type=int, default=49, help="of a clip: its length in time")
    parser.add_argument("--px", type=int, default=256, help="height and width of a clip")
    parser.add_argument("--folder", help="where to work; the system's temporary folder when not given")
    parser.add_argument("--out", help="write the metrics and the times of all events as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
