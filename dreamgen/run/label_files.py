"""Label files and what made them: each record holds its file's hash, and a file of others is never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dreamgen.data.foreign_labels import ForeignLabel
from dreamgen.data.trajectory import MADE_BY, Trajectory, read_schema, read_trajectory, write_trajectory
from dreamgen.errors import UserError
from dreamgen.run.files import sha256_of_file
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder

STAGE = "label"
UNKNOWN = "unknown"
LABEL_HASH, LABELED_BY, SOURCE_HASH = "label_sha256", "labeled_by", "label_source_sha256"  # metrics of a record


def is_external(record: JournalRecord | None) -> bool:
    """Return whether a label is there that our inverse-dynamics model did not make."""
    return record is not None and record.status == "ok" and record.metrics.get(LABELED_BY) is not None


def is_foreign(path: Path, record: JournalRecord | None) -> bool:
    """Return whether a label file exists that this program did not write, or that was changed since.

    Args:
        path: The label file.
        record: The clip's latest record; a record without a hash is one of an older version.
    """
    if not path.is_file():
        return False
    if record is not None and record.status == "ok":
        known = record.metrics.get(LABEL_HASH)
        return known is not None and known != sha256_of_file(path)
    try:  # without a record: left by a kill between file and record, if it is marked as ours
        return MADE_BY not in (read_schema(path).metadata or {})
    except UserError:
        return True


def adopt(run: RunFolder, clip_id: str, num_frames: int) -> JournalRecord:
    """Record a label file that something else put into the run; the file stays as it is.

    Returns:
        The record: ok, or failed where the file does not fit the clip.
    """
    path = run.label_file(clip_id)
    try:
        trajectory = read_trajectory(path)
        _check(trajectory, path, num_frames)
    except UserError as error:
        return JournalRecord(clip_id, STAGE, "failed", error=f"UserError: {error}")
    return _record(run, clip_id, trajectory, UNKNOWN, f"found in {run.labels.name}/")


def take(
    run: RunFolder, clip_id: str, num_frames: int, label: ForeignLabel, labeled_by: str | None,
    trajectory: Trajectory | None = None,
) -> JournalRecord:  # fmt: skip
    """Write another program's label as a label of the run.

    Args:
        run: The run.
        clip_id: The clip that it belongs to.
        num_frames: Frames of the clip.
        label: Where it comes from.
        labeled_by: What made it; None if that is not known.
        trajectory: Its rows, where they were resampled; read from `label` otherwise.

    Returns:
        The record, once the file is written: ok, or failed where it cannot be read or does not fit the clip.
    """
    try:
        trajectory = label.load() if trajectory is None else trajectory
        _check(trajectory, label.file, num_frames)
    except UserError as error:
        return JournalRecord(clip_id, STAGE, "failed", error=f"UserError: {error}")
    write_trajectory(run.label_file(clip_id), trajectory, labeled_by or UNKNOWN)
    source = {SOURCE_HASH: sha256_of_file(label.file)}
    # Without the folders above: it goes into provenance, which goes where the dataset goes.
    name = f"{label.file.parent.name}/{label.file.name}"
    return _record(run, clip_id, trajectory, labeled_by or UNKNOWN, name, source)


def _record(
    run: RunFolder, clip_id: str, trajectory: Trajectory, labeled_by: str, source: str,
    more: Mapping[str, str] | None = None,
) -> JournalRecord:  # fmt: skip
    path = run.label_file(clip_id)
    metrics = {
        "num_frames": trajectory.num_rows, "has_state": trajectory.state_TS is not None, LABELED_BY: labeled_by,
        LABEL_HASH: sha256_of_file(path), "label_source": source, **(more or {}),
    }  # fmt: skip
    return JournalRecord(clip_id, STAGE, "ok", file=str(path.relative_to(run.root)), metrics=metrics)


def _check(trajectory: Trajectory, path: Path, num_frames: int) -> None:
    if trajectory.action_TA is None:
        raise UserError(f"{path} has no actions", allowed="a column `action`")
    if trajectory.num_rows != num_frames:
        raise UserError(f"{path}: rows and frames differ", actual=f"{trajectory.num_rows} rows",
                        allowed=f"{num_frames}, one for each frame of the clip")  # fmt: skip
