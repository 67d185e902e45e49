"""The stages of a run: one of them as its command runs it, or all in order."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgen.config.loading import changed_settings, read_yaml
from dreamgen.config.paths import all_settings
from dreamgen.config.settings import Settings
from dreamgen.environment import set_library_defaults
from dreamgen.errors import NothingAccepted, Problems, UserError, WeakLabels, quoted
from dreamgen.progress import log
from dreamgen.run.journal import read_journal
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder, as_plain
from dreamgen.run.write_errors import storage_errors_as_user_errors
from dreamgen.stages import PIPELINE, STAGES, Stage, imported

set_library_defaults()  # before a stage imports a library


def run_stage(
    name: str, settings: Settings, resume: bool = False, dry_run: bool = False, **switches: bool
) -> list[StageResult]:
    """Run one stage as its command does, and record its settings in run.yaml.

    Args:
        name: Name of a stage of `dreamgen run`.
        settings: With `out`.
        resume: Keep output that exists, and continue where the stage stopped.
        dry_run: Write nothing.
        switches: Others that the stage's function takes, such as `overwrite`.

    Returns:
        The stage's result; before it, that of the stage which had to run first.

    Raises:
        UserError: if the stage refuses its input, or its run was made with other settings.
    """
    stage = STAGES[name]
    if stage.settle is not None:
        settings = imported(stage.settle)(settings)
    if dry_run:
        return [stage.call(settings, dry_run=True)]
    run, results = RunFolder.of(settings, may_be_remote=stage.may_be_remote), []
    first = STAGES[stage.first] if stage.first else None
    if (
        first is not None
        and not first.is_done(run)
        and not (stage.first_unless and imported(stage.first_unless)(settings))
    ):
        results += run_stage(first.name, settings, resume)
        if results[-1].partial:
            return results  # stopped; the same command with --resume continues it
    # A stage may run again with other settings of its own; those that earlier stages used must stay.
    sections = [first.section] if first is not None and first.section else []
    run.check_unchanged(settings, sections, but=_not_of(first.name) if first else ())
    if resume and stage.keeps_output and stage.output is not None and stage.is_done(run):
        return [*results, StageResult(name, {name: stage.output(run)}, {}, ["done before, kept"])]
    results.append(stage.call(settings, resume=resume, **switches))
    with storage_errors_as_user_errors(run.root):
        _record_made(run, name, settings)
        run.record(settings, [stage.section] if stage.section else [])
    return results


def _record_made(run: RunFolder, stage: str, settings: Settings) -> None:
    from dreamgen.run.made_from import record_made  # heavy: help has no use for it

    record_made(run, stage, settings)


def _not_of(name: str) -> list[str]:
    """Return the settings in a stage's section that its own output does not depend on."""
    section = STAGES[name].section
    return [path for path, setting in all_settings().items()
            if setting.section == section and (stages := setting.option.invalidates) is not None
            and section not in stages]  # fmt: skip


def run_all(
    settings: Settings, resume: bool = False, dry_run: bool = False, overwrite: bool = False
) -> list[StageResult]:
    """Run every stage in order in one run folder; with `resume`, those that are not done or that a change touches.

    Changed settings of plan add jobs, changed thresholds give new verdicts, and changed formats are written. A change
    that what is done does not survive is refused, with the command that makes it again.

    A run whose demonstrations have no actions ends with clips and verdicts, without labels and datasets; one in which
    no clip is accepted, or whose labels are weak, ends without datasets. All get a report.

    Args:
        settings: With `out` and `demos`.
        resume: Continue in an existing run folder, keeping finished work.
        dry_run: Write nothing; preview the whole job.
        overwrite: With `resume`, replace datasets of this run that are out of date.

    Returns:
        Each stage's result, in order.

    Raises:
        UserError: if the run folder is in use and `resume` is not set, or a stage refuses its input.
    """
    from dreamgen.preview import preview_run

    run = RunFolder.of(settings)
    done = [stage for stage in PIPELINE.values() if stage.is_done(run) and not _is_touched(stage, run, settings)]
    if dry_run:
        check_can_run(settings, run, done, resume=True)
        preview = preview_run(settings, run, may_download=False)
        notes = [*(f"warning: {text}" for text in preview.warnings), *preview.notes, "dry run: nothing was written"]
        first = [] if STAGES["prepare"] in done else run_stage("prepare", settings, dry_run=True)
        return [*first, StageResult("run", {}, preview.metrics, notes)]
    check_can_run(settings, run, done, resume)
    for text in [*preview_run(settings, run, may_download=True).warnings, *_not_renewed(run, settings)]:
        log(f"warning: {text}")
    results: list[StageResult] = []
    with storage_errors_as_user_errors(run.root), _claimed(run, settings):
        for number, stage in enumerate(PIPELINE.values(), start=1):
            reason = "done before, kept" if stage in done else _why_skipped(stage, run, settings)
            if stage.name in (result.stage for result in results):
                reason = "done together with label"
            log(f"[{number}/{len(PIPELINE)}] {stage.name}" + (f": {reason}" if reason else ""))
            if reason:
                continue
            try:
                result = stage.call(settings, in_run=True, resume=resume, overwrite=overwrite and resume)
                result = result if isinstance(result, list) else [result]
                results += result
                for one in result:
                    _record_made(run, one.stage, settings)
            except (NothingAccepted, WeakLabels) as error:
                results.append(StageResult(stage.name, {}, {"episodes": 0}, [str(error)], partial=True))
            _release_memory()
            if results[-1].metrics.get("interrupted"):
                break
    return results


def _is_touched(stage: Stage, run: RunFolder, settings: Settings) -> bool:
    """Return whether a stage that adds to its output has more to do: plan, with other settings or no jobs of its own.

    A run that was killed before it came to plan has the new settings in run.yaml already, so what plan recorded counts.
    """
    from dreamgen.run.jobs import job_columns
    from dreamgen.run.made_from import changed_since
    from dreamgen.run.records import IMPORTED

    if stage is not STAGES["plan"]:
        return False
    has_own = any(level != IMPORTED for level in job_columns(run.jobs, ["level"])["level"].to_pylist())
    before = read_yaml(run.settings_file) if run.settings_file.is_file() else {}
    changed = [path for path in changed_settings(before, as_plain(settings), ["plan"]) if path.startswith("plan.")]
    return not has_own or bool(changed or changed_since(run, "jobs", "plan", settings))


def _not_renewed(run: RunFolder, settings: Settings) -> list[str]:
    """Return what is out of date and is kept by a run that is continued, with the command that makes it again."""
    from dreamgen.run.made_from import TRAINED, stale_outputs

    return [str(stale) for stale in stale_outputs(run, settings) if stale.output in TRAINED.values()]


def check_can_run(settings: Settings, run: RunFolder, done: list[Stage], resume: bool) -> None:
    """Check before the first stage what a later stage would refuse.

    Raises:
        UserError: listing all problems.
    """
    from dreamgen.models.world_model import check_size, model_type
    from export.stage import check_export

    begun = run.settings_file.exists() or bool(done)
    if begun and not resume:
        raise UserError(
            f"the run folder {run.root} is in use",
            allowed="a new folder, or this one with --resume",
            next_step=f"dreamgen run --out {quoted(run.root)} --resume",
        )
    may_change = [path for stage in done for path in _not_of(stage.name)]
    run.check_unchanged(settings, _sections(done), but=may_change)
    problems, given = Problems(), settings.plan.first_frames
    for check in (
        lambda: model_type(settings.model).load_class().check_requirements(settings.model),
        lambda: check_size(settings),
        lambda: check_export(settings),
    ):
        with problems.collected():
            check()
    if run.train.exists():
        pass  # the demonstrations were read
    elif settings.demos is None:
        problems.add("no demonstrations given", next_step="add --demos FOLDER")
    elif not Path(settings.demos).exists() and settings.demos.count("/") != 1:
        problems.add("demonstrations: folder does not exist", actual=settings.demos, next_step="check the path")
    if settings.model.device.startswith("cuda:"):
        problems.add(
            "Ray assigns the GPUs of generate, so a run cannot choose one by number", actual=settings.model.device,
            allowed="auto, cpu, cuda", next_step="choose the GPU with CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    if given is not None and not Path(given).exists():
        problems.add("plan.first_frames does not exist", actual=given, allowed="a folder, a .csv or a .jsonl")
    _check_folded_guidance(settings, done, problems)
    problems.raise_if_any("the run cannot start")


def _check_folded_guidance(settings: Settings, done: list[Stage], problems: Problems) -> None:
    """Refuse to guide the adapter that the run is going to fold guidance into, which plan would do hours later."""
    tune, wanted = settings.finetune, settings.plan
    will_distill = tune.distill_guidance is not None and STAGES["finetune"] not in done
    if will_distill and wanted.adapter is None and wanted.guidance_scale > 1:
        problems.add(
            "finetune.distill_guidance folds guidance into the adapter, so plan must not guide it again",
            actual=f"plan.guidance_scale={wanted.guidance_scale:g}",
            allowed="1",
            next_step="--plan.guidance_scale=1",
        )


@contextmanager
def _claimed(run: RunFolder, settings: Settings) -> Iterator[None]:
    """Write run.yaml before any output, and remove it if the first stage refuses its input."""
    new_folder, new_run = not run.root.exists(), not run.settings_file.exists()
    run.record(settings, _sections(PIPELINE.values()))
    try:
        yield
    except UserError:
        if new_run and not run.train.exists():
            run.settings_file.unlink()
            if new_folder and not any(run.root.iterdir()):
                run.root.rmdir()
        raise


def _why_skipped(stage: Stage, run: RunFolder, settings: Settings) -> str | None:
    """Return why a stage has nothing to work on in this run; None if it has."""
    is_idm, taken_from = stage is STAGES["finetune_idm"], settings.label.from_folder
    if is_idm and taken_from is not None:
        return f"skipped, the labels come from {taken_from}"
    has_labels = not is_idm and (taken_from is not None or run.labels.is_dir())
    if "actions" in stage.needs and not has_labels and not (run.train / "trajectories").is_dir():
        return "skipped, the demonstrations have no actions to learn from"
    if "clips" in stage.needs and all(r.status != "ok" for r in read_journal(run.journal, "generate").values()):
        return "skipped, no clip was generated"
    if "datasets" in stage.needs and not run.datasets.is_dir():
        return "skipped, there is no dataset"
    return None


def _sections(stages: Iterable[Stage]) -> list[str]:
    return [stage.section for stage in stages if stage.section]


def label_and_curate(settings: Settings) -> list[StageResult]:
    """Run both stages in one pass, which decodes each clip once."""
    from dreamgen.cluster.clip_pass import process_clips
    from dreamgen.curate.stage import Curator, curate
    from dreamgen.label.external import label_without_model
    from dreamgen.label.stage import Labeler

    if (labels := label_without_model(settings)) is not None:
        return [labels, curate(settings)]
    return process_clips(settings, Labeler(settings), Curator(settings))


def check_datasets(settings: Settings) -> StageResult:
    """Check every dataset that the run exported.

    Args:
        settings: `out` names the run; `export.formats` the datasets.

    Returns:
        The number of datasets and of errors, and the findings as notes.
    """
    from export.check import check_stage

    export = settings.export
    folders = [RunFolder.of(settings).datasets / export.dataset_name(name) for name in export.formats]
    results = {folder.name: check_stage(folder, settings.check) for folder in folders if folder.exists()}
    num_errors = sum(result.metrics["num_errors"] for result in results.values())
    notes = [f"{name}: {note}" for name, result in results.items() for note in result.notes]
    return StageResult("check", {}, {"datasets": len(results), "num_errors": num_errors}, notes)


def _release_memory() -> None:
    """Free a stage's memory: the next one may load the model in its own processes on the same GPU."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
