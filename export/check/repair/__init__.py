"""`check --fix`: repairs that follow from the rest of the dataset. Videos, actions and states are never touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.check.findings import Finding, Findings
from export.check.lerobot.columns import NUMERIC
from export.check.lerobot.episodes import LeRobotEntry
from export.check.lerobot.read import EPISODE_STATISTICS, read_lerobot
from export.check.lerobot.statistics import STATS
from export.check.repair.columns import repair_columns
from export.check.repair.files import Change
from export.check.repair.info import repair_info
from export.check.repair.statistics import repair_episode_statistics, repair_statistics

__all__ = ["Change", "repair"]

# What repairs are counted from must be whole itself, or a right figure would be replaced by a wrong one.
EPISODES_IN_DOUBT = ("episode-entry", "episode-duplicate", "episode-gap", "no-episodes", "task-entry", "task-duplicate")
ROWS_IN_DOUBT = ("row-count", "not-finite", "vector-length", "episode-length")


def repair(path: Path, findings: Sequence[Finding]) -> tuple[list[Change], list[str]]:
    """Repair what a check found and `--fix` can do.

    Args:
        path: The dataset's folder.
        findings: Of a check of it.

    Returns:
        What was changed, and a sentence for each repair that was not safe.
    """
    changes: list[Change] = []
    fixable = [finding for finding in findings if finding.fixable]
    if not fixable:
        return [], []
    doubt = _first(findings, EPISODES_IN_DOUBT) or _unreadable(findings, "meta/", but=(STATS, EPISODE_STATISTICS))
    if doubt is not None:
        return [], [f"not fixed: what repairs are counted from is damaged itself: {doubt}"]
    notes: list[str] = []
    dataset = read_lerobot(path, Findings())
    added = repair_columns(dataset, changes, notes) if _of(fixable, "missing-column") else {}
    repair_info(dataset, added, changes)
    statistics = [finding for finding in fixable if finding.code.startswith(("statistics-", "groot-"))]
    if statistics:
        doubt = _first(findings, ROWS_IN_DOUBT) or _unreadable(findings, "data/")
        if doubt is not None:
            return changes, [*notes, f"statistics not fixed: the rows are in doubt: {doubt}"]
        _repair_statistics(read_lerobot(path, Findings()), statistics, changes, notes)
    return changes, notes


def _repair_statistics(
    dataset: LeRobotEntry, findings: Sequence[Finding], changes: list[Change], notes: list[str]
) -> None:
    every = {n for n, feature in dataset.features.items() if feature["dtype"] in (*NUMERIC, "video", "image")}
    of_whole = [finding for finding in findings if finding.file != EPISODE_STATISTICS]
    # Only twenty of a kind are listed; where there are more, or the file is not there, all features are wanted.
    named = {finding.where.partition(",")[0] for finding in of_whole}
    wanted = every if named - every else named
    if of_whole:
        repair_statistics(dataset, wanted, changes, notes)
    if dataset.version == "v2.1" and len(of_whole) < len(findings):
        repair_episode_statistics(dataset, changes, notes)


def _first(findings: Sequence[Finding], codes: Sequence[str]) -> Finding | None:
    return next((finding for finding in findings if finding.code in codes), None)


def _unreadable(findings: Sequence[Finding], folder: str, but: Sequence[str] = ()) -> Finding | None:
    lost = (finding for finding in findings if finding.code in ("unreadable-file", "missing-file"))
    return next((finding for finding in lost if finding.file.startswith(folder) and finding.file not in but), None)


def _of(findings: Sequence[Finding], code: str) -> list[Finding]:
    return [finding for finding in findings if finding.code == code]
