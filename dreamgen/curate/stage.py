"""Clips -> verdicts: each clip is measured by every score and by the chosen judges, and accepted or rejected."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Self

from dreamgen.config.settings import Settings
from dreamgen.curate.score_table import ScoreTable
from dreamgen.curate.verdict import curate_clip, load_judges
from dreamgen.data.clip_context import ClipContext
from dreamgen.run.clip_pass import ClipStage, process_clips
from dreamgen.run.jobs import generated_jobs, with_records
from dreamgen.run.records import StageResult, Status
from dreamgen.run.run_folder import RunFolder

STAGE = "curate"
NUM_NOTES = 20  # rejections that get a note each; the score table has all


def curate(settings: Settings) -> StageResult:
    """Measure every generated clip and write the verdicts.

    All clips are measured each time, so that new thresholds count; only verdicts that changed are appended to the
    journal.

    Args:
        settings: Settings of the run; `curate` holds the thresholds and the judges.

    Returns:
        The score table, with counts; partial when a clip that the journal calls done has no file, or one could not be
        measured.

    Raises:
        UserError: if no clip was generated, or a judge is unknown or cannot be loaded.
    """
    (result,) = process_clips(Curator(settings))
    return result


class Curator(ClipStage):
    """Gives each generated clip a verdict.

    Args:
        settings: As `curate` takes them.

    Raises:
        UserError: as `curate` does.
    """

    name = STAGE

    def __init__(self, settings: Settings) -> None:
        run, self._limits = RunFolder.of(settings), settings.curate
        super().__init__(run, generated_jobs(run, STAGE))
        self._judges = load_judges(settings)
        self._table_path = self.run.scores / "scores.parquet"
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []
        self._missing: list[str] = []

    def __enter__(self) -> Self:
        self._previous = with_records(self.jobs, self.run, STAGE)
        super().__enter__()
        self._table = self._open.enter_context(ScoreTable(self._table_path, self._judges))
        return self

    def process(self, clip: ClipContext) -> Status:
        """Measure one clip, and record its verdict if it changed."""
        job, previous = next(self._previous)
        assert job.clip_id == clip.job.clip_id, "clips come in the order of `jobs`"
        if not clip.file.is_file():
            self._missing.append(job.clip_id)
            return "failed"
        record = curate_clip(clip, self._limits, self._judges)
        self._table.add(record)
        if previous is None or replace(previous, time_s=0.0) != record:
            self._journal.append(record)
        self._counts[record.status] += 1
        if record.status != "ok" and len(self._notes) < NUM_NOTES:
            self._notes.append(f"{record.clip_id} {record.status}: {record.reason or record.error}")
        return record.status

    def result(self) -> StageResult:
        """Return the score table, with counts and the first rejections."""
        counts, notes, missing = self._counts, list(self._notes), self._missing
        if (num_more := counts["rejected"] + counts["failed"] - len(notes)) > 0:
            notes.append(f"and {num_more} more: {self._table_path} has each clip's reasons")
        if missing:
            notes.append(f"{len(missing)} clips have no file, first {missing[0]}; dreamgen generate makes them again")
        metrics = {
            "num_clips": counts.total(), "num_accepted": counts["ok"], "num_rejected": counts["rejected"],
            "num_failed": counts["failed"],
        }  # fmt: skip
        is_partial = bool(missing or counts["failed"])
        return StageResult(STAGE, {"scores": self._table_path}, metrics, notes, partial=is_partial)
