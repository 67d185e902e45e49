"""What info.json says of the whole: totals, features, and files that nobody names."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from export.check.files import whole_number
from export.check.findings import Findings
from export.check.lerobot.episodes import INFO, NO_FILE, LeRobotEntry
from export.check.lerobot.videos import video_info

BACKUP = ".before-fix"
ALWAYS_ALLOWED = ("README*", "LICENSE*", ".git*", ".cache/*", "meta/info.json", "meta/stats.json", "meta/modality.json",
                  "meta/tasks.*", "meta/episodes*", "meta/relative_stats*", "images/*", f"*{BACKUP}*")  # fmt: skip


def counted_totals(dataset: LeRobotEntry) -> dict[str, int]:
    """Return the totals that info.json should hold."""
    num_episodes = len(dataset.episodes)
    totals = {
        "total_episodes": num_episodes,
        "total_frames": int(dataset.episodes.length_N.sum()),
        "total_tasks": len(dataset.tasks),
    }
    if dataset.is_v3:
        return totals
    chunks_size = max(1, whole_number(dataset.info.get("chunks_size")) or 1000)
    of_files = {
        "total_videos": num_episodes * len(dataset.cameras),
        "total_chunks": math.ceil(num_episodes / chunks_size),
    }
    return totals | of_files


def check_totals(dataset: LeRobotEntry, findings: Findings) -> None:
    """Compare the totals and splits of info.json with the episodes, tasks and cameras."""
    for key, counted in counted_totals(dataset).items():
        if dataset.info.get(key) != counted:
            mild = key in ("total_videos", "total_chunks")  # loaders do not use them; tools do
            findings.add("wrong-total", INFO, key, dataset.info.get(key), f"{counted}, as counted",
                         severity="warning" if mild else None)  # fmt: skip
    splits, num_episodes = dataset.info.get("splits"), len(dataset.episodes)
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        ends = span.split(":") if isinstance(span, str) else []
        if len(ends) != 2 or not all(end.isdecimal() for end in ends):
            findings.add("wrong-split", INFO, f"splits.{name}", span, '"first:last"', severity="warning")
        elif not int(ends[0]) <= int(ends[1]) <= num_episodes:
            findings.add("wrong-split", INFO, f"splits.{name}", span, f"within 0:{num_episodes}")


def check_features(dataset: LeRobotEntry, findings: Findings) -> None:
    """Look at the features of info.json: kinds of numbers, and names that pair with `info` or `video_info`."""
    groot = dataset.modality is not None
    for name, feature in dataset.features.items():
        where, names = f"features.{name}", feature.get("names")
        if feature["dtype"] == "float64":
            findings.add("float64", INFO, where, "float64", "float32")
        if name == "action" and len(feature["shape"]) != 1:
            findings.add("feature", INFO, where, feature["shape"], "one dimension, as policies read a vector")
        if feature["dtype"] != "video":
            flat = names if isinstance(names, list) else []
            if flat and len(feature["shape"]) == 1 and len(flat) != feature["shape"][0] and not _grouped(flat):
                findings.add("feature-names", INFO, where, f"{len(flat)} names", f"{feature['shape'][0]}")
            continue
        told = video_info(feature).get("video.fps")
        if told is not None and (not isinstance(told, int | float) or abs(told - dataset.fps) > 1e-3 * dataset.fps):
            findings.add("fps-differs", INFO, f"{where}, video.fps", told, f"{dataset.fps:g}, the dataset's fps")
        if not dataset.is_v3:
            _check_pairing(where, feature, groot, findings)


def _check_pairing(where: str, feature: dict[str, Any], groot: bool, findings: Findings) -> None:
    names = feature.get("names")
    names = [str(name) for name in names] if isinstance(names, list) else []
    pairs = {"channel": "video_info", "channels": "info"}
    axis = next((axis for axis in pairs if axis in names), None)
    if axis is None or not isinstance(feature.get(pairs[axis]), dict):
        has = [key for key in ("info", "video_info") if isinstance(feature.get(key), dict)]
        findings.add("names-pairing", INFO, where, f"names {names} with {' and '.join(has) or 'neither info'}",
                     "[height, width, channel] with video_info, or [height, width, channels] with info",
                     severity=None if groot else "warning")  # fmt: skip


def check_unnamed_files(dataset: LeRobotEntry, findings: Findings) -> None:
    """Report files that no metadata names."""
    # Eight bytes a name instead of the name: two names in a dataset of millions do not share them.
    named = np.unique(np.fromiter(map(_short_hash, _named_files(dataset)), np.int64))
    for relative in _lying_files(dataset.root):
        short = _short_hash(relative)
        place = int(np.searchsorted(named, short))
        if place < len(named) and named[place] == short:
            continue
        if not any(fnmatch(relative, known) for known in ALWAYS_ALLOWED):
            findings.add("unnamed-file", relative, "", "a file", "only files that the metadata names")


def _named_files(dataset: LeRobotEntry) -> Iterator[str]:
    seen = None
    for position in range(len(dataset.episodes)):
        place = dataset.data_file(position)
        if place != seen:  # in v3.0 many episodes in a row share a file
            seen = place
            yield place
    for camera in dataset.cameras:
        for position in range(len(dataset.episodes)):
            if not dataset.is_v3 or dataset.episodes.videos[camera].file_N[position] != NO_FILE:
                place = dataset.video_file(camera, position)
                if place != seen:
                    seen = place
                    yield place


def _lying_files(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        below = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            yield name if below == "." else f"{below}/{name}"


def _short_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), signed=True)


def _grouped(names: list[Any]) -> bool:
    """Say whether names are groups of names, as some published datasets have them."""
    return any(not isinstance(name, str) for name in names)
