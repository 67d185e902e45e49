"""`check`: open what was written, by us or by others, and say what a trainer would stumble over."""

from __future__ import annotations

from pathlib import Path

from dreamgen.core.errors import UserError
from dreamgen.core.records import StageResult
from export.check.findings import Finding, Findings
from export.check.hdf5 import check_hdf5
from export.check.layout import check_features, check_statistics, check_totals, check_unnamed_files
from export.check.lerobot import read_lerobot
from export.check.modality import check_modality
from export.check.rows import check_rows
from export.check.videos import check_videos

__all__ = ["Finding", "check", "check_stage"]


def check(path: str | Path) -> list[Finding]:
    """Check a dataset: LeRobot v2.0, v2.1 or v3.0 (a folder), or robomimic HDF5 (a file, or a folder with data.hdf5).

    Returns:
        Findings, errors first; none for a dataset without fault.

    Raises:
        UserError: if there is no such dataset.
    """
    path, findings = Path(path), Findings()
    hdf5 = _hdf5_file(path)
    if hdf5 is not None:
        check_hdf5(hdf5, findings)
    elif (path / "meta" / "info.json").exists():
        check_lerobot(path, findings)
    else:
        raise UserError(
            f"{path} is not a dataset that can be checked" if path.exists() else f"{path} does not exist",
            allowed="a LeRobot folder (meta/info.json), an .hdf5 file, or a folder with data.hdf5",
            next_step="name one dataset, for example runs/NAME/datasets/lerobot-v3.0",
        )
    return findings.all()


def check_lerobot(root: Path, findings: Findings) -> None:
    """Run all checks of a LeRobot dataset."""
    dataset = read_lerobot(root, findings)
    if dataset is None:
        return
    check_totals(dataset, findings)
    check_features(dataset, findings)
    rows = check_rows(dataset, findings)
    check_videos(dataset, rows, findings)
    check_statistics(dataset, rows, findings)
    check_modality(dataset, findings)
    check_unnamed_files(dataset, findings)


def check_stage(path: str | Path) -> StageResult:
    """Check a dataset for the command: exit status 1 where `num_errors` is above 0.

    Returns:
        `figures` with num_errors, num_warnings and `findings` as dicts; `notes` with one line a finding.

    Raises:
        UserError: if there is no such dataset.
    """
    found = check(path)
    num_errors = sum(finding.severity == "error" for finding in found)
    figures = {
        "num_errors": num_errors,
        "num_warnings": len(found) - num_errors,
        "findings": [finding.as_dict() for finding in found],
    }
    return StageResult("check", {"dataset": Path(path)}, figures, [str(finding) for finding in found])


def _hdf5_file(path: Path) -> Path | None:
    if path.is_file() and path.suffix in (".hdf5", ".h5"):
        return path
    return path / "data.hdf5" if (path / "data.hdf5").is_file() else None
