"""`check`: open what was written, by us or by others, and say what a trainer would stumble over."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import h5py

from dreamgen.config.settings import CheckSettings
from dreamgen.errors import UserError
from dreamgen.run.records import StageResult
from export.check.findings import Finding, Findings
from export.check.hdf5 import aloha_files, check_aloha, check_robomimic
from export.check.lerobot import check_lerobot
from export.check.repair import repair

__all__ = ["Finding", "check", "check_stage"]

SUFFIXES = (".hdf5", ".h5")


def check(path: str | Path, fast: bool = False, num_workers: int | None = None) -> list[Finding]:
    """Check a dataset: LeRobot v2.0, v2.1 or v3.0, robomimic HDF5, or ACT's HDF5.

    Args:
        path: A folder, or an HDF5 file.
        fast: Read metadata, tables and the packets of videos, and decode no picture.
        num_workers: Processes; one a core when not given.

    Returns:
        Findings, errors first; none for a dataset without fault.

    Raises:
        UserError: if there is no such dataset.
    """
    return _check(Path(path), fast, num_workers).all()


def _check(path: Path, fast: bool, num_workers: int | None) -> Findings:
    findings = Findings()
    if path.is_file() and path.suffix in SUFFIXES:
        _check_hdf5_file(path, fast, num_workers, findings)
    elif (path / "meta" / "info.json").exists():
        check_lerobot(path, fast, num_workers, findings)
    elif names := aloha_files(path):
        check_aloha(path, names, fast, num_workers, findings)
    elif hdf5 := _only_hdf5_file(path):
        _check_hdf5_file(hdf5, fast, num_workers, findings)
    else:
        raise UserError(
            f"{path} is not a dataset that can be checked" if path.exists() else f"{path} does not exist",
            allowed="a LeRobot folder (meta/info.json), an .hdf5 file, or a folder with one .hdf5 file or with "
            "episode_0.hdf5, episode_1.hdf5 ...",
            next_step="name one dataset, for example runs/NAME/datasets/lerobot-v3.0",
        )
    return findings


def check_stage(path: str | Path, settings: CheckSettings | None = None, fix: bool = False) -> StageResult:
    """Check a dataset for the command: exit status 1 where `num_errors` is above 0.

    Args:
        path: The dataset.
        settings: How to check it.
        fix: Repair what is safe first; the figures are those of a check after it.

    Returns:
        `figures` with num_errors, num_warnings, whether pictures were decoded, `findings` and `changes` as dicts;
        `notes` with one line a change and a finding.

    Raises:
        UserError: if there is no such dataset.
    """
    settings = settings or CheckSettings()
    path = Path(path)
    findings = _check(path, settings.fast, settings.num_workers)
    changes, unsafe = repair(_only_hdf5_file(path) or path, findings.all()) if fix else ([], [])
    if changes:
        findings = _check(path, settings.fast, settings.num_workers)
    found = findings.all()
    metrics = {
        "num_errors": findings.num("error"),
        "num_warnings": findings.num("warning"),
        "decoded": not settings.fast,
        "findings": [finding.as_dict() for finding in found],
        "changes": [asdict(change) for change in changes],
    }
    return StageResult("check", {"dataset": path}, metrics, [*map(str, changes), *unsafe, *map(str, found)])


def _check_hdf5_file(path: Path, fast: bool, num_workers: int | None, findings: Findings) -> None:
    try:
        with h5py.File(path, "r") as file:
            is_aloha = "data" not in file and ("observations" in file or "action" in file)
    except OSError:
        is_aloha = False  # the checker itself says what is wrong
    if is_aloha:
        check_aloha(path.parent, [path.name], fast, num_workers, findings)
    else:
        check_robomimic(path, fast, num_workers, findings)


def _only_hdf5_file(folder: Path) -> Path | None:
    if (folder / "data.hdf5").is_file():
        return folder / "data.hdf5"
    found = [path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")]
    return found[0] if len(found) == 1 else None
