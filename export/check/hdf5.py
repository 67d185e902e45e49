"""robomimic HDF5: every demo's arrays against its number of samples, its ranges, and the masks.

Axes: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from export.check.findings import Findings

MAX_DEPTH = 8  # hard links may lead round in a circle

# What h5py raises for damaged bytes, broken links and filters that fail.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def check_hdf5(path: Path, findings: Findings) -> None:
    """Check a robomimic file; nothing that it links to outside itself is opened."""
    name = path.name
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        findings.error("unreadable", name, "", str(error), "an HDF5 file", "no trainer can open the dataset")
        return
    with file:
        _check_links(name, file, findings)
        data = _group(file, "data")
        if data is None:
            findings.error(
                "unreadable", name, "", f"groups {list(file)[:10]}", "the group data", "this is not robomimic HDF5"
            )
            return
        _check_env_args(name, data, findings)
        demos = [key for key in data if _group(data, key) is not None]
        if not demos:
            findings.error("row count", name, "data", "no demo", "demo_0, demo_1 ...", "there is nothing to train on")
        num_samples, action_dims = {}, {}
        for key in demos:
            if not re.fullmatch(r"demo_\d+", key):
                findings.error(
                    "demo name", name, key, key, "demo_<number>", "robomimic sorts demos by the number and fails"
                )
            try:
                num_samples[key], action_dims[key] = _check_demo(name, key, _group(data, key), findings)
            except DAMAGE as error:
                findings.error(
                    "unreadable", name, key, f"{type(error).__name__}: {error}", "readable arrays", "loading fails"
                )
        if len(set(action_dims.values()) - {None}) > 1:
            findings.error("vector length", name, "actions", sorted(set(action_dims.values())), "one length",
                           "demos cannot be put into one batch")  # fmt: skip
        total = _whole(data.attrs.get("total"))
        if len(num_samples) == len(demos) and total != sum(n or 0 for n in num_samples.values()):
            findings.error("totals", name, "data, total", total, sum(n or 0 for n in num_samples.values()),
                           "progress and sampling are counted wrongly")  # fmt: skip
        _check_masks(name, file, set(demos), findings)


def _check_env_args(name: str, data: h5py.Group, findings: Findings) -> None:
    text = data.attrs.get("env_args")
    try:
        args = json.loads(text) if isinstance(text, str | bytes) else None
    except json.JSONDecodeError:
        args = None
    wanted = {"env_name", "type", "env_kwargs"}
    if not isinstance(args, dict) or wanted - set(args):
        findings.error(
            "env_args", name, "data, env_args", text, f"JSON with {', '.join(sorted(wanted))}", "robomimic cannot start"
        )


def _check_demo(name: str, key: str, demo: h5py.Group, findings: Findings) -> tuple[int | None, int | None]:
    """Check one demo and return its num_samples and the length of its actions."""
    num_samples = _whole(demo.attrs.get("num_samples"))
    if num_samples is None:
        findings.error(
            "row count", name, key, demo.attrs.get("num_samples"), "num_samples", "robomimic cannot count the demo"
        )
    actions = _dataset(demo, "actions")
    if actions is None or actions.ndim != 2:
        findings.error("vector length", name, f"{key}/actions", "none" if actions is None else actions.shape, "(N, A)",
                       "there is nothing to learn")  # fmt: skip
    num_rows = num_samples if num_samples is not None else (None if actions is None else len(actions))
    for where, array in _arrays(demo):
        if array.ndim == 0 or (num_rows is not None and len(array) != num_rows):
            findings.error("row count", name, f"{key}/{where}", f"shape {array.shape}", f"{num_rows} rows",
                           "pictures and actions do not belong together")  # fmt: skip
            continue
        _check_values(name, key, where, array, findings)
    for where in ("rewards", "dones"):
        if _dataset(demo, where) is None:
            findings.error(
                "missing column", name, f"{key}/{where}", "none", "one number a sample", "robomimic's loader fails"
            )
    if not any(where.startswith("obs/") for where, _ in _arrays(demo)):
        findings.error(
            "missing column", name, f"{key}/obs", "none", "at least one observation", "robomimic's loader fails"
        )
    return num_samples, actions.shape[1] if actions is not None and actions.ndim == 2 else None


def _check_values(name: str, key: str, where: str, array: h5py.Dataset, findings: Findings) -> None:
    if where.startswith(("obs/", "next_obs/")) and array.ndim == 4:
        if array.dtype != np.uint8 or array.shape[-1] not in (1, 3):
            findings.error("picture", name, f"{key}/{where}", f"{array.dtype} {array.shape}", "uint8 (N, H, W, 3)",
                           "robomimic divides by 255 and swaps axes")  # fmt: skip
        for frame in range(len(array)):  # reading each chunk finds damage that the header does not show
            array[frame]
        return
    values = array[...]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        findings.error(
            "not finite", name, f"{key}/{where}, row {row}", str(values[row]), "finite numbers", "the loss becomes NaN"
        )
    elif where == "actions" and values.size and np.abs(values).max() > 1 + 1e-6:
        row = int(np.argmax(np.abs(values).max(axis=tuple(range(1, values.ndim)))))
        findings.error("action range", name, f"{key}/actions, row {row}", f"{np.abs(values[row]).max():g}",
                       "within -1 and 1", "policies that end in tanh cannot reach it")  # fmt: skip


def _check_masks(name: str, file: h5py.File, demos: set[str], findings: Findings) -> None:
    masks, sets = _group(file, "mask"), {}
    for key in masks if masks is not None else ():
        array = _dataset(masks, key)
        if array is None or array.ndim != 1 or array.dtype.kind not in "SO":
            findings.error("mask", name, f"mask/{key}", "no list of names", "byte strings", "the split cannot be used")
            continue
        names = {v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in array[...]}
        sets[key] = names
        for missing in sorted(names - demos):
            findings.error("mask", name, f"mask/{key}", missing, "the name of a demo", "the split cannot be loaded")
    both = sets.get("train", set()) & sets.get("valid", set())
    if both:
        findings.warning(
            "mask", name, "mask", f"{len(both)} demos in train and valid", "none", "validation sees training data"
        )


def _arrays(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    for key in group:
        below = _group(group, key)
        if below is not None and prefix.count("/") < MAX_DEPTH:
            yield from _arrays(below, f"{prefix}{key}/")
        elif below is None and (array := _dataset(group, key)) is not None:
            yield f"{prefix}{key}", array


def _check_links(name: str, group: h5py.Group, findings: Findings, prefix: str = "") -> None:
    for key in group:
        link, where = group.get(key, getlink=True), f"{prefix}{key}"
        if isinstance(link, h5py.ExternalLink):
            findings.error("outside path", name, where, f"{link.filename}:{link.path}", "data within the file",
                           "it reads another file")  # fmt: skip
        elif not isinstance(link, h5py.HardLink):
            findings.warning(
                "soft link", name, where, "a soft link", "the data itself", "what it points at was not checked"
            )
        elif (below := _group(group, key)) is not None:
            if where.count("/") < MAX_DEPTH:
                _check_links(name, below, findings, f"{where}/")
        elif isinstance(array := _item(group, key), h5py.Dataset) and (array.external or array.is_virtual):
            findings.error("outside path", name, where, "values stored in another file", "data within the file",
                           "it reads another file")  # fmt: skip


def _group(parent: h5py.Group, key: str) -> h5py.Group | None:
    item = _item(parent, key)
    return item if isinstance(item, h5py.Group) else None


def _dataset(parent: h5py.Group, key: str) -> h5py.Dataset | None:
    item = _item(parent, key)
    if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
        return item
    return None


def _item(parent: h5py.Group, key: str) -> object | None:
    if key not in parent or not isinstance(parent.get(key, getlink=True), h5py.HardLink):
        return None
    try:
        return parent[key]
    except DAMAGE:
        return None


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None
