"""Labels that the run's inverse-dynamics model did not make: those of `label.from`, and files found in `labels/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from dreamgen.config.settings import Settings
from dreamgen.data.foreign_labels import ForeignLabels, names_of, open_labels
from dreamgen.data.media_files import not_used
from dreamgen.errors import quoted
from dreamgen.progress import Progress
from dreamgen.run.jobs import generated_jobs, with_records
from dreamgen.run.journal import Journal
from dreamgen.run.label_files import SOURCE_HASH, adopt, is_external, is_foreign, take
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

STAGE = "label"
NUM_NOTES = 10


def label_without_model(settings: Settings) -> StageResult | None:
    """Take the labels of others, and leave the rest to the inverse-dynamics model.

    A label file that this program did not write is recorded with its hash and stays as it is.

    Args:
        settings: `label.from` names a folder of labels; `out` is the run.

    Returns:
        Counts, if `label.from` is given, every clip has a label, or there is nothing to train a model on; None if
        clips are left for the model.

    Raises:
        UserError: if there is no clip, or `label.from` holds no label.
    """
    run, wanted = RunFolder.of(settings), settings.label
    jobs = generated_jobs(run, STAGE)
    features = run.robot_features()
    dims = (len(features.state_names) or None, len(features.action_names) or None)
    labels = None if wanted.from_folder is None else open_labels(wanted.from_folder, *dims)
    counts: Counter[str] = Counter()
    notes: list[str] = []
    with Journal(run.journal, STAGE) as journal, ExitStack() as shown:
        progress = None  # until there is a label of others, which most runs do not have
        for num_before, (job, record) in enumerate(with_records(jobs, run, STAGE)):
            state, new = _of_clip(run, job, record, labels, wanted.labeled_by)
            counts[state] += 1
            if progress is None and (labels is not None or state not in ("left", "done")):
                progress = shown.enter_context(Progress("label: labels of others", len(jobs)))
                progress.add(num_before)
            if progress is not None:
                progress.add(failed=state == "failed")
            if new is not None:
                journal.append(new)
                notes += [f"{job.clip_id} failed: {new.error}"] if new.status == "failed" else []
    num_left = counts["left"]
    can_ask_model = run.idm.exists() or (run.train / "trajectories").is_dir()
    if labels is None and num_left and (can_ask_model or num_left == len(jobs)):
        return None  # or an error that names what is missing
    notes = notes[:NUM_NOTES]
    if labels is not None:
        notes += not_used(labels.not_taken(), "as no clip has their name")
    if counts["found"]:
        notes.append(f"{counts['found']} clips keep the label file that was found in {run.labels}")
    if num_left:
        notes.append(f"{num_left} clips have no label there:  dreamgen label --out {quoted(run.root)}  asks the "
                     "inverse-dynamics model for them")  # fmt: skip
    metrics = {"num_labelled": counts["taken"], "num_already_done": counts["done"] + counts["found"],
               "num_failed": counts["failed"], "num_without_label": num_left}  # fmt: skip
    return StageResult(STAGE, {"labels": run.labels}, metrics, notes, partial=bool(counts["failed"]))


def needs_no_model(settings: Settings) -> bool:
    """Return whether label can do without an inverse-dynamics model: every clip has a label of others."""
    if settings.label.from_folder is not None:
        return True
    run = RunFolder.of(settings)
    return all(_is_theirs(run, job, record) for job, record in with_records(generated_jobs(run, STAGE), run, STAGE))


def _of_clip(
    run: RunFolder, job: Job, record: JournalRecord | None, labels: ForeignLabels | None, labeled_by: str | None
) -> tuple[str, JournalRecord | None]:
    """Return what becomes of a clip's label (found, taken, done, failed or left), and its new record."""
    path = run.label_file(job.clip_id)
    if is_foreign(path, record):
        new = adopt(run, job.clip_id, job.num_frames)
        is_known = record is not None and (record.status, record.error, record.metrics) == (
            new.status, new.error, new.metrics
        )  # fmt: skip
        return ("found" if new.status == "ok" else "failed"), None if is_known else new
    known = record if record is not None and record.status == "ok" and path.is_file() else None
    if known is not None and is_external(known) and SOURCE_HASH not in known.metrics:
        return "found", None
    label = labels.of(list(_names(job))) if labels is not None else None
    if label is None:
        return ("done" if known is not None and (is_external(known) or labels is not None) else "left"), None
    new = take(run, job.clip_id, job.num_frames, label, labeled_by)
    if known is not None and new.status == "ok" and new.metrics == known.metrics:
        return "done", None
    return ("taken" if new.status == "ok" else "failed"), new


def _names(job: Job) -> Iterator[str]:
    yield job.clip_id
    if job.is_imported:
        yield from names_of(Path(*Path(job.source).parts[1:]).as_posix())  # without the name of the clips' folder


def _is_theirs(run: RunFolder, job: Job, record: JournalRecord | None) -> bool:
    path = run.label_file(job.clip_id)
    return (is_external(record) and path.is_file()) or is_foreign(path, record)
