"""`check --fix`: repairs that follow from the rest of the dataset. Videos, actions and states are never changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamgen.data.lerobot.metadata import LeRobotMeta, read_metadata
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, INFO, NUMERIC, STATS, Feature, split_ends
from export.check.findings import Finding, Findings
from export.check.lerobot.statistics import PICTURES, LeRobotCheck, find_episode_statistics
from export.check.repair.columns import repair_columns
from export.check.repair.files import Change, replaced
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
    _repair_info(dataset, added, changes)
    statistics = [finding for finding in fixable if finding.code.startswith(("statistics-", "groot-"))]
    if statistics and (damage := _first(findings, ROWS_DOUBTFUL) or _unreadable(findings, "data/")):
        notes.append(f"statistics not fixed: the rows are in doubt: {damage}")
    elif statistics and (dataset := read_metadata(path, Findings())):
        _repair_statistics(dataset, statistics, changes, notes)
    return changes, notes


def _repair_info(dataset: LeRobotMeta, added: dict[str, Feature], changes: list[Change]) -> None:
    """Write info.json with totals and splits as counted.

    Args:
        dataset: The metadata.
        added: Features of columns that were added.
        changes: Receives what was changed.
    """
    old, info = dataset.info, {**dataset.info, **dataset.counted_totals()}
    if "splits" in old:
        info["splits"] = _fitting_splits(old["splits"], len(dataset.episodes))
    edits = [f"{key} {old.get(key)} -> {value}" for key, value in info.items() if old.get(key) != value]
    new = {name: feature for name, feature in added.items() if name not in old["features"]}
    if new:
        edits.append(f"features + {', '.join(new)}")
        info["features"] = {**old["features"], **new}
    if edits:
        with replaced(dataset.root, INFO, ", ".join(edits), changes) as path:
            path.write_text(json.dumps(info, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _fitting_splits(splits: Any, num_episodes: int) -> Any:
    """Return splits cut to the episodes; a malformed one is replaced only where it is the only one."""
    if not isinstance(splits, dict):
        return splits
    fitting = {}
    for name, span in splits.items():
        if ends := split_ends(span):
            first, last = (min(end, num_episodes) for end in ends)
            fitting[name] = f"{first}:{max(first, last)}"
        else:
            fitting[name] = f"0:{num_episodes}" if len(splits) == 1 else span
    return fitting


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
