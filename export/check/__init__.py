"""Check datasets, written by DreamGen or by others, for what makes training fail or learn something wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dreamgen.config.settings import CheckSettings
from dreamgen.errors import UserError
from dreamgen.extensions.export_format import EXPORT_FORMATS, FormatReader, reader_of
from dreamgen.run.records import StageResult
from export.check.findings import Finding, Findings

__all__ = ["Finding", "check", "check_stage"]


def check(path: str | Path, fast: bool = False, num_workers: int | None = None) -> list[Finding]:
    """Check a dataset of any registered format; LeRobot includes v2.0.

    Args:
        path: A folder, or an HDF5 file.
        fast: Read metadata, tables and video packets only; decode no images.
        num_workers: Number of processes; one per core if None.

    Returns:
        Findings, errors first; empty for a dataset without defects.

    Raises:
        UserError: if no format recognizes the path.
    """
    return _check(_reader(Path(path)), Path(path), fast, num_workers).all()


def check_stage(path: str | Path, settings: CheckSettings | None = None, fix: bool = False) -> StageResult:
    """Check a dataset for `dreamgen check`, whose exit status is 1 if `num_errors` is above 0.

    Args:
        path: The dataset.
        settings: How to check it.
        fix: Make the safe repairs first, and return the findings that remain.

    Returns:
        `metrics` with num_errors, num_warnings, whether images were decoded, and `findings` and `changes` as dicts;
        `notes` with a line for each change and finding.

    Raises:
        UserError: if no format recognizes the path.
    """
    settings, path = settings or CheckSettings(), Path(path)
    reader = _reader(path)
    findings = _check(reader, path, settings.fast, settings.num_workers)
    changes, unsafe = reader.repair(path, findings.all()) if fix and reader.repair else ([], [])
    if changes:
        findings = _check(reader, path, settings.fast, settings.num_workers)
    found = findings.all()
    metrics = {
        "num_errors": findings.num("error"),
        "num_warnings": findings.num("warning"),
        "decoded": not settings.fast,
        "findings": [asdict(finding) for finding in found],
        "changes": [asdict(change) for change in changes],
    }
    return StageResult("check", {"dataset": path}, metrics, [*map(str, changes), *unsafe, *map(str, found)])


def _reader(path: Path) -> FormatReader:
    reader = reader_of(path)
    if reader is None:
        layouts = dict.fromkeys(known.reader.layout for _, known in EXPORT_FORMATS.items())
        raise UserError(
            f"{path} is not a dataset that can be checked" if path.exists() else f"{path} does not exist",
            allowed="; ".join(layouts),
            next_step="name one dataset, for example runs/NAME/datasets/lerobot-v3.0",
        )
    return reader


def _check(reader: FormatReader, path: Path, fast: bool, num_workers: int | None) -> Findings:
    findings = Findings()
    reader.check(path, fast, num_workers, findings)
    return findings
