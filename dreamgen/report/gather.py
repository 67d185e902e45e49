"""Read everything that the report shows from a run folder, as far as it exists."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dreamgen.config.loading import read_yaml, settings_from_dict
from dreamgen.errors import UserError, quoted
from dreamgen.extensions.export_format import reader_of
from dreamgen.run.files import read_json
from dreamgen.run.jobs import REJECTIONS, read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.made_from import Stale, stale_outputs
from dreamgen.run.records import Job, JournalRecord, RobotFeatures
from dreamgen.run.run_folder import RunFolder
from dreamgen.stages import CLIP_STAGES

Verdict = Literal["accepted", "rejected", "failed", "not judged", "waiting"]


@dataclass(frozen=True)
class Clip:
    """One job and its outcome.

    Args:
        job: The planned clip.
        verdict: accepted or rejected (results); failed (an error); not judged (not curated); waiting (not generated).
        reasons: Reasons for a rejection.
        metrics: What curate recorded, by name.
        video: The mp4 file; None if it is missing.
        label: The file with its actions; None if it is missing.
    """

    job: Job
    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: dict[str, Any]
    video: Path | None
    label: Path | None


@dataclass(frozen=True)
class Failure:
    """A clip at which a stage failed, with the error."""

    job: Job
    record: JournalRecord


@dataclass(frozen=True)
class Step:
    """One row of the training log."""

    step: int
    loss: float


@dataclass(frozen=True)
class Dataset:
    """One exported dataset; `num_episodes` is None where it is unknown."""

    name: str
    num_episodes: int | None
    size_mb: float


@dataclass(frozen=True)
class RunView:
    """A run; what does not exist yet is empty or None.

    Args:
        run: The run folder.
        settings: run.yaml, nested.
        demos: Rows of prepare's summary, one per demonstration.
        features: The robot's features.
        steps: Rows of the training log.
        adapter: File of the adapter.
        idm: config.json of the inverse-dynamics model.
        jobs_planned: Whether jobs.parquet exists.
        clips: All clips in planned order.
        failures: The latest error of every failed clip.
        journal: Stage -> clip id -> latest record.
        datasets: The exported datasets.
        stale: Outputs that are out of date.
        unreadable: Files that exist and cannot be read, with the reason.
    """

    run: RunFolder
    settings: dict[str, Any]
    demos: list[dict[str, str]] = field(default_factory=list)
    features: RobotFeatures | None = None
    steps: list[Step] = field(default_factory=list)
    adapter: Path | None = None
    idm: dict[str, Any] | None = None
    jobs_planned: bool = False
    clips: list[Clip] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    journal: dict[str, dict[str, JournalRecord]] = field(default_factory=dict)
    datasets: list[Dataset] = field(default_factory=list)
    stale: list[Stale] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def count(self, *verdicts: Verdict) -> int:
        """Return how many clips have one of the verdicts."""
        return sum(clip.verdict in verdicts for clip in self.clips)


def gather(run: RunFolder) -> RunView:
    """Read what exists of a run.

    Raises:
        UserError: if the run folder does not exist.
    """
    if not run.root.is_dir():
        raise UserError(
            f"the run folder {run.root} does not exist",
            next_step=f"dreamgen prepare --demos PATH --out {quoted(run.root)}",
        )
    unreadable: list[str] = []

    def attempt(path: Path, read: Callable[[Path], Any], missing: Any) -> Any:
        """Read a file that may be missing or damaged, without giving up the rest of the page."""
        try:
            return read(path) if path.exists() else missing
        except UserError as error:
            unreadable.append(str(error))
            return missing

    jobs = attempt(run.jobs, read_jobs, [])
    journal = {stage: read_journal(run.journal, stage) for stage in (*CLIP_STAGES, REJECTIONS)}
    adapter = run.adapter / "pytorch_lora_weights.safetensors"
    return RunView(
        run=run,
        settings=attempt(run.settings_file, read_yaml, {}),
        demos=attempt(run.train / "summary.csv", _read_csv, []),
        features=attempt(run.features_file, _read_features, None),
        steps=attempt(run.finetune_logs / "loss.csv", _read_steps, []),
        adapter=adapter if adapter.is_file() else None,
        idm=attempt(run.idm / "config.json", read_json, None),
        jobs_planned=run.jobs.exists(),
        clips=[_clip(run, job, journal) for job in jobs],
        failures=[Failure(job, record) for job in jobs if (record := _failed(job, journal)) is not None],
        journal=journal,
        datasets=attempt(run.datasets, _read_datasets, []),
        stale=attempt(run.settings_file, lambda path: stale_outputs(run, settings_from_dict(read_yaml(path))), []),
        unreadable=unreadable,
    )


def _clip(run: RunFolder, job: Job, journal: dict[str, dict[str, JournalRecord]]) -> Clip:
    records = [records.get(job.clip_id) for records in journal.values()]
    generated, judged = journal["generate"].get(job.clip_id), journal["curate"].get(job.clip_id)
    rejected = next((record for record in records if record is not None and record.status == "rejected"), None)
    if _failed(job, journal) is not None:
        verdict: Verdict = "failed"
    elif rejected is not None:
        verdict = "rejected"
    elif judged is not None:
        verdict = "accepted"
    else:
        verdict = "waiting" if generated is None else "not judged"
    video, label = run.clip_file(job.clip_id), run.label_file(job.clip_id)
    return Clip(
        job=job,
        verdict=verdict,
        reasons=tuple((rejected.reason or "no reason given").split("; ")) if rejected is not None else (),
        metrics=judged.metrics if judged is not None else {},
        video=video if video.is_file() else None,
        label=label if label.is_file() else None,
    )


def _failed(job: Job, journal: dict[str, dict[str, JournalRecord]]) -> JournalRecord | None:
    records = (records.get(job.clip_id) for records in journal.values())
    return next((record for record in records if record is not None and record.status == "failed"), None)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(stream)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table", actual=str(error)) from None


def _read_features(path: Path) -> RobotFeatures:
    try:
        return RobotFeatures.from_dict(read_json(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a robot", actual=str(error)) from None


def _read_steps(path: Path) -> list[Step]:
    try:
        return [Step(int(row["step"]), float(row["loss"])) for row in _read_csv(path)]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a training log", actual=str(error), allowed="columns step, loss") from None


def _read_datasets(folder: Path) -> list[Dataset]:
    found = []
    for path in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
        size_mb = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        reader = reader_of(path)
        found.append(Dataset(path.name, None if reader is None else reader.num_episodes(path), size_mb))
    return found
