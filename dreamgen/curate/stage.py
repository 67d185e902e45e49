"""Clips -> verdicts: each clip is measured by every score and by the chosen judges, and accepted or rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import torch

from dreamgen.cluster.clip_pass import ClipStage, ProcessClip, process_clips
from dreamgen.config.settings import Settings
from dreamgen.curate.judging import (
    LoadedJudges,
    chosen_judges,
    judge_clips,
    load_judges,
    needs_judging,
    write_rating_tables,
)
from dreamgen.curate.measure import MEASURE, measure_clip
from dreamgen.curate.real_clips import calibrate_run, source_of_vae
from dreamgen.curate.score_table import ScoreTable
from dreamgen.curate.selection import SIGNATURE, Candidate, deselected, ranking_metrics, ranks_clips
from dreamgen.curate.verdict import score_reasons, verdict
from dreamgen.data.clip_context import ClipContext
from dreamgen.extensions.judge import Judge
from dreamgen.extensions.score import SCORES, Metric
from dreamgen.models.world_model import WorldModelSource
from dreamgen.progress import Progress, log
from dreamgen.run.jobs import generated_jobs, with_records
from dreamgen.run.journal import Journal
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

STAGE = "curate"
NUM_NOTES = 20  # rejections that get a note each; the score table has all


def curate(settings: Settings, calibrate: bool = False) -> StageResult:
    """Measure every generated clip, ask the judges about those that the scores accept, and write the verdicts.

    What was measured is kept, so new thresholds change verdicts without a clip being read; only verdicts that changed
    are appended to the journal.

    Args:
        settings: Settings of the run; `curate` holds the thresholds and the judges.
        calibrate: Set thresholds from the demonstrations and write them as a preset, instead of judging clips.

    Returns:
        The score table, with counts; partial when a clip that the journal calls done has no file, or one could not be
        measured.

    Raises:
        UserError: if no clip was generated, a judge is unknown or cannot be loaded, or `best_by` names no metric.
    """
    if calibrate:
        return calibrate_run(settings)
    (result,) = process_clips(settings, Curator(settings))
    return result


@dataclass(frozen=True)
class CurateProcessor:
    """Measures clips in a worker.

    Args:
        vae_of: The model whose VAE scores may use; None for none.
    """

    vae_of: WorldModelSource | None = None

    def load(self, device: torch.device) -> ProcessClip:
        """Return the function that measures a clip; None for a clip without a file."""
        trip = None
        if self.vae_of is not None:
            from dreamgen.models.cosmos_predict25.round_trip import vae_round_trip  # heavy, and few ask for it

            trip = vae_round_trip(self.vae_of, device)

        def measure(clip: ClipContext) -> JournalRecord | None:
            clip.vae_trip = trip
            return measure_clip(clip) if clip.file.is_file() else None

        return measure


class Curator(ClipStage):
    """Gives each generated clip a verdict.

    Args:
        settings: As `curate` takes them.

    Raises:
        UserError: as `curate` does.
    """

    name = MEASURE

    def __init__(self, settings: Settings) -> None:
        run = RunFolder.of(settings)
        vae_of = source_of_vae(settings, run) if settings.curate.measure_vae_residual else None
        self.keeps_windows = vae_of is not None
        super().__init__(run, generated_jobs(run, STAGE), CurateProcessor(vae_of))
        self._settings, self._limits = settings, settings.curate
        self._table_path = self.run.scores / "scores.parquet"
        judges = chosen_judges(settings)  # refuses unknown ones before anything is measured
        if ranks_clips(self._limits):
            ranking_metrics(self._limits.best_by, _metrics(judges.values()))  # likewise
        self._known: dict[str, JournalRecord | None] = {}
        self._missing: list[str] = []

    def __enter__(self) -> Self:
        self._previous = with_records(self.jobs, self.run, MEASURE)
        return super().__enter__()

    def start(self, job: Job) -> JournalRecord | None:
        """Return what was measured of the clip before."""
        also, previous = next(self._previous)
        assert job.clip_id == also.clip_id, "clips come in the order of `jobs`"
        self._known[job.clip_id] = previous
        return previous

    def finish(self, job: Job, record: JournalRecord | None) -> None:
        """Keep what was measured, if anything was."""
        previous = self._known.pop(job.clip_id)
        if record is None:
            self._missing.append(job.clip_id)
        elif record != previous:
            self._journal.add(record)

    def result(self) -> StageResult:
        """Ask the judges, write the verdicts, and return the score table with counts and the first rejections."""
        judges = load_judges(self._settings)
        if judges:
            self._ask(judges)
        counts, notes = self._write_verdicts(judges)
        if judges:
            verdicts = ((ClipContext(self.run, job), record) for job, record in with_records(self.jobs, self.run, STAGE)
                        if record is not None)  # fmt: skip
            write_rating_tables(self.run.scores, verdicts, judges)
        if (num_more := counts["rejected"] + counts["failed"] - len(notes)) > 0:
            notes.append(f"and {num_more} more: {self._table_path} has each clip's reasons")
        if missing := sorted(self._missing):
            notes.append(f"{len(missing)} clips have no file, first {missing[0]}; dreamgen generate makes them again")
        metrics = {
            "num_clips": counts.total(), "num_accepted": counts["ok"], "num_rejected": counts["rejected"],
            "num_failed": counts["failed"],
        }  # fmt: skip
        is_partial = bool(missing or counts["failed"])
        return StageResult(STAGE, {"scores": self._table_path}, metrics, notes, partial=is_partial)

    def _measured(self) -> Iterator[tuple[Job, JournalRecord]]:
        missing = set(self._missing)
        for job, record in with_records(self.jobs, self.run, MEASURE):
            if job.clip_id not in missing:
                assert record is not None, "every clip with a file was measured"
                yield job, record

    def _ask(self, judges: LoadedJudges) -> None:
        """Have the judges rate the clips that the scores accept, as far as they have not done so."""

        def waiting() -> Iterator[tuple[Job, JournalRecord]]:
            for job, measured in self._measured():
                is_good = measured.status == "ok" and not score_reasons(job, measured.metrics, self._limits)
                if is_good and needs_judging(measured, judges):
                    yield job, measured

        num_clips, some = 0, None
        for num_clips, (some, _) in enumerate(waiting(), start=1):  # noqa: B007
            pass
        if some is None:
            return
        for name, (_, loaded) in judges.items():
            estimate = getattr(loaded, "estimate", None)
            log(
                f"judge {name}: " + (estimate(num_clips, some.height, some.width) if estimate else f"{num_clips} clips")
            )
        clips = ((ClipContext(self.run, job), measured) for job, measured in waiting())
        with Journal(self.run.journal, MEASURE) as journal, Progress("judge", num_clips) as progress:
            for record in judge_clips(clips, judges):
                journal.add(record)
                progress.add(failed=int(record.status == "failed"))

    def _write_verdicts(self, judges: LoadedJudges) -> tuple[Counter[str], list[str]]:
        """Write the table and the verdicts that changed; return counts, and notes on the first rejections."""
        counts, notes = Counter[str](), list[str]()
        previous = (record for job, record in with_records(self.jobs, self.run, STAGE)
                    if job.clip_id not in self._missing)  # fmt: skip
        left_out = self._deselected(judges)
        with ExitStack() as contexts:
            table = contexts.enter_context(ScoreTable(self._table_path, {n: judge for n, (judge, _) in judges.items()}))
            journal = contexts.enter_context(Journal(self.run.journal, STAGE))
            for (job, measured), before in zip(self._measured(), previous, strict=True):
                record = verdict(job, measured, self._limits, judges, left_out.get(job.clip_id))
                table.add(record)
                if before is None or replace(before, time_s=0.0) != record:
                    journal.add(record)
                counts[record.status] += 1
                if record.status != "ok" and len(notes) < NUM_NOTES:
                    notes.append(f"{record.clip_id} {record.status}: {record.reason or record.error}")
        return counts, notes

    def _deselected(self, judges: LoadedJudges) -> dict[str, str]:
        """Return which of the clips that are good enough are left out because of others, and why."""
        limits = self._limits
        if not ranks_clips(limits) and not limits.min_difference:
            return {}
        accepted = ((job, m.metrics) for job, m in self._measured()
                    if verdict(job, m, limits, judges).status == "ok")  # fmt: skip
        candidates = [Candidate(job, metrics, metrics.get(SIGNATURE)) for job, metrics in accepted]
        return deselected(candidates, limits, _metrics(judge for judge, _ in judges.values()))


def _metrics(judges: Iterable[Judge]) -> list[Metric]:
    """Return the metrics of all scores and of these judges."""
    return [*(score for _, score in SCORES.items()), *(metric for judge in judges for metric in judge.metrics)]
