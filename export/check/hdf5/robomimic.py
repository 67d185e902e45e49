"""Check robomimic HDF5: number of samples, arrays and action range of each demo, and the masks.

Axes: N samples, A action, H height, W width, C channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from dreamgen.errors import UserError
from dreamgen.run.json_text import BadJson, parse_json
from export.check.findings import Findings
from export.check.hdf5.aloha import aloha_episodes
from export.check.hdf5.arrays import (
    DAMAGE,
    Hdf5Check,
    Shape,
    array_at,
    arrays,
    check_finite,
    check_links,
    check_pictures,
    compare_pictures,
    compare_with_majority,
    group_at,
    keys_of,
    open_hdf5,
    portions,
    single_hdf5_file,
    whole,
)
from export.workers import Workers

DEMOS_AT_ONCE = 8
MAX_NAMES = 10**7  # of a mask
NOT_PER_SAMPLE = ("initial_state/", "datagen_info/")  # written by Isaac Lab, not read by robomimic


@dataclass(frozen=True)
class Demo:
    """Contents of a demo.

    Args:
        num_samples: Length of its actions or, without them, its attribute; None if neither is readable.
        shapes: Shape of one row of its actions and observations, by path.
        thumbnails: Of its images, by path; empty with `--fast`.
    """

    num_samples: int | None
    shapes: dict[str, Shape]
    thumbnails: dict[str, np.ndarray] = field(default_factory=dict)


def robomimic_file(path: Path) -> Path | None:
    """Return a robomimic dataset's file, or None; a file that does not open counts as one."""
    return None if aloha_episodes(path) else single_hdf5_file(path)


def num_demos(path: Path) -> int | None:
    """Return the number of demos.

    Raises:
        UserError: if the file is damaged.
    """
    file = robomimic_file(path)
    try:
        with h5py.File(file, "r") as opened:
            data = group_at(opened, "data")
            return None if data is None else len(data)
    except DAMAGE as error:
        raise UserError(f"{file} is not an HDF5 file", actual=str(error)) from None


def check_robomimic(dataset: Path, fast: bool, num_workers: int | None, findings: Findings) -> None:
    """Check a robomimic file, or a folder with one; data outside the folder is not opened."""
    path = robomimic_file(dataset)
    assert path is not None, "the caller checked that robomimic_file finds it"
    file = open_hdf5(path, path.name, findings)
    if file is None:
        return
    try:
        _check_file(path, file, fast, num_workers, findings)
    except DAMAGE as error:
        findings.add("unreadable-file", path.name, "", f"{type(error).__name__}: {error}", "readable groups")


def _check_file(path: Path, file: h5py.File, fast: bool, num_workers: int | None, findings: Findings) -> None:
    with file:
        check_links(path.name, file, findings)
        data = group_at(file, "data")
        if data is None:
            findings.add("hdf5-layout", path.name, "", f"groups {list(file)[:10]}", "the group data")
            return
        _check_env_args(path.name, data, findings)
        keys = [key for key in keys_of(data) if group_at(data, key) is not None]
        unread = [key for key in keys_of(data) if group_at(data, key) is None and array_at(data, key) is None]
        if not keys:
            findings.add("no-episodes", path.name, "data", "no demo", "demo_0, demo_1 ...")
        for key in (key for key in keys if not re.fullmatch(r"demo_\d+", key)):
            findings.add("demo-name", path.name, key, key, "demo_<number>")
        total = data.attrs.get("total")
        _check_masks(path.name, file, set(keys), findings)
    # Closed before the worker processes open it: HDF5 has its own locks and caches.
    with Workers(num_workers, Hdf5Check(path, fast), "--num_workers") as processes:
        demos = _check_demos(processes, keys, findings)
    counted = sum(demo.num_samples or 0 for demo in demos.values())
    # Demos behind links that are not followed are findings of their own, and cannot be counted.
    if len(demos) == len(keys) and not unread and whole(total) != counted:
        findings.add("hdf5-total", path.name, "data, total", total, f"{counted}, as counted")
    compare_with_majority({(path.name, key): demo.shapes for key, demo in demos.items()}, ("actions",), findings)
    compare_pictures({(path.name, key): demo.thumbnails for key, demo in demos.items()}, findings)


def _check_demos(processes: Workers, keys: list[str], findings: Findings) -> dict[str, Demo]:
    demos: dict[str, Demo] = {}
    items = [keys[begin : begin + DEMOS_AT_ONCE] for begin in range(0, len(keys), DEMOS_AT_ONCE)]
    for found, of_item in processes.map(check_demos, items, "check demos", "demos"):
        findings.merge(found)
        demos |= of_item
    return demos


def check_demos(check: Hdf5Check, keys: list[str]) -> tuple[Findings, dict[str, Demo]]:
    """Check a few demos in a worker process."""
    findings, demos, name = Findings(), {}, check.path.name
    with h5py.File(check.path, "r") as file:
        data = group_at(file, "data")
        assert data is not None, "check_robomimic found it"
        for key in keys:
            try:
                if (demo := group_at(data, key)) is not None:
                    demos[key] = _check_demo(name, key, demo, check.fast, findings)
            except DAMAGE as error:
                findings.add("unreadable-file", name, key, f"{type(error).__name__}: {error}", "readable arrays")
    return findings, demos


def _check_env_args(name: str, data: h5py.Group, findings: Findings) -> None:
    text = data.attrs.get("env_args")
    try:
        args = parse_json(text) if isinstance(text, str | bytes) else None
    except BadJson:
        args = None
    wanted = {"env_name", "type", "env_kwargs"}
    if not isinstance(args, dict) or wanted - set(args):
        findings.add("hdf5-attribute", name, "data, env_args", text, f"JSON with {', '.join(sorted(wanted))}")


def _check_demo(name: str, key: str, demo: h5py.Group, fast: bool, findings: Findings) -> Demo:
    num_samples = whole(demo.attrs.get("num_samples"))
    held = dict(arrays(demo))
    actions = held.get("actions")
    num_actions = len(actions) if actions is not None and actions.ndim else None
    if num_samples is None:
        findings.add("hdf5-attribute", name, key, f"num_samples {demo.attrs.get('num_samples')}", "a whole number")
    elif num_actions not in (None, num_samples):
        findings.add("hdf5-total", name, f"{key}, num_samples", num_samples, f"{num_actions}, as it has actions")
    if actions is None:
        findings.add("missing-column", name, f"{key}/actions", "none", "(N, A)", fixable=False)
    elif actions.ndim != 2:
        findings.add("vector-length", name, f"{key}/actions", actions.shape, "(N, A)")
    num_rows = num_samples if num_actions is None else num_actions
    found = [(where, array) for where, array in held.items() if not where.startswith(NOT_PER_SAMPLE)]
    shapes: dict[str, Shape] = {}
    thumbnails: dict[str, np.ndarray] = {}
    for where, array in found:
        if array.ndim == 0 or (num_rows is not None and len(array) != num_rows):
            findings.add("row-count", name, f"{key}/{where}", f"shape {array.shape}", f"{num_rows} rows")
        elif where.startswith(("obs/", "next_obs/")) and array.ndim == 4:
            thumbnail_HWC = check_pictures(name, f"{key}/{where}", array, fast, findings)
            thumbnails |= {} if thumbnail_HWC is None else {where: thumbnail_HWC}
        elif check_finite(name, f"{key}/{where}", array, findings) and where == "actions":
            _check_range(name, f"{key}/actions", array, findings)
        if array.ndim and where.startswith(("obs/", "next_obs/", "actions")):
            shapes[where] = array.shape[1:]
    for where in ("rewards", "dones"):
        if where not in held:
            findings.add("missing-column", name, f"{key}/{where}", "none", "one number a sample", fixable=False)
    if not any(where.startswith("obs/") for where, _ in found):
        findings.add("missing-column", name, f"{key}/obs", "none", "at least one observation", fixable=False)
    return Demo(num_rows, shapes, thumbnails)


def _check_range(name: str, where: str, actions: h5py.Dataset, findings: Findings) -> None:
    for begin, values in portions(actions):
        size_N = np.abs(values).max(axis=tuple(range(1, actions.ndim)))
        if len(size_N) and size_N.max() > 1 + 1e-6:
            row = int(np.argmax(size_N))
            findings.add("action-range", name, f"{where}, row {begin + row}", f"{size_N[row]:g}", "within -1 and 1")
            return


def _check_masks(name: str, file: h5py.File, demos: set[str], findings: Findings) -> None:
    masks, sets = group_at(file, "mask"), {}
    for key in keys_of(masks) if masks is not None else ():
        array = array_at(file, f"mask/{key}")
        if array is None or array.ndim != 1 or array.dtype.kind not in "SO" or len(array) > MAX_NAMES:
            findings.add("mask", name, f"mask/{key}", "no list of names", "byte strings")
            continue
        names = {v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in array[...]}
        sets[key] = names
        for missing in sorted(names - demos):
            findings.add("mask", name, f"mask/{key}", missing, "the name of a demo")
    both = sets.get("train", set()) & sets.get("valid", set())
    if both:
        findings.add("mask-overlap", name, "mask", f"{len(both)} demos in train and valid", "none")
