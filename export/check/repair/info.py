"""Repairs of info.json: totals and splits, counted again."""

from __future__ import annotations

import json
from typing import Any

from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.schema import INFO, Feature
from export.check.repair.files import Change, replaced


def repair_info(dataset: LeRobotMeta, added: dict[str, Feature], changes: list[Change]) -> None:
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
        ends = span.split(":") if isinstance(span, str) else []
        if len(ends) == 2 and all(end.isdecimal() for end in ends):
            first, last = (min(int(end), num_episodes) for end in ends)
            fitting[name] = f"{first}:{max(first, last)}"
        else:
            fitting[name] = f"0:{num_episodes}" if len(splits) == 1 else span
    return fitting
