"""All stages in order: look ahead, run what is not done, skip what has nothing to work on, end in a page."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreamgen.config.settings import Settings
from dreamgen.environment import set_library_defaults
from dreamgen.errors import NothingAccepted, Problems, UserError
from dreamgen.progress import log
from dreamgen.run.journal import read_journal
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder

set_library_defaults()  # before a stage imports a library


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Args:
        name: As the user calls it.
        section: Its settings.
        call: Runs it; may take `resume`.
        output: What exists once it is done; None for a stage that finds out itself what is left to do.
    """

    name: str
    section: str
    call: Callable[[Settings, bool], StageResult]
    output: Callable[[RunFolder], Path] | None


def _prepare(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.prepare.stage import prepare

    return prepare(settings)


def _finetune(settings: Settings, resume: bool) -> StageResult:
    from finetune import finetune

    return finetune(settings, resume=resume)


def _plan(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.plan.stage import plan

    return plan(settings)


def _generate(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.generate.stage import generate

    return generate(settings)


def _train_idm(settings: Settings, resume: bool) -> StageResult:
    from finetune.inverse_dynamics import train_inverse_dynamics

    return train_inverse_dynamics(settings)


def _label(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.label.stage import label

    return label(settings)


def _curate(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.curate.stage import curate

    return curate(settings)


def _export(settings: Settings, resume: bool) -> StageResult:
    from export import export_datasets

    return export_datasets(settings, resume=resume)


def _check(settings: Settings, resume: bool) -> StageResult:
    from export.check import check_stage

    folders = [RunFolder.of(settings).datasets / name for name in settings.export.formats]
    results = {folder.name: check_stage(folder, settings.check) for folder in folders if folder.exists()}
    num_errors = sum(result.metrics["num_errors"] for result in results.values())
    notes = [f"{name}: {note}" for name, result in results.items() for note in result.notes]
    return StageResult("check", {}, {"datasets": len(results), "num_errors": num_errors}, notes)


def _report(settings: Settings, resume: bool) -> StageResult:
    from dreamgen.report import report

    return report(settings)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "prepare", _prepare, lambda run: run.train),
        Stage("finetune", "finetune", _finetune, lambda run: run.adapter),
        Stage("plan", "plan", _plan, lambda run: run.jobs),
        Stage("generate", "generate", _generate, None),
        Stage("inverse dynamics", "idm", _train_idm, lambda run: run.idm),
        Stage("label", "idm", _label, None),
        Stage("curate", "curate", _curate, None),
        Stage("export", "export", _export, None),
        Stage("check", "export", _check, None),
        Stage("report", "report", _report, None),
    )
}


def run_all(settings: Settings, resume: bool = False, dry_run: bool = False) -> list[StageResult]:
    """Run every stage in order in one run folder.

    A run whose demonstrations have no actions ends in clips and verdicts without labels and datasets; one in which
    nothing is accepted ends without datasets. Both still get their page.

    Args:
        settings: With `out` and `demos`.
        resume: Go on in an existing run folder, keeping what is done.
        dry_run: Only look at the demonstrations and say what would be done.

    Returns:
        Each stage's result, in order.

    Raises:
        UserError: if the run folder is in use and `resume` is not set, or a stage refuses its input.
    """
    run = RunFolder.of(settings)
    if dry_run:
        from dreamgen.prepare.stage import inspect

        return [inspect(settings)]
    done = [stage for stage in STAGES.values() if stage.output and stage.output(run).exists()]
    check_can_run(settings, run, done, resume)
    results: list[StageResult] = []
    with _claimed(run, settings):
        for number, stage in enumerate(STAGES.values(), start=1):
            reason = "done before, kept" if stage in done else _why_skipped(stage, run)
            log(f"[{number}/{len(STAGES)}] {stage.name}" + (f": {reason}" if reason else ""))
            if reason:
                continue
            try:
                results.append(stage.call(settings, resume))
            except NothingAccepted as error:
                results.append(StageResult(stage.name, {}, {"episodes": 0}, [str(error)], partial=True))
            _release_memory()
            if results[-1].metrics.get("interrupted"):
                break
    return results


def check_can_run(settings: Settings, run: RunFolder, done: list[Stage], resume: bool) -> None:
    """Find out now what a stage would refuse hours later.

    Raises:
        UserError: listing what stands in the way.
    """
    from dreamgen.models.world_model import check_size, model_type
    from export.stage import check_export

    begun = run.settings_file.exists() or bool(done)
    if begun and not resume:
        raise UserError(
            f"the run folder {run.root} is in use",
            allowed="a new folder, or this one with --resume",
            next_step=f"dreamgen run --out {run.root} --resume",
        )
    run.check_unchanged(settings, [stage.section for stage in done])
    problems, given = Problems(), settings.plan.first_frames
    for check, value in (
        (model_type(settings.model).load_class().check_requirements, settings.model),
        (check_size, settings),
        (check_export, settings),
    ):
        try:
            check(value)
        except UserError as error:
            problems.errors.append(error)
    if not run.train.exists() and settings.demos is None:
        problems.add("no demonstrations given", next_step="add --demos FOLDER")
    elif not run.train.exists() and not Path(settings.demos).exists() and settings.demos.count("/") != 1:
        problems.add("demonstrations: folder does not exist", actual=settings.demos, next_step="check the path")
    if settings.model.device.startswith("cuda:"):
        problems.add(
            "generate takes its GPUs from Ray, which numbers them itself", actual=settings.model.device,
            allowed="auto, cpu, cuda", next_step="choose the GPU with CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    if given is not None and not Path(given).exists():
        problems.add("plan.first_frames does not exist", actual=given, allowed="a folder, a .csv or a .jsonl")
    problems.raise_if_any("the run cannot start")


@contextmanager
def _claimed(run: RunFolder, settings: Settings) -> Iterator[None]:
    """Write run.yaml before anything else, so that no output is without it; take it back from a false start."""
    new_folder, new_run = not run.root.exists(), not run.settings_file.exists()
    run.record(settings, [stage.section for stage in STAGES.values()])
    try:
        yield
    except UserError:
        if new_run and not run.train.exists():
            run.settings_file.unlink()
            if new_folder and not any(run.root.iterdir()):
                run.root.rmdir()
        raise


def _why_skipped(stage: Stage, run: RunFolder) -> str | None:
    """Say why a stage has nothing to work on in this run; None if it has."""
    if stage.name in ("inverse dynamics", "label", "export", "check") and not (run.train / "trajectories").is_dir():
        return "skipped, the demonstrations have no actions to learn from"
    needs_clips = stage.name in ("label", "curate", "export")
    if needs_clips and all(record.status != "ok" for record in read_journal(run.journal, "generate").values()):
        return "skipped, no clip was generated"
    if stage.name == "check" and not run.datasets.is_dir():
        return "skipped, there is no dataset"
    return None


def _release_memory() -> None:
    """Give a stage's memory back: the next one may load the model in processes of its own on the same GPU."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
