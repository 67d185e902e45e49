"""Clips -> verdicts: each clip is measured by every score and by the chosen judges, and accepted or rejected."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Self

import torch

from dreamgen.cluster.clip_pass import ClipStage, ProcessClip, process_clips
from dreamgen.config.settings import Settings
from dreamgen.curate.score_table import ScoreTable
from dreamgen.curate.verdict import chosen_judges, curate_clip, load_judges
from dreamgen.data.clip_context import ClipContext
from dreamgen.run.jobs import generated_jobs, with_records
from dreamgen.run.records import Job, JournalRecord, StageResult
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
    (result,) = process_clips(settings, Curator(settings))
    return result


@dataclass(frozen=True)
class CurateProcessor:
    """Measures clips in a worker.

    Args:
        settings: As `curate` takes them.
    """

    settings: Settings

    def load(self, device: torch.device) -> ProcessClip:
        """Load the judges and return the function that gives a clip its verdict; None for a clip without a file."""
        judges = load_judges(self.settings)

        def process(clip: ClipContext) -> JournalRecord | None:
            return curate_clip(clip, self.settings.curate, judges) if clip.file.is_file() else None

        return process


class Curator(ClipStage):
    """Gives each generated clip a verdict.

    Args:
        settings: As `curate` takes them.

    Raises:
        UserError: as `curate` does.
    """

    name = STAGE

    def __init__(self, settings: Settings) -> None:
        run = RunFolder.of(settings)
        super().__init__(run, generated_jobs(run, STAGE), CurateProcessor(settings))
        self._table_path = self.run.scores / "scores.parquet"
        self._judges = chosen_judges(settings)
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []
        self._missing: list[str] = []
        self._previous_of: dict[str, JournalRecord | None] = {}
        self._order: deque[str] = deque()
        self._finished: dict[str, JournalRecord | None] = {}

    def __enter__(self) -> Self:
        self._previous = with_records(self.jobs, self.run, STAGE)
        super().__enter__()
        self._table = self._open.enter_context(ScoreTable(self._table_path, self._judges))
        return self

    def start(self, job: Job) -> None:
        """Read the clip's last verdict."""
        also, self._previous_of[job.clip_id] = next(self._previous)
        assert job.clip_id == also.clip_id, "clips come in the order of `jobs`"
        self._order.append(job.clip_id)

    def finish(self, job: Job, record: JournalRecord | None) -> None:
        """Record the verdict on one clip if it changed, and add it to the table in the order of the jobs."""
        self._finished[job.clip_id] = record
        previous = self._previous_of.pop(job.clip_id)
        if record is not None and (previous is None or replace(previous, time_s=0.0) != record):
            self._journal.add(record)
        while self._order and self._order[0] in self._finished:
            self._count(clip_id := self._order.popleft(), self._finished.pop(clip_id))

    def _count(self, clip_id: str, record: JournalRecord | None) -> None:
        if record is None:
            self._missing.append(clip_id)
            return
        self._table.add(record)
        self._counts[record.status] += 1
        if record.status != "ok" and len(self._notes) < NUM_NOTES:
            self._notes.append(f"{record.clip_id} {record.status}: {record.reason or record.error}")

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
