"""Counts of a robomimic file, set again from its actions."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py

from export.check.hdf5.arrays import array_at, group_at, whole
from export.check.repair.files import Change, replaced


def repair_robomimic(path: Path, changes: list[Change]) -> None:
    """Set `num_samples` of each demo and `total` from the actions that are there; nothing else is touched."""
    with h5py.File(path, "r") as file:
        lengths = {key: len(actions) for key in file["data"] if group_at(file["data"], key) is not None
                   and (actions := array_at(file["data"], f"{key}/actions")) is not None and actions.ndim}  # fmt: skip
        told = {key: whole(file["data"][key].attrs.get("num_samples")) for key in lengths}
        total = whole(file["data"].attrs.get("total"))
    wrong = {key: length for key, length in lengths.items() if told[key] not in (None, length)}
    said = [f"num_samples of {key} {told[key]} -> {length}" for key, length in wrong.items()]
    counted = sum(lengths.values())
    said += [f"total {total} -> {counted}"] if total != counted else []
    if not said:
        return
    with replaced(path.parent, path.name, ", ".join(said[:5]) + (" ..." if len(said) > 5 else ""), changes) as copy:
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            for key, length in wrong.items():
                file["data"][key].attrs["num_samples"] = length
            file["data"].attrs["total"] = counted
