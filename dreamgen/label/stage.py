"""Clips -> the actions, and states where asked for, that the robot would have taken: one row a frame.

Axes: T frames, A action, S state. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.config.settings import Settings
from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.models.devices import resolve_device
from dreamgen.models.idm.model import WEIGHTS_NAME, InverseDynamics
from dreamgen.progress import Progress, log
from dreamgen.run.files import atomic_file, sha256_of_file
from dreamgen.run.jobs import JobRows, done_jobs, with_records
from dreamgen.run.journal import Journal
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

STAGE = "label"


def label(settings: Settings) -> StageResult:
    """Label every generated clip that has no label by this run's inverse-dynamics model.

    Args:
        settings: Of the run; `idm.predict_state` asks for states beside actions.

    Returns:
        The labels, with counts and the model's held-out error; partial when a clip failed.

    Raises:
        UserError: if there is no clip, no model, or the model was trained at another frame rate.
    """
    run = RunFolder.of(settings)
    jobs = done_jobs(run, "generate")
    if not len(jobs):
        raise UserError(f"{run.root} has no generated clip to label", next_step=f"dreamgen generate --out {run.root}")
    model = InverseDynamics.load(run.need(run.idm, STAGE)).to(resolve_device(settings.model.device))
    check_frame_rate(run, model, jobs)
    want_state = settings.idm.predict_state and model.config.states is not None
    made_by = {"idm_sha256": sha256_of_file(run.idm / WEIGHTS_NAME), "has_state": want_state}
    todo = clips_to_label(run, jobs, made_by)
    held_out_mae = model.config.held_out["action"]["mae"]
    log(f"label: held-out error of the model: {held_out_mae:.4g} in the robot's units (mean absolute)")
    num_failed = 0
    with Journal(run.journal, STAGE) as journal, Progress(STAGE, len(todo)) as progress:
        for job in todo:
            record = label_clip(run, job, model, made_by)
            journal.append(record)
            failed = int(record.status == "failed")
            num_failed += failed
            progress.add(failed=failed)
    notes = [] if want_state or not settings.idm.predict_state else ["no states: the demonstrations have none"]
    if num_failed:
        notes.append(f"{num_failed} clips could not be labelled; {run.journal} says why, running again tries again")
    metrics = {
        "num_labelled": len(todo) - num_failed,
        "num_already_done": len(jobs) - len(todo),
        "num_failed": num_failed,
        "idm_held_out_mae": held_out_mae,
        "idm_held_out_r2": model.config.held_out["action"]["r2"],
    }
    return StageResult(STAGE, {"labels": run.labels}, metrics, notes, partial=bool(num_failed))


def check_frame_rate(run: RunFolder, model: InverseDynamics, jobs: JobRows) -> None:
    """Refuse clips at another rate than the model was trained at: its actions would have the wrong size.

    Raises:
        UserError: naming both rates.
    """
    rates = sorted({job.fps for job in jobs.distinct(["fps"])} - {model.config.fps})
    if rates:
        raise UserError(
            f"{run.idm} was trained at another frame rate than the clips have",
            actual=f"clips at {', '.join(map(str, rates))} fps", allowed=f"{model.config.fps} fps",
            next_step=f"remove {run.idm} and label again, with demonstrations at the clips' rate",
        )  # fmt: skip


def clips_to_label(run: RunFolder, jobs: JobRows, made_by: dict[str, Any]) -> JobRows:
    """Return the jobs without a label file, or without an ok record for it that has the figures of `made_by`."""

    def is_done(job: Job, record: JournalRecord | None) -> bool:
        is_by_this = record is not None and record.status == "ok" and made_by.items() <= record.metrics.items()
        return is_by_this and run.label_file(job.clip_id).is_file()

    found = (not is_done(job, record) for job, record in with_records(jobs, run, STAGE))
    return jobs.where(np.fromiter(found, bool, len(jobs)))


def label_clip(run: RunFolder, job: Job, model: InverseDynamics, made_by: dict[str, Any]) -> JournalRecord:
    """Label one clip; whatever goes wrong with it is in the record, and the other clips go on.

    Args:
        run: The run folder.
        job: Of the clip.
        model: Of the run.
        made_by: `idm_sha256` of the model and `has_state`, whether states are wanted; they go into the record.

    Returns:
        The record: ok, once the file is written, or failed with type, message and traceback.
    """
    worker, path = f"{os.uname().nodename}:{os.getpid()}", run.label_file(job.clip_id)
    try:
        action_TA, state_TS = model.predict(read_video(run.clip_file(job.clip_id)))
        write_labels(path, action_TA, state_TS if made_by["has_state"] else None)
    except Exception as error:
        return JournalRecord(
            job.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(), worker=worker,
        )  # fmt: skip
    actions = model.config.actions
    margin_A = np.subtract(actions.high, actions.low) * 0.01 + 1e-6
    outside_TA = (action_TA < np.asarray(actions.low) - margin_A) | (action_TA > np.asarray(actions.high) + margin_A)
    metrics = {
        "num_frames": len(action_TA),
        "idm_held_out_mae": model.config.held_out["action"]["mae"],
        **made_by,
        "action_mean_abs_change": float(np.abs(np.diff(action_TA, axis=0)).mean()) if len(action_TA) > 1 else 0.0,
        "action_outside_demos": float(outside_TA.mean()),
    }
    file = str(path.relative_to(run.root))
    return JournalRecord(job.clip_id, STAGE, "ok", file=file, metrics=metrics, worker=worker)


def write_labels(path: Path, action_TA: np.ndarray, state_TS: np.ndarray | None) -> None:
    """Write `action` and, where given, `observation.state` as lists of float32, one row a frame, atomically."""
    columns = {"action": pa.array(list(action_TA), pa.list_(pa.float32()))}
    if state_TS is not None:
        columns["observation.state"] = pa.array(list(state_TS), pa.list_(pa.float32()))
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
