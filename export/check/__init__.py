"""Check datasets, written by DreamGen or by others, for what makes training fail or learn something wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dreamgen.config.settings import CheckSettings
from dreamgen.errors import UserError, quoted
from dreamgen.extensions.export_format import EXPORT_FORMATS, FormatReader, reader_of
from dreamgen.run.records import StageResult
from export.check.findings import Finding, Findings
from export.check.manifest import check_manifest, manifest_root
from export.check.repair.files import REPAIR_FOLDER, finish_interrupted, is_interrupted
from export.manifest import MANIFEST, write_manifest

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
    return _check(_reader(Path(path)), Path(path), fast, num_workers)[0].all()


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
    changes, notes = [], []
    if settings.verify:
        findings, has_manifest = _verify(path, settings), True
    else:
        reader = _reader(path)
        findings, has_manifest = _check(reader, path, settings.fast, settings.num_workers)
        if fix and reader.repair:
            if is_finished := finish_interrupted(manifest_root(path)):
                findings, _ = _check(reader, path, settings.fast, settings.num_workers)
            changes, notes = reader.repair(path, findings.all())
            notes += ["finished a repair that was interrupted"] if is_finished else []
        if changes:
            findings, has_manifest = _check(reader, path, settings.fast, settings.num_workers)
    if settings.write_manifest:
        notes.append(_write_manifest(path, findings, settings))
    elif not has_manifest:
        notes.append(f"no {MANIFEST}: changed values, and images that look plausible, cannot be recognized")
    found = findings.all()
    metrics = {
        "num_errors": findings.num("error"),
        "num_warnings": findings.num("warning"),
        "decoded": not (settings.fast or settings.verify),
        "manifest": has_manifest,
        "findings": [asdict(finding) for finding in found],
        "changes": [asdict(change) for change in changes],
    }
    return StageResult("check", {"dataset": path}, metrics, [*map(str, changes), *notes, *map(str, found)])


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


def _check(reader: FormatReader, path: Path, fast: bool, num_workers: int | None) -> tuple[Findings, bool]:
    """Return the findings, and whether the dataset has a manifest."""
    findings = Findings()
    if is_interrupted(manifest_root(path)):
        findings.add("repair-interrupted", REPAIR_FOLDER, "", "files that were not replaced", "none")
    reader.check(path, fast, num_workers, findings)
    return findings, check_manifest(path, num_workers, findings)


def _verify(path: Path, settings: CheckSettings) -> Findings:
    findings = Findings()
    if not path.exists():
        raise UserError(f"{path} does not exist", next_step="name one dataset")
    if not check_manifest(path, settings.num_workers, findings):
        raise UserError(
            f"{path} has no manifest to be compared with", allowed=f"a dataset with {MANIFEST}, which export writes",
            next_step=f"dreamgen check {quoted(path)}",
        )  # fmt: skip
    return findings


def _write_manifest(path: Path, findings: Findings, settings: CheckSettings) -> str:
    """Write the manifest of a dataset without errors, other than that it differs from an old manifest."""
    errors = [f for f in findings.all() if f.severity == "error" and not f.code.startswith("manifest-")]
    if errors:
        return f"{MANIFEST} was not written: the dataset has errors"
    root = manifest_root(path)
    if path != root:
        return f"{MANIFEST} was not written: name the folder of {path.name}, whose files it lists"
    write_manifest(root, settings.num_workers)
    return f"wrote {root / MANIFEST}"
