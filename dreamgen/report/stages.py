"""How far a run got: each stage of the pipeline with its state, in words, and the command that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamgen.report.gather import RunView


@dataclass(frozen=True)
class StageState:
    """One stage of the pipeline.

    Args:
        name: As the command is called.
        state: done; part (begun, something is left); failed (something failed); missing.
        detail: What there is, in a few words.
        command: What goes on from here; None when done.
    """

    name: str
    state: Literal["done", "part", "failed", "missing"]
    detail: str
    command: str | None = None


def stage_states(view: RunView) -> list[StageState]:
    """Return the pipeline's stages in order with their states."""
    return [
        _prepare(view),
        _finetune(view),
        _plan(view),
        _clip_stage(view, "generate", len(view.clips)),
        _inverse_dynamics(view),
        _clip_stage(view, "label", num_ok(view, "generate")),
        _clip_stage(view, "curate", num_ok(view, "label")),
        _export(view),
    ]


def _prepare(view: RunView) -> StageState:
    used, refused = demos_used(view), len(refused_demos(view))
    if not (view.run.train / "metadata.csv").exists() and not view.demos:
        return StageState("prepare", "missing", "no training set", _command(view, "prepare --demos PATH"))
    return StageState("prepare", "done", f"{used} demos" + (f", {refused} refused" if refused else ""))


def _finetune(view: RunView) -> StageState:
    last = f"{view.steps[-1].step:,} steps" if view.steps else None
    if view.adapter is not None:
        return StageState("finetune", "done", last or "adapter there")
    state = "part" if view.steps else "missing"
    return StageState("finetune", state, last or "no adapter", _command(view, "finetune"))


def _plan(view: RunView) -> StageState:
    if not view.jobs_planned:
        return StageState("plan", "missing", "no jobs", _command(view, "plan"))
    return StageState("plan", "done", f"{len(view.clips):,} jobs")


def _clip_stage(view: RunView, name: str, num_expected: int) -> StageState:
    known = {clip.job.clip_id for clip in view.clips}
    records = [record for clip_id, record in view.journal.get(name, {}).items() if clip_id in known]
    num_failed = sum(record.status == "failed" for record in records)
    num_done = len(records) - num_failed
    detail = f"{num_done:,} of {max(num_expected, num_done):,} clips"
    if num_failed:
        return StageState(name, "failed", f"{detail}, {num_failed:,} failed", _command(view, name))
    if not records:
        return StageState(name, "missing", "no clips", _command(view, name))
    done = num_done >= num_expected
    return StageState(name, "done" if done else "part", detail, None if done else _command(view, name))


def _inverse_dynamics(view: RunView) -> StageState:
    if view.idm is None:
        return StageState("inverse dynamics", "missing", "no model", _command(view, "label"))
    return StageState("inverse dynamics", "done", "trained")


def _export(view: RunView) -> StageState:
    wanted = view.settings.get("export", {}).get("formats", [])
    missing = [name for name in wanted if name not in {dataset.name for dataset in view.datasets}]
    if not view.datasets:
        return StageState("export", "missing", "no datasets", _command(view, "export"))
    detail = f"{len(view.datasets)} dataset" + ("s" if len(view.datasets) > 1 else "")
    if missing:
        return StageState("export", "part", f"{detail}, not {', '.join(missing)}", _command(view, "export"))
    return StageState("export", "done", detail)


def refused_demos(view: RunView) -> list[dict[str, str]]:
    """Return prepare's rows about demonstrations that were refused."""
    return [row for row in view.demos if row.get("status") == "refused"]


def demos_used(view: RunView) -> int:
    """Return how many demonstrations are in the training set, changed or not."""
    return len(view.demos) - len(refused_demos(view))


def num_ok(view: RunView, stage: str) -> int:
    """Return how many of the planned clips came through a stage."""
    records = view.journal.get(stage, {})
    return sum(clip.job.clip_id in records and records[clip.job.clip_id].status == "ok" for clip in view.clips)


def _command(view: RunView, words: str) -> str:
    return f"dreamgen {words} --out {view.run.root}"
