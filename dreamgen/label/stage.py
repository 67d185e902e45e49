"""Clips -> the actions, and states where wanted, that the robot would have taken: one row a frame.

Axes: T frames, A action, S state. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamgen.cluster.clip_pass import ClipStage, ProcessClip, process_clips
from dreamgen.config.settings import Settings
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.trajectory import Trajectory, write_trajectory
from dreamgen.errors import UserError
from dreamgen.label.external import label_without_model
from dreamgen.label.first_states import known_first_states
from dreamgen.models.idm.model import WEIGHTS_NAME, InverseDynamics
from dreamgen.progress import log
from dreamgen.run.files import remove_temporaries, sha256_of_file
from dreamgen.run.idm_error import IdmError
from dreamgen.run.jobs import JobRows, generated_jobs, with_records
from dreamgen.run.label_files import LABEL_HASH, is_external, is_foreign
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.write_errors import storage_error

STAGE = "label"


def label(settings: Settings) -> StageResult:
    """Take the labels of others, then label every other clip that has none by this run's inverse-dynamics model.

    Args:
        settings: Settings of the run; with `idm.predict_state`, states are predicted beside actions.

    Returns:
        The labels, with counts and the model's held-out error; partial when a clip failed.

    Raises:
        UserError: if there is no clip, no model, or the model was trained at another frame rate.
    """
    if (result := label_without_model(settings)) is not None:
        return result
    (result,) = process_clips(settings, Labeler(settings))
    return result


class Labeler(ClipStage):
    """Labels the clips without a label by this run's model.

    Args:
        settings: As `label` takes them.

    Raises:
        UserError: as `label` does.
    """

    name = STAGE

    def __init__(self, settings: Settings) -> None:
        run = RunFolder.of(settings)
        generated = generated_jobs(run, STAGE)
        model = InverseDynamics.load(run.need(run.idm, STAGE))
        self._wants_state, self._held_out = settings.idm.predict_state, model.config.held_out["action"]
        self._has_state = self._wants_state and model.config.states is not None
        made_by = {
            "idm_sha256": sha256_of_file(run.idm / WEIGHTS_NAME), "has_state": self._has_state,
            "states_from": settings.idm.states_from if self._has_state else None,
        }  # fmt: skip
        jobs = clips_to_label(run, generated, made_by)
        check_frame_rate(run, model, jobs)
        known: dict[str, np.ndarray] = {}
        if model.config.states is not None:
            wanted = {sha256 for job in jobs.distinct(["first_frame_sha256"]) if (sha256 := job.first_frame_sha256)}
            known = known_first_states(run, wanted, len(model.config.states.names))
        super().__init__(run, jobs, LabelProcessor(run.absolute().idm, made_by, known))
        self._num_generated, self._num_failed = len(generated), 0
        log(f"label: held-out error of the model: {self._held_out['mae']:.4g} in the robot's units (mean absolute)")

    def finish(self, job: Job, record: JournalRecord | None) -> None:
        """Record the outcome of one clip."""
        assert record is not None
        self._journal.add(record)
        self._num_failed += record.status == "failed"

    def result(self) -> StageResult:
        """Return the labels, with counts and the model's held-out error."""
        remove_temporaries(self.run.labels)  # a worker that was killed may have left one
        notes, held_out = [], self._held_out
        if (error := IdmError.of_run(self.run)) is not None and (warning := error.warning()) is not None:
            notes.append(f"weak labels: {warning}; {error.text()}")
        if self._wants_state and not self._has_state:
            notes.append("no states: the demonstrations have none")
        if self._num_failed:
            notes.append(
                f"{self._num_failed} clips could not be labeled; {self.run.journal} has the errors, and the next "
                "dreamgen label tries them again"
            )
        metrics = {
            "num_labelled": len(self.jobs) - self._num_failed,
            "num_already_done": self._num_generated - len(self.jobs),
            "num_failed": self._num_failed,
            "idm_held_out_mae": held_out["mae"],
            "idm_held_out_r2": held_out["r2"],
        }
        return StageResult(STAGE, {"labels": self.run.labels}, metrics, notes, partial=bool(self._num_failed))


@dataclass(frozen=True)
class LabelProcessor:
    """Labels clips in a worker.

    Args:
        model: Folder of the inverse-dynamics model.
        made_by: As `label_clip` takes it.
        first_states: As `label_clip` takes it.
    """

    model: Path
    made_by: dict[str, Any]
    first_states: Mapping[str, np.ndarray]

    def load(self, device: torch.device) -> ProcessClip:
        """Load the model and return the function that labels a clip."""
        model = InverseDynamics.load(self.model).to(device)
        return partial(label_clip, model=model, made_by=self.made_by, first_states=self.first_states)


def check_frame_rate(run: RunFolder, model: InverseDynamics, jobs: JobRows) -> None:
    """Refuse clips at another rate than the model was trained at: its actions would have the wrong size.

    Raises:
        UserError: naming both rates.
    """
    rates = sorted({job.fps for job in jobs.distinct(["fps"])} - {model.config.fps})
    if rates:
        raise UserError(
            f"{run.idm} was trained at a frame rate that the clips do not have",
            actual=f"clips at {', '.join(map(str, rates))} fps", allowed=f"{model.config.fps} fps",
            next_step=f"remove {run.idm} and label again, with demonstrations at the clips' rate",
        )  # fmt: skip


def clips_to_label(run: RunFolder, jobs: JobRows, made_by: dict[str, Any]) -> JobRows:
    """Return the jobs without a label file, or without an ok record for it that has the metrics of `made_by`.

    Labels of others are left as they are.
    """

    def is_done(job: Job, record: JournalRecord | None) -> bool:
        path = run.label_file(job.clip_id)
        if is_external(record) or is_foreign(path, record):
            return path.is_file()
        is_by_this = record is not None and record.status == "ok" and made_by.items() <= record.metrics.items()
        return is_by_this and path.is_file()

    found = (not is_done(job, record) for job, record in with_records(jobs, run, STAGE))
    return jobs.where(np.fromiter(found, bool, len(jobs)))


def label_clip(
    clip: ClipContext, model: InverseDynamics, made_by: dict[str, Any], first_states: Mapping[str, np.ndarray]
) -> JournalRecord:
    """Label one clip; an error goes into the record instead of being raised.

    Args:
        clip: The clip.
        model: The run's model.
        made_by: `idm_sha256` of the model and `has_state`, whether states are wanted, and `states_from`; they go
            into the record.
        first_states: Known states by `first_frame_sha256`, from `known_first_states`.

    Returns:
        The record: ok, once the file is written, or failed with type, message and traceback.

    Raises:
        CannotWrite: if the disk is full or not writable, so that no other label could be written either.
    """
    run, clip_id = clip.run, clip.job.clip_id
    worker, path = f"{os.uname().nodename}:{os.getpid()}", run.label_file(clip_id)
    try:
        first_state_S = first_states.get(clip.job.first_frame_sha256 or "")
        small_TCHW = np.stack(clip.each_frame(model.small_frame))
        found = model.predict_small(small_TCHW, first_state_S, made_by["states_from"] == "actions")
        action_TA = found.action_TA
        moving, std_A = model.config.actions.moving(), np.asarray(model.config.actions.std)
        uncertainty_T = (found.action_std_TA[:, moving] / std_A[moving]).mean(axis=1)
        uncertainty = float(uncertainty_T.mean())
        trajectory = Trajectory(len(action_TA), found.state_TS if made_by["has_state"] else None, action_TA)
        write_trajectory(path, trajectory, f"inverse-dynamics model {made_by['idm_sha256']}", uncertainty)
    except Exception as error:
        if stop := storage_error(error, path):
            raise stop from error
        return JournalRecord.of_error(clip_id, STAGE, error, worker=worker)
    metrics = {
        "num_frames": len(action_TA),
        "idm_held_out_mae": model.config.held_out["action"]["mae"],
        **made_by,
        LABEL_HASH: sha256_of_file(path),
        "action_mean_abs_change": float(np.abs(np.diff(action_TA, axis=0)).mean()) if len(action_TA) > 1 else 0.0,
        "action_uncertainty": uncertainty,
        "action_uncertainty_max": float(uncertainty_T.max()),
        "first_state_known": first_state_S is not None,
    }
    file = str(path.relative_to(run.root))
    return JournalRecord(clip_id, STAGE, "ok", file=file, metrics=metrics, worker=worker)
