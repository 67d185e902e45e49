"""Counts set again: totals and splits of info.json, and the numbers of samples of a robomimic file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py

from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.schema import INFO, Feature
from export.check.hdf5.arrays import array_at, group_at, whole
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


def repair_robomimic(path: Path) -> list[Change]:
    """Set `num_samples` of each demo and `total` to the number of actions, and return the changes."""
    changes: list[Change] = []
    with h5py.File(path, "r") as file:
        lengths = {key: len(actions) for key in file["data"] if group_at(file["data"], key) is not None
                   and (actions := array_at(file["data"], f"{key}/actions")) is not None and actions.ndim}  # fmt: skip
        stored = {key: whole(file["data"][key].attrs.get("num_samples")) for key in lengths}
        total = whole(file["data"].attrs.get("total"))
    wrong = {key: length for key, length in lengths.items() if stored[key] not in (None, length)}
    edits = [f"num_samples of {key} {stored[key]} -> {length}" for key, length in wrong.items()]
    counted = sum(lengths.values())
    edits += [f"total {total} -> {counted}"] if total != counted else []
    if edits:
        what = ", ".join(edits[:5]) + (" ..." if len(edits) > 5 else "")
        with replaced(path.parent, path.name, what, changes) as copy:
            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as file:
                for key, length in wrong.items():
                    file["data"][key].attrs["num_samples"] = length
                file["data"].attrs["total"] = counted
    return changes
