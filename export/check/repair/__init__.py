"""`check --fix`: repairs that follow from the rest of the dataset. Videos, actions and states are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamgen.data.lerobot.metadata import LeRobotMeta, read_metadata
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, INFO, NUMERIC, STATS, Feature, split_ends
from export.check.findings import Finding, Findings
from export.check.lerobot.statistics import PICTURES, LeRobotCheck, find_episode_statistics
from export.check.repair.columns import repair_columns
from export.check.repair.files import Change, Replacements, json_text, replacing
from export.check.repair.statistics import repair_episode_statistics, repair_statistics

__all__ = ["Change", "repair"]

# What repairs are counted from must be intact itself, or a right value would be replaced by a wrong one.
EPISODES_DOUBTFUL = (
    "episode-entry", "episode-duplicate", "episode-gap", "no-episodes", "task-entry", "task-duplicate"
)  # fmt: skip
LENGTHS_DOUBTFUL = ("row-count", "episode-length")
ROWS_DOUBTFUL = (*LENGTHS_DOUBTFUL, "not-finite", "vector-length", "episode-statistics-differ", "episode-index",
                 "column-type", "path-outside")  # fmt: skip
PICTURES_DOUBTFUL = ("picture-statistics", "video-swapped", "damaged-video", "damaged-picture", "frame-count",
                     "frame-time", "video-span", "video-overlap", "picture-size")  # fmt: skip


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
    statistics = [finding for finding in fixable if finding.code.startswith(("statistics-", "groot-"))]
    doubt = _first(findings, LENGTHS_DOUBTFUL) or _changed(findings, "meta/episodes")
    if doubt and len(statistics) < len(fixable):
        notes.append(f"not fixed: the lengths of episodes are in doubt: {doubt}")
    elif len(statistics) < len(fixable):
        needs_columns = any(finding.code == "missing-column" for finding in fixable)
        with replacing(path, changes) as new_files:
            added = repair_columns(dataset, new_files, notes) if needs_columns else {}
            _repair_info(dataset, added, new_files)
    doubt = _first(findings, ROWS_DOUBTFUL) or _unreadable(findings, "data/") or _changed(findings, "data/")
    if statistics and doubt:
        notes.append(f"statistics not fixed: the rows are in doubt: {doubt}")
    elif statistics and (dataset := read_metadata(path, Findings())):
        doubt = _first(findings, PICTURES_DOUBTFUL) or _changed(findings, "videos/")
        with replacing(path, changes) as new_files:
            _repair_statistics(dataset, statistics, doubt, new_files, notes)
    return changes, notes


def _repair_info(dataset: LeRobotMeta, added: dict[str, Feature], new_files: Replacements) -> None:
    """Write info.json with totals and splits as counted.

    Args:
        dataset: The metadata.
        added: Features of columns that were added.
        new_files: Receives the new file.
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
        with new_files.file(INFO, ", ".join(edits)) as path:
            path.write_text(json_text(info, dataset.root / INFO), encoding="utf-8")


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
    dataset: LeRobotMeta, findings: Sequence[Finding], pictures_doubt: Finding | None, new_files: Replacements,
    notes: list[str],
) -> None:  # fmt: skip
    check = LeRobotCheck(dataset, statistics=find_episode_statistics(dataset, Findings()))
    kinds = NUMERIC if pictures_doubt else (*NUMERIC, *PICTURES)
    everything = {n for n, feature in dataset.features.items() if feature["dtype"] in kinds}
    if pictures_doubt:
        notes.append(f"statistics of images not fixed: the images are in doubt: {pictures_doubt}")
    of_whole = [finding for finding in findings if finding.file != EPISODE_STATS_V2]
    # Only twenty of a kind are listed; where there are more, or the file is missing, all features are computed.
    named = {finding.where.partition(",")[0] for finding in of_whole}
    if of_whole:
        repair_statistics(check, everything if named - everything else named, new_files, notes)
    if dataset.version == "v2.1" and len(of_whole) < len(findings) and not pictures_doubt:
        repair_episode_statistics(check, new_files)


def _first(findings: Sequence[Finding], codes: Sequence[str]) -> Finding | None:
    return next((finding for finding in findings if finding.code in codes), None)


def _changed(findings: Sequence[Finding], prefix: str) -> Finding | None:
    """Return the finding that a file is not the one of the manifest, if its path begins with a prefix."""
    return next((f for f in findings if f.code == "manifest-damaged" or (
        f.code == "manifest-differs" and f.file.startswith(prefix))), None)  # fmt: skip


def _unreadable(findings: Sequence[Finding], folder: str, but: Sequence[str] = ()) -> Finding | None:
    lost = (finding for finding in findings if finding.code in ("unreadable-file", "missing-file"))
    return next((finding for finding in lost if finding.file.startswith(folder) and finding.file not in but), None)
