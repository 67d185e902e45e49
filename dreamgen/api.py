"""The Python API: one function per stage, which does what the command of the same stage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamgen.config import loading
from dreamgen.config.settings import Settings
from dreamgen.pipeline import run_all, run_stage
from dreamgen.run.records import StageResult
from dreamgen.stages import STAGES


def load_settings(preset: str | Path | None = None, **values: Any) -> Settings:
    """Build settings as the command line does: values over the preset, over the run's run.yaml, over defaults.

    Args:
        preset: Path of a YAML file, or the name of a shipped preset, such as "mini".
        values: Settings; a section as a dict, such as `finetune={"num_steps": 100}`.

    Returns:
        The settings, checked.

    Raises:
        UserError: if there is no such preset, a setting is unknown, or a value is not allowed.
    """
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return loading.load_settings(str(preset) if preset is not None else None, plain)


def run_pipeline(
    settings: Settings, *, resume: bool = False, dry_run: bool = False, overwrite: bool = False
) -> list[StageResult]:
    """Run all stages in order in one run folder.

    Args:
        settings: With `out` and `demos`.
        resume: Continue in an existing run folder; finished work is kept.
        dry_run: Write nothing; inspect the demonstrations and estimate the training set.
        overwrite: With `resume`, replace datasets of the run that are out of date.

    Returns:
        The result of each stage that ran, in order.

    Raises:
        UserError: if the run folder is in use and `resume` is not set, or a stage refuses its input.
    """
    return run_all(settings, resume, dry_run, overwrite)


def prepare_training_set(settings: Settings, *, resume: bool = False, dry_run: bool = False) -> StageResult:
    """Turn demonstrations into a training set: `train/` of the run folder.

    Args:
        settings: With `out` and `demos`.
        resume: Keep a training set that exists, rather than refuse.
        dry_run: Write nothing; count, and show sample prompts and the disk that it would take.

    Returns:
        Counts, and notes about each demonstration that was refused.

    Raises:
        UserError: if no demonstration can be used, or there is a training set already.
    """
    return run_stage("prepare", settings, resume, dry_run)[-1]


def finetune_adapter(settings: Settings, *, resume: bool = False, dry_run: bool = False) -> StageResult:
    """Train an adapter of the world model on the training set: `adapter/` of the run folder.

    Args:
        settings: With `out`.
        resume: Keep an adapter that exists, or continue from the last checkpoint.
        dry_run: Write nothing; estimate time and memory.

    Returns:
        The adapter, its last loss, and notes; `partial` if a signal stopped the training.

    Raises:
        UserError: if there is no training set, or there is an adapter already.
    """
    return run_stage("finetune", settings, resume, dry_run)[-1]


def plan_jobs(settings: Settings, *, dry_run: bool = False) -> StageResult:
    """Combine first frames, instructions and seeds into jobs, added to those of the run folder.

    Args:
        settings: With `out`.
        dry_run: Write nothing; count, and show sample prompts.

    Returns:
        Counts of new and known jobs, and notes about each row that was refused.

    Raises:
        UserError: if there are no first frames or no instructions.
    """
    return run_stage("plan", settings, dry_run=dry_run)[-1]


def generate_clips(settings: Settings, *, dry_run: bool = False) -> StageResult:
    """Generate the planned clips that are missing, on the GPUs of this machine or of a Ray cluster.

    Args:
        settings: With `out`.
        dry_run: Write nothing; estimate disk and time.

    Returns:
        Counts over all jobs; `partial` if clips failed.

    Raises:
        UserError: if nothing is planned, or the model or a worker's resources are not available.
    """
    return run_stage("generate", settings, dry_run=dry_run)[-1]


def import_clips(settings: Settings, *, dry_run: bool = False) -> StageResult:
    """Bring clips and labels that other programs made into the run folder.

    Args:
        settings: With `out`; `import_clips` names clips and labels.
        dry_run: Write nothing; count.

    Returns:
        Counts, and notes about each clip that was refused; `partial` if a label does not fit its clip.

    Raises:
        UserError: if no clip can be used.
    """
    return run_stage("import", settings, dry_run=dry_run)[-1]


def reject_clips(settings: Settings) -> StageResult:
    """Keep clips out of the datasets, whatever their scores.

    Args:
        settings: With `out`; `reject` names the clips.

    Returns:
        Counts.

    Raises:
        UserError: if a name is no clip of the run.
    """
    return run_stage("reject", settings)[-1]


def finetune_idm(settings: Settings, *, resume: bool = False) -> StageResult:
    """Train the inverse-dynamics model on the demonstrations' own actions: `idm/` of the run folder.

    Args:
        settings: With `out`.
        resume: Keep a model that exists, rather than refuse.

    Returns:
        The model, with its errors on held-out episodes in the robot's units.

    Raises:
        UserError: if the demonstrations have no actions, or there is a model already.
    """
    return run_stage("finetune_idm", settings, resume)[-1]


def label_clips(settings: Settings) -> StageResult:
    """Recover the actions of generated clips; trains the inverse-dynamics model first where there is none.

    Args:
        settings: With `out`.

    Returns:
        The labels and counts; `partial` if a clip failed.

    Raises:
        UserError: if no clip was generated.
    """
    return run_stage("label", settings)[-1]


def curate_clips(settings: Settings) -> StageResult:
    """Score all generated clips and accept or reject each.

    Args:
        settings: With `out`; `curate` holds the thresholds.

    Returns:
        The score table and counts.

    Raises:
        UserError: if no clip was generated.
    """
    return run_stage("curate", settings)[-1]


def export_datasets(settings: Settings, *, resume: bool = False, overwrite: bool = False) -> StageResult:
    """Write the accepted clips as datasets: `datasets/` of the run folder.

    Args:
        settings: With `out`; `export` says which formats.
        resume: Keep datasets that exist, rather than refuse.
        overwrite: Replace datasets that the run wrote; with `resume`, only those that are out of date.

    Returns:
        The datasets, counts, and notes about each clip that was left out.

    Raises:
        UserError: if a dataset exists, or no clip was accepted or can be exported.
    """
    return run_stage("export", settings, resume, overwrite=overwrite)[-1]


def write_report(settings: Settings) -> StageResult:
    """Write report.html of a run, as far as it is.

    Args:
        settings: With `out`.

    Returns:
        The page, and notes about each stage that is not done.

    Raises:
        UserError: if there is no run folder.
    """
    return run_stage("report", settings)[-1]


def check_dataset(path: str | Path, settings: Settings | None = None, *, fix: bool = False) -> StageResult:
    """Check a LeRobot, robomimic or ACT dataset for what a trainer would run into.

    Args:
        path: Folder or file of the dataset.
        settings: `check` is used; the defaults when not given.
        fix: Repair first what is safe to repair; a copy of the original stays beside it.

    Returns:
        `num_errors` and other counts, and the findings as notes.

    Raises:
        UserError: if there is no dataset at `path`.
    """
    return STAGES["check"].call(Path(path), (settings or Settings()).check, fix=fix)


def convert_dataset(source: str | Path, target: str | Path, settings: Settings | None = None) -> StageResult:
    """Write a LeRobot dataset again in another version; video streams are copied.

    Args:
        source: Folder of the dataset; nothing in it is changed.
        target: A folder that does not exist yet.
        settings: `convert` is used; the defaults when not given.

    Returns:
        The new dataset and counts.

    Raises:
        UserError: if the source cannot be read, or the target exists.
    """
    return STAGES["convert"].call(Path(source), Path(target), (settings or Settings()).convert)
