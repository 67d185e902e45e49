"""Check ACT's HDF5 format as ALOHA records it: one file per episode, frames as pixels or as padded JPEGs.

Axes: T frames, D joints, H height, W width, C channels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from export.check.alignment import Alignment, alignment_of, check_alignment
from export.check.findings import Findings
from export.check.hdf5.arrays import (
    DAMAGE,
    Hdf5Check,
    Shape,
    arrays,
    check_finite,
    check_jpegs,
    check_links,
    check_pictures,
    compare_pictures,
    compare_with_majority,
    group_at,
    keys_of,
    open_hdf5,
    single_hdf5_file,
)
from export.manifest import BACKUP, MANIFEST
from export.workers import Workers

EPISODE = re.compile(r"episode_(0|[1-9]\d*)\.hdf5")
ALLOWED = re.compile(
    r"(README|LICENSE|\.git).*|dataset_stats\.pkl|.*\.json|episode_\d+_.*\.(mp4|png)|.*"
    + re.escape(BACKUP)
    + ".*|"
    + re.escape(MANIFEST)
)
NEEDED = ("action", "observations/qpos", "observations/qvel")
COMMANDS = ("action", "observations/qpos")  # of a leader and a follower arm
MAX_VALUES = 2**24  # read at once
FILES_AT_ONCE = 2


@dataclass(frozen=True)
class AlohaEpisode:
    """Contents of a file.

    Args:
        file: Its name.
        length: Rows of its actions; None if they are not readable.
        shapes: Of a row of its vectors, and of the images of each camera.
        thumbnails: Of its images, by path; empty with `--fast`.
        alignment: How its actions fit its joint positions; None with `--fast`, or where they say nothing.
    """

    file: str
    length: int | None
    shapes: dict[str, Shape]
    thumbnails: dict[str, np.ndarray] = field(default_factory=dict)
    alignment: Alignment | None = None


def aloha_episodes(path: Path) -> list[Path]:
    """Return a folder's episode files in order, or a single file in ACT's layout; empty for other datasets."""
    found = [match for file in path.glob("episode_*.hdf5") if (match := EPISODE.fullmatch(file.name))]
    if found:
        return [path / match[0] for match in sorted(found, key=lambda match: int(match[1]))]
    file = single_hdf5_file(path)
    return [file] if file is not None and _has_act_layout(file) else []


def _has_act_layout(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "data" not in file and ("observations" in file or "action" in file)
    except DAMAGE:
        return False


def check_aloha(path: Path, fast: bool, num_workers: int | None, findings: Findings) -> None:
    """Check a folder of episodes, or one of its files."""
    files = aloha_episodes(path)
    root, names = files[0].parent, [file.name for file in files]
    if EPISODE.fullmatch(names[0]) and aloha_episodes(root) == files:
        numbers = {int(match[1]) for name in names if (match := EPISODE.fullmatch(name))}
        if gaps := sorted(set(range(len(names))) - numbers):
            expected = f"{len(names)} episodes from 0 without a gap"
            findings.add("episode-gap", f"episode_{gaps[0]}.hdf5", "", "it does not exist", expected)
        for other in sorted(root.iterdir()):
            if other.name not in names and not ALLOWED.fullmatch(other.name):
                findings.add("unnamed-file", other.name, "", "a file", "only episode_<number>.hdf5")
    episodes: list[AlohaEpisode] = []
    items = [names[begin : begin + FILES_AT_ONCE] for begin in range(0, len(names), FILES_AT_ONCE)]
    with Workers(num_workers, Hdf5Check(root, fast), "--num_workers") as processes:
        for found, of_item in processes.map(check_aloha_files, items, "check episodes", "episodes"):
            findings.merge(found)
            episodes += of_item
    complete = [episode for episode in episodes if episode.length is not None]
    # ACT configures joints, cameras and sizes once for all episodes.
    compare_with_majority({(episode.file, ""): episode.shapes for episode in complete}, NEEDED, findings)
    compare_pictures({(episode.file, ""): episode.thumbnails for episode in complete}, findings)
    alignments = [replace(episode.alignment, position=place) for place, episode in enumerate(complete)
                  if episode.alignment is not None]  # fmt: skip
    check_alignment(alignments, lambda place: (complete[place].file, "action"), findings)
    _check_lengths({episode.length for episode in complete if episode.length is not None}, findings)


def check_aloha_files(check: Hdf5Check, names: list[str]) -> tuple[Findings, list[AlohaEpisode]]:
    """Check a few episodes in a worker process."""
    findings, episodes = Findings(), []
    for name in names:
        file = open_hdf5(check.path / name, name, findings)
        if file is None:
            continue
        with file:
            try:
                episodes.append(_check_episode(name, file, check.fast, findings))
            except DAMAGE as error:
                findings.add("unreadable-file", name, "", f"{type(error).__name__}: {error}", "readable arrays")
    return findings, episodes


def _check_episode(name: str, file: h5py.File, fast: bool, findings: Findings) -> AlohaEpisode:
    check_links(name, file, findings)
    if not isinstance(file.attrs.get("sim"), bool | np.bool_ | int | np.integer):
        findings.add("hdf5-attribute", name, "sim", file.attrs.get("sim"), "True or False")
    if group_at(file, "observations") is None:
        findings.add("hdf5-layout", name, "", f"groups {list(file)[:10]}", "the group observations")
        return AlohaEpisode(name, None, {})
    length: int | None = None
    shapes: dict[str, Shape] = {}
    finite: set[str] = set()
    held = dict(arrays(file))  # once: to find an array takes longer than to read its few numbers
    for where in NEEDED:
        array = held.get(where)
        if array is None:
            findings.add("missing-column", name, where, "none", "(T, D)", fixable=False)
            continue
        if array.ndim != 2:
            findings.add("vector-length", name, where, array.shape, "(T, D)")
            continue
        shapes[where] = array.shape[1:]
        length = len(array) if length is None else length
        if len(array) != length:
            findings.add("row-count", name, where, f"{len(array)} rows", f"{length}, as action has")
        if check_finite(name, where, array, findings):
            finite.add(where)
            if len(array) == 0:
                findings.add("row-count", name, where, "0 rows", "at least one")
    for where, array in held.items():
        if where not in NEEDED and not where.startswith("observations/images/") and where != "compress_len":
            if array.ndim and length is not None and len(array) != length:
                findings.add("row-count", name, where, f"{len(array)} rows", f"{length}, as action has")
            check_finite(name, where, array, findings)
    sizes, thumbnails = _check_cameras(name, file, held, length, fast, findings)
    alignment = None if fast or not finite.issuperset(COMMANDS) else _alignment(*(held[where] for where in COMMANDS))
    return AlohaEpisode(name, length, shapes | sizes, thumbnails, alignment)


def _alignment(command: h5py.Dataset, position: h5py.Dataset) -> Alignment | None:
    if command.shape != position.shape or math.prod(command.shape) > MAX_VALUES:
        return None
    return alignment_of(0, command[...], position[...])


def _check_cameras(
    name: str, file: h5py.File, held: dict[str, h5py.Dataset], length: int | None, fast: bool, findings: Findings
) -> tuple[dict[str, Shape], dict[str, np.ndarray]]:
    observations = group_at(file, "observations")
    images = None if observations is None else group_at(observations, "images")
    cameras = {} if images is None else {key: held.get(f"observations/images/{key}") for key in keys_of(images)}
    compressed = bool(file.attrs.get("compress", False))
    if not cameras:
        findings.add("missing-column", name, "observations/images", "no camera", "at least one", fixable=False)
    sizes: dict[str, Shape] = {}
    thumbnails: dict[str, np.ndarray] = {}
    for camera, array in cameras.items():
        where = f"observations/images/{camera}"
        if array is None or array.ndim == 0:
            findings.add("picture-type", name, where, "no array", "uint8 (T, H, W, 3)")
            continue
        if length is not None and len(array) != length:
            findings.add("row-count", name, where, f"{len(array)} frames", f"{length}, as action has rows")
        if compressed:
            sizes[where], thumbnail_HWC = check_jpegs(name, where, array, fast, findings)
        else:
            thumbnail_HWC = check_pictures(name, where, array, fast, findings)
            sizes[where] = array.shape[1:3] if array.ndim == 4 else None
        thumbnails |= {} if thumbnail_HWC is None else {where: thumbnail_HWC}
    return sizes, thumbnails


def _check_lengths(lengths: set[int], findings: Findings) -> None:
    if len(lengths) > 1:
        found = f"{min(lengths)} to {max(lengths)} frames"
        findings.add("length-varies", "the dataset", "action", found, "one length")
