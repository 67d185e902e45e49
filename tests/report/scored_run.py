"""A run whose clips have scores with thresholds: what the tests of the report's list start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.runs import make_run

NUM_FRAMES, FPS = 17, 16


def make_scored_run(folder: Path, num_clips: int = 60) -> RunFolder:
    """Make a run in which every third clip has too little motion, and is rejected.

    Clip n has the motion `motion_of(n)`; every fifth has no first-frame PSNR. Its action ramps up in the first
    dimension, with an uncertainty that ramps too, and down in the second; the third rests.
    """
    run = make_run(folder, num_clips=num_clips, num_frames=NUM_FRAMES, fps=FPS, rejected=0)
    with Journal(run.journal, "curate") as journal:
        for n, job in enumerate(read_jobs(run.jobs)):
            value = motion_of(n)
            reason = f"motion {value} is below min_motion 0.5" if value < 0.5 else None
            psnr = None if n % 5 == 0 else 20.0 + n % 7
            metrics = {
                "num_frames": NUM_FRAMES, "wanted_num_frames": NUM_FRAMES, "motion": value, "min_motion": 0.5,
                "first_frame_psnr_db": psnr, "min_first_frame_psnr_db": None if psnr is None else 15.0,
                "cut_score": 1.0 + n / 10, "max_cut_score": 6.0, "likes": float(n % 4), "likes_reason": f"note <{n}>",
            }  # fmt: skip
            status = "rejected" if reason else "ok"
            journal.append(JournalRecord(job.clip_id, "curate", status, reason=reason, metrics=metrics))
            write_ramps(run.label_file(job.clip_id))
    return run


def motion_of(n: int) -> float:
    """Return the motion of a clip: below 0.5 for every third, and no two alike."""
    return round(0.1 + n / 1000, 3) if n % 3 == 0 else round(2.0 - n / 1000, 3)


def write_ramps(path: Path, with_std: bool = True) -> None:
    """Write a label of three dimensions: up from 0 to 1 with uncertainty 0 to 0.5, down from 3 to 1, and at rest."""
    ramp_T = np.linspace(0, 1, NUM_FRAMES)
    action_TA = np.stack([ramp_T, 3 - 2 * ramp_T, np.full(NUM_FRAMES, 7.0)], axis=1).astype(np.float32)
    std_TA = np.stack([ramp_T / 2, np.full(NUM_FRAMES, 0.1), np.zeros(NUM_FRAMES)], axis=1).astype(np.float32)
    columns = {"action": action_TA} | ({"action_std": std_TA} if with_std else {})
    vectors = pa.list_(pa.float32())
    pq.write_table(pa.table({name: pa.array(list(rows), vectors) for name, rows in columns.items()}), path)
