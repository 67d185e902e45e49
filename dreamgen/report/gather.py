"""Read everything that the report shows from a run folder, as far as it exists."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.config.loading import read_yaml, settings_from_dict
from dreamgen.errors import UserError, quoted
from dreamgen.extensions.export_format import reader_of
from dreamgen.report.clips import NO_CLIPS, ClipTable, Failure, iter_failures, read_clips
from dreamgen.report.scores import ScoreColumn, read_scores
from dreamgen.run.files import read_json
from dreamgen.run.jobs import iter_jobs
from dreamgen.run.made_from import Stale, stale_outputs
from dreamgen.run.records import Job, RobotFeatures
from dreamgen.run.run_folder import RunFolder

MAX_FAILURES = 200  # of failed clips that the page describes; their number is not limited


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
        clips: The outcome of all planned clips.
        scores: What curate recorded of them.
        first_job: The first planned clip.
        failures: The latest errors of the first failed clips.
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
    clips: ClipTable = NO_CLIPS
    scores: list[ScoreColumn] = field(default_factory=list)
    first_job: Job | None = None
    failures: list[Failure] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    stale: list[Stale] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


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

    clips = attempt(run.jobs, lambda _: read_clips(run), NO_CLIPS)
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
        clips=clips,
        scores=read_scores(run, clips),
        first_job=next(iter_jobs(run.jobs, np.zeros(1, np.int64)), None) if len(clips) else None,
        failures=list(iter_failures(run, clips, MAX_FAILURES)),
        datasets=attempt(run.datasets, _read_datasets, []),
        stale=attempt(run.settings_file, lambda path: stale_outputs(run, settings_from_dict(read_yaml(path))), []),
        unreadable=unreadable,
    )


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
