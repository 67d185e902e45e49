"""`check --fix` of robomimic files: set the counts again from the actions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py

from export.check.findings import Finding
from export.check.hdf5.arrays import array_at, group_at, keys_of, whole
from export.check.hdf5.robomimic import robomimic_file
from export.check.repair.files import Change, replacing

MAX_LISTED = 5
# Demos that cannot be followed or read would be left out of `total`; rows in doubt cannot be counted.
DOUBTFUL = ("unreadable-file", "path-outside", "missing-file", "soft-link", "row-count", "missing-column",
            "manifest-differs", "manifest-damaged")  # fmt: skip


def repair_robomimic(dataset: Path, findings: Sequence[Finding]) -> tuple[list[Change], list[str]]:
    """Set `num_samples` of each demo and `total` to the number of actions; change nothing else.

    Args:
        dataset: The file, or its folder.
        findings: Those of a check.

    Returns:
        The changes, and a sentence for each repair that is not safe.
    """
    path = robomimic_file(dataset)
    if path is None or not any(finding.fixable for finding in findings):
        return [], []
    if doubt := next((finding for finding in findings if finding.code in DOUBTFUL), None):
        return [], [f"not fixed: what is counted is in doubt itself: {doubt}"]
    with h5py.File(path, "r") as file:
        data, lengths = group_at(file, "data"), {}
        assert data is not None, "the check found something in it that can be repaired"
        for key in keys_of(data):
            actions = array_at(data, f"{key}/actions")
            if actions is not None and actions.ndim:
                lengths[key] = len(actions)
        old = {key: whole(data[key].attrs.get("num_samples")) for key in lengths}
        old_total, total = whole(data.attrs.get("total")), sum(lengths.values())
    wrong = {key: length for key, length in lengths.items() if old[key] not in (None, length)}
    texts = [f"num_samples of {key} {old[key]} -> {length}" for key, length in wrong.items()]
    texts += [f"total {old_total} -> {total}"] if old_total != total else []
    changes: list[Change] = []
    if texts:
        what = ", ".join(texts[:MAX_LISTED]) + (" ..." if len(texts) > MAX_LISTED else "")
        with replacing(path.parent, changes) as new, new.file(path.name, what) as copy:
            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as file:
                for key, length in wrong.items():
                    file[f"data/{key}"].attrs["num_samples"] = length
                file["data"].attrs["total"] = total
    return changes, []
