"""Clips -> verdicts: is each whole, in motion, what was asked for, and without cuts.

Axes: T frames, H height, W width, C channels. A `video_THWC` or `frame_HWC` is uint8, 0-255, RGB;
a `grey_THW` is a small float32 copy, 0-255, in which pixel noise has been averaged away.
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.config.settings import CurateSettings, Settings
from dreamgen.data.video import probe, read_image, read_video
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file
from dreamgen.run.jobs import done_jobs, with_records
from dreamgen.run.journal import Journal
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

STAGE = "curate"
GREY_PX = 32
MAX_PSNR_DB = 100.0  # equal pictures have an infinite one, which JSON cannot hold
NUM_NOTES = 20  # clips that are told of one by one; the score table has all
ROWS_AT_ONCE = 4096
STILL_CHANGE = 1.0  # of 255: frame changes below it are the codec's and the noise's, and count as this much
NEIGHBOURS = 4  # frame changes on each side that a cut is measured against


def curate(settings: Settings) -> StageResult:
    """Judge every generated clip and write the verdicts.

    All clips are judged again each time, so that new thresholds count; only verdicts that changed are appended to the
    journal.

    Args:
        settings: Of the run; `curate` holds the thresholds.

    Returns:
        The score table, with counts; partial when a clip that the journal calls done has no file, or one could not be
        judged.

    Raises:
        UserError: if no clip was generated.
    """
    run, limits, table = RunFolder.of(settings), settings.curate, RunFolder.of(settings).scores / "scores.parquet"
    jobs = done_jobs(run, "generate")
    if not len(jobs):
        raise UserError(f"{run.root} has no generated clip to judge", next_step=f"dreamgen generate --out {run.root}")
    counts, notes, missing = Counter(), [], []
    with Journal(run.journal, STAGE) as journal, ScoreTable(table) as scores, Progress(STAGE, len(jobs)) as progress:
        for job, before in with_records(jobs, run, STAGE):
            if not run.clip_file(job.clip_id).is_file():
                missing.append(job.clip_id)
                progress.add(failed=1)
                continue
            record = judge_clip(run, job, limits)
            scores.add(record)
            if not _same_verdict(before, record):
                journal.append(record)
            counts[record.status] += 1
            if record.status != "ok" and len(notes) < NUM_NOTES:
                notes.append(f"{record.clip_id} {record.status}: {record.reason or record.error}")
            progress.add(rejected=int(record.status == "rejected"), failed=int(record.status == "failed"))
    if (num_more := counts["rejected"] + counts["failed"] - len(notes)) > 0:
        notes.append(f"and {num_more} more: {table} has each clip's reasons")
    if missing:
        notes.append(f"{len(missing)} clips have no file, first {missing[0]}; dreamgen generate makes them again")
    metrics = {
        "num_clips": counts.total(), "num_accepted": counts["ok"], "num_rejected": counts["rejected"],
        "num_failed": counts["failed"],
    }  # fmt: skip
    return StageResult(STAGE, {"scores": table}, metrics, notes, partial=bool(missing or counts["failed"]))


def judge_clip(run: RunFolder, job: Job, limits: CurateSettings) -> JournalRecord:
    """Measure one clip and hold each figure against its threshold.

    Returns:
        The record: ok; rejected with every reason that applies; or failed, without its first frame to compare with.
    """
    file = run.clip_file(job.clip_id)
    metrics: dict[str, Any] = {
        "num_frames": None, "wanted_num_frames": job.num_frames, "motion": None, "min_motion": limits.min_motion,
        "first_frame_psnr_db": None,
        "min_first_frame_psnr_db": limits.min_first_frame_psnr_db if job.num_conditioning_frames else None,
        "cut_score": None, "max_cut_score": limits.max_cut_score,
    }  # fmt: skip
    relative = str(file.relative_to(run.root))
    try:
        wanted_HWC = _wanted_first_frame(run, job)
    except (UserError, OSError) as error:
        return JournalRecord(
            job.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc(),
            file=relative, metrics=metrics,
        )  # fmt: skip
    try:
        probe(file)  # a file that was cut short may decode without complaint
        video_THWC = read_video(file)
    except UserError as error:
        reasons = [f"not decodable: {error.actual or error.what}"]
    else:
        grey_THW = small_grey(video_THWC)
        metrics |= {
            "num_frames": len(video_THWC),
            "motion": motion(grey_THW),
            "first_frame_psnr_db": None if wanted_HWC is None else psnr_db(video_THWC[0], wanted_HWC),
            "cut_score": cut_score(grey_THW),
        }
        reasons = _reasons(metrics, limits)
    status = "rejected" if reasons else "ok"
    return JournalRecord(job.clip_id, STAGE, status, reason="; ".join(reasons) or None, file=relative, metrics=metrics)


def small_grey(video_THWC: np.ndarray) -> np.ndarray:
    """Return a copy of `GREY_PX` squared pixels a frame, grey_THW; area averaging takes noise out, not movement."""
    frames = [cv2.resize(f, (GREY_PX, GREY_PX), interpolation=cv2.INTER_AREA).astype(np.float32) for f in video_THWC]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def motion(grey_THW: np.ndarray) -> float:
    """Return how much a clip moves: mean |frame[t + lag] - frame[t]|, for a lag of half a clip.

    Movement adds up over the lag and noise does not, so that a slow robot and a still picture with noise lie apart;
    between neighbouring frames they do not. The lag of a third is there for what comes back after half a clip.

    Args:
        grey_THW: From `small_grey`.

    Returns:
        0-255; 0 for a single frame.
    """
    lags = {lag for lag in (len(grey_THW) // 2, len(grey_THW) // 3) if lag}
    return max((float(np.abs(grey_THW[lag:] - grey_THW[:-lag]).mean()) for lag in lags), default=0.0)


def psnr_db(frame_HWC: np.ndarray, wanted_HWC: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio of 8-bit pictures, 10 log10(255^2 / mean squared error).

    Source of the formula: ITU-T J.340 (2010), without its alignment.

    Returns:
        Decibels, at most `MAX_PSNR_DB`; None for pictures of different sizes.
    """
    if frame_HWC.shape != wanted_HWC.shape:
        return None
    error = float(np.mean((frame_HWC.astype(np.float64) - wanted_HWC) ** 2))
    return MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, float(10 * np.log10(255**2 / error)))


def cut_score(grey_THW: np.ndarray) -> float:
    """Return how far the most abrupt frame change stands out: change / median change of its neighbours in time.

    A cut is one large change between calm ones. Fast movement lasts several frames and noise all frames, so both are
    near 1. Changes below `STILL_CHANGE` count as that, or the first movement after a pause would be a cut.

    Args:
        grey_THW: From `small_grey`.

    Returns:
        A ratio, at least 0; 0 for fewer than three frames, where no change has a neighbour.
    """
    changes = np.abs(np.diff(grey_THW, axis=0)).mean(axis=(1, 2), dtype=np.float64)
    if len(changes) < 2:
        return 0.0
    scores = []
    for t, change in enumerate(changes):
        around = np.concatenate([changes[max(0, t - NEIGHBOURS) : t], changes[t + 1 : t + 1 + NEIGHBOURS]])
        scores.append(change / max(float(np.median(around)), STILL_CHANGE))
    return float(max(scores))


def _wanted_first_frame(run: RunFolder, job: Job) -> np.ndarray | None:
    if job.first_frame_sha256 is None:
        return None
    # Given frames stand below one another.
    return read_image(run.need(run.first_frame_file(job.first_frame_sha256), "plan"))[: job.height]


def _reasons(metrics: dict[str, Any], limits: CurateSettings) -> list[str]:
    reasons = []
    if metrics["num_frames"] != metrics["wanted_num_frames"]:
        reasons.append(f"wrong length: {metrics['num_frames']} frames instead of {metrics['wanted_num_frames']}")
    if metrics["motion"] < limits.min_motion:
        reasons.append(f"static: motion {metrics['motion']:.2f} < {limits.min_motion:g}")
    likeness_db = metrics["first_frame_psnr_db"]
    if metrics["min_first_frame_psnr_db"] is None:
        pass  # a clip from text alone has nothing to be like
    elif likeness_db is None:
        reasons.append("first frame differs: it has another size than the asked one")
    elif likeness_db < limits.min_first_frame_psnr_db:
        reasons.append(f"first frame differs: PSNR {likeness_db:.1f} dB < {limits.min_first_frame_psnr_db:g} dB")
    if metrics["cut_score"] > limits.max_cut_score:
        reasons.append(f"cut: score {metrics['cut_score']:.1f} > {limits.max_cut_score:g}")
    return reasons


def _same_verdict(before: JournalRecord | None, now: JournalRecord) -> bool:
    return before is not None and replace(before, time_s=0.0) == now


class ScoreTable:
    """`scores.parquet`, a row a clip, written while clips are judged; whole or absent. Use as a context."""

    COUNTS = ("num_frames", "wanted_num_frames")
    MEASURES = ("motion", "min_motion", "first_frame_psnr_db", "min_first_frame_psnr_db", "cut_score", "max_cut_score")
    SCHEMA = pa.schema({
        "clip_id": pa.string(), **dict.fromkeys(COUNTS, pa.int64()), **dict.fromkeys(MEASURES, pa.float64()),
        "verdict": pa.string(), "reasons": pa.string(),
    })  # fmt: skip

    def __init__(self, path: Path) -> None:
        self._path, self._rows, self._open = path, [], ExitStack()

    def __enter__(self) -> ScoreTable:
        temporary = self._open.enter_context(atomic_file(self._path))
        self._writer = self._open.enter_context(pq.ParquetWriter(temporary, self.SCHEMA))
        return self

    def add(self, record: JournalRecord) -> None:
        """Add a clip's figures and verdict."""
        verdict = {"verdict": record.status, "reasons": record.reason or record.error}
        self._rows.append({"clip_id": record.clip_id, **record.metrics, **verdict})
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._open.__exit__(*error)

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self.SCHEMA))
        self._rows = []
