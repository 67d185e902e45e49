"""`check --fix`: repairs that follow from the rest of the dataset. Videos, actions and states are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamgen.data.lerobot.metadata import LeRobotMeta, read_metadata
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, NUMERIC, STATS
from export.check.findings import Finding, Findings
from export.check.lerobot.statistics import PICTURES, LeRobotCheck, find_episode_statistics
from export.check.repair.columns import repair_columns
from export.check.repair.files import Change
from export.check.repair.info import repair_info
from export.check.repair.statistics import repair_episode_statistics, repair_statistics

__all__ = ["Change", "repair"]

# What repairs are counted from must be intact itself, or a right value would be replaced by a wrong one.
EPISODES_DOUBTFUL = (
    "episode-entry", "episode-duplicate", "episode-gap", "no-episodes", "task-entry", "task-duplicate"
)  # fmt: skip
ROWS_DOUBTFUL = ("row-count", "not-finite", "vector-length", "episode-length")


def repair(path: Path, findings: Sequence[Finding]) -> tuple[list[Change], list[str]]:
    """Repair what a check found and `--fix` can do.

    Args:
        path: The dataset's folder, or a robomimic file.
        findings: Of a check of it.

    Returns:
        What was changed, and a sentence for each repair that was not safe.
    """
    fixable = [finding for finding in findings if finding.fixable]
    if not fixable:
        return [], []
    damage = _first(findings, EPISODES_DOUBTFUL) or _unreadable(findings, "meta/", but=(STATS, EPISODE_STATS_V2))
    dataset = None if damage else read_metadata(path, Findings())
    if dataset is None:
        return [], [f"not fixed: what repairs are counted from is damaged itself: {damage}"]
    changes: list[Change] = []
    notes: list[str] = []
    needs_columns = any(finding.code == "missing-column" for finding in fixable)
    added = repair_columns(dataset, changes, notes) if needs_columns else {}
    repair_info(dataset, added, changes)
    statistics = [finding for finding in fixable if finding.code.startswith(("statistics-", "groot-"))]
    if statistics and (damage := _first(findings, ROWS_DOUBTFUL) or _unreadable(findings, "data/")):
        notes.append(f"statistics not fixed: the rows are in doubt: {damage}")
    elif statistics and (dataset := read_metadata(path, Findings())):
        _repair_statistics(dataset, statistics, changes, notes)
    return changes, notes


def _repair_statistics(
    dataset: LeRobotMeta, findings: Sequence[Finding], changes: list[Change], notes: list[str]
) -> None:
    check = LeRobotCheck(dataset, statistics=find_episode_statistics(dataset, Findings()))
    everything = {n for n, feature in dataset.features.items() if feature["dtype"] in (*NUMERIC, *PICTURES)}
    of_whole = [finding for finding in findings if finding.file != EPISODE_STATS_V2]
    # Only twenty of a kind are listed; where there are more, or the file is missing, all features are computed.
    named = {finding.where.partition(",")[0] for finding in of_whole}
    if of_whole:
        repair_statistics(check, everything if named - everything else named, changes, notes)
    if dataset.version == "v2.1" and len(of_whole) < len(findings):
        repair_episode_statistics(check, changes)


def _first(findings: Sequence[Finding], codes: Sequence[str]) -> Finding | None:
    return next((finding for finding in findings if finding.code in codes), None)


def _unreadable(findings: Sequence[Finding], folder: str, but: Sequence[str] = ()) -> Finding | None:
    lost = (finding for finding in findings if finding.code in ("unreadable-file", "missing-file"))
    return next((finding for finding in lost if finding.file.startswith(folder) and finding.file not in but), None)
