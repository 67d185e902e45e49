"""Repairs of info.json: totals and splits, counted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.check.lerobot.episodes import INFO, LeRobotEntry
from export.check.lerobot.layout import counted_totals
from export.check.repair.files import Change, replaced


def repair_info(dataset: LeRobotEntry, added: dict[str, dict[str, Any]], changes: list[Change]) -> None:
    """Write info.json with totals and splits as counted.

    Args:
        added: Features of columns that were added.
    """
    info, said = dict(dataset.info), []
    for key, counted in counted_totals(dataset).items():
        if info.get(key) != counted:
            said.append(f"{key} {info.get(key)} -> {counted}")
            info[key] = counted
    splits = _mended_splits(info.get("splits"), len(dataset.episodes))
    if splits != info.get("splits"):
        said.append(f"splits {info.get('splits')} -> {splits}")
        info["splits"] = splits
    new = {name: feature for name, feature in added.items() if name not in dataset.info["features"]}
    if new:
        said.append(f"features + {', '.join(new)}")
        info["features"] = {**dataset.info["features"], **new}
    if said:
        with replaced(dataset.root, INFO, ", ".join(said), changes) as path:
            _write_json(path, info)


def _mended_splits(splits: Any, num_episodes: int) -> Any:
    """Return splits within the episodes; one that cannot be read is mended only where it is the only one."""
    if not isinstance(splits, dict):
        return splits
    mended = {}
    for name, span in splits.items():
        ends = span.split(":") if isinstance(span, str) else []
        if len(ends) == 2 and all(end.isdecimal() for end in ends):
            first, last = (min(int(end), num_episodes) for end in ends)
            mended[name] = f"{first}:{max(first, last)}"
        else:
            mended[name] = f"0:{num_episodes}" if len(splits) == 1 else span
    return mended


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
