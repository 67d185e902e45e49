"""State of each stage in a run, and the command that continues it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dreamgen.errors import quoted
from dreamgen.report.gather import RunView
from dreamgen.run.made_from import PER_CLIP, Stale
from dreamgen.stages import STAGES, Progress, Stage


@dataclass(frozen=True)
class StageState:
    """The state of one stage in a run.

    Args:
        name: Name of the stage.
        state: done; part (something is left); failed (something failed); missing.
        detail: What there is, in a few words.
        command: What continues from here; None when done.
    """

    name: str
    state: Literal["done", "part", "failed", "missing"]
    detail: str
    command: str | None = None


def stage_states(view: RunView) -> list[StageState]:
    """Return the state of each stage that has output, in the order of `dreamgen run`."""
    return [_READERS[stage.progress](view, stage) for stage in STAGES.values() if stage.progress is not None]


def _training_set(view: RunView, stage: Stage) -> StageState:
    num_used, num_refused = demos_used(view), len(refused_demos(view))
    if not (view.run.train / "metadata.csv").exists() and not view.demos:
        return StageState(stage.name, "missing", "no training set", _command(view, stage, " --demos PATH"))
    return StageState(stage.name, "done", f"{num_used} demos" + (f", {num_refused} refused" if num_refused else ""))


def _training_log(view: RunView, stage: Stage) -> StageState:
    last = f"{view.steps[-1].step:,} steps" if view.steps else None
    if view.adapter is not None:
        if stale := [entry for entry in view.stale if entry.output == "adapter"]:
            return StageState(stage.name, "part", _reasons(stale), stale[0].command)
        return StageState(stage.name, "done", last or "adapter exists")
    return StageState(stage.name, "part" if view.steps else "missing", last or "no adapter", _command(view, stage))


def _jobs(view: RunView, stage: Stage) -> StageState:
    if not view.jobs_planned:
        return StageState(stage.name, "missing", "no jobs", _command(view, stage))
    return StageState(stage.name, "done", f"{len(view.clips):,} jobs")


def _journal(view: RunView, stage: Stage) -> StageState:
    name, before, clips = stage.name, stage.counts_clips_of, view.clips
    num_expected = len(clips) if before is None else clips.num_with(before, "ok")
    num_done, num_failed = clips.num_with(name, "ok", "rejected"), clips.num_with(name, "failed")
    detail = f"{num_done:,} of {max(num_expected, num_done):,} clips"
    if num_failed:
        return StageState(name, "failed", f"{detail}, {num_failed:,} failed", _command(view, stage))
    if not num_done:
        return StageState(name, "missing", "no clips", _command(view, stage))
    if stale := [entry for entry in view.stale if entry.output == PER_CLIP.get(name)]:
        return StageState(name, "part", f"{detail}, {_reasons(stale)}", stale[0].command)
    is_done = num_done >= num_expected
    return StageState(name, "done" if is_done else "part", detail, None if is_done else _command(view, stage))


def _model(view: RunView, stage: Stage) -> StageState:
    if view.idm is None:
        return StageState(stage.name, "missing", "no model", _command(view, stage))
    if stale := [entry for entry in view.stale if entry.output == "idm"]:
        return StageState(stage.name, "part", _reasons(stale), stale[0].command)
    return StageState(stage.name, "done", "trained")


def _datasets(view: RunView, stage: Stage) -> StageState:
    wanted = view.settings.get("export", {}).get("formats", [])
    missing = [name for name in wanted if name not in {dataset.name for dataset in view.datasets}]
    if not view.datasets:
        return StageState(stage.name, "missing", "no datasets", _command(view, stage))
    detail = f"{len(view.datasets)} dataset" + ("s" if len(view.datasets) > 1 else "")
    if stale := [entry for entry in view.stale if entry.output.startswith("datasets/")]:
        return StageState(stage.name, "part", f"{detail}, {_reasons(stale)}", stale[0].command)
    if missing:
        return StageState(stage.name, "part", f"{detail}, not {', '.join(missing)}", _command(view, stage))
    return StageState(stage.name, "done", detail)


def _reasons(stale: Sequence[Stale]) -> str:
    return "; ".join(f"{entry.output} is out of date: {', '.join(entry.reasons)}" for entry in stale)


_READERS: dict[Progress, Callable[[RunView, Stage], StageState]] = {
    "training set": _training_set,
    "training log": _training_log,
    "jobs": _jobs,
    "journal": _journal,
    "model": _model,
    "datasets": _datasets,
}


def refused_demos(view: RunView) -> list[dict[str, str]]:
    """Return the rows of prepare's summary about demonstrations that were refused."""
    return [row for row in view.demos if row.get("status") == "refused"]


def demos_used(view: RunView) -> int:
    """Return how many demonstrations are in the training set, changed or not."""
    return len(view.demos) - len(refused_demos(view))


def _command(view: RunView, stage: Stage, arguments: str = "") -> str:
    return f"dreamgen {stage.command or stage.name}{arguments} --out {quoted(view.run.root)}"
