"""What info.json says of the whole: totals, features, statistics, and files that nobody names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import numpy as np

from export.check.findings import Findings
from export.check.lerobot import INFO
from export.check.metadata import LeRobotEntry, read_json_lines, read_json_object, whole_number
from export.check.rows import NUMERIC, RowSummary
from export.check.videos import video_info

GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
ALWAYS_ALLOWED = ("README*", "LICENSE*", ".git*", ".cache/*", "meta/info.json", "meta/stats.json", "meta/modality.json",
                  "meta/tasks.*", "meta/episodes*", "meta/relative_stats*", "images/*")  # fmt: skip


def check_totals(dataset: LeRobotEntry, findings: Findings) -> None:
    """Compare the totals and splits of info.json with the episodes, tasks and cameras."""
    num_episodes, num_cameras = len(dataset.episodes), len(dataset.cameras)
    totals = {
        "total_episodes": num_episodes,
        "total_frames": sum(episode.length for episode in dataset.episodes),
        "total_tasks": len(dataset.tasks),
    }
    for key, counted in totals.items():
        if dataset.info.get(key) != counted:
            findings.error("totals", INFO, key, dataset.info.get(key), f"{counted}, as counted",
                           "loaders index past the end or leave episodes out")  # fmt: skip
    if dataset.version != "v3.0":
        chunks_size = whole_number(dataset.info.get("chunks_size")) or 1000
        for key, counted in (
            ("total_videos", num_episodes * num_cameras),
            ("total_chunks", math.ceil(num_episodes / max(1, chunks_size))),
        ):
            if dataset.info.get(key) != counted:
                findings.warning("totals", INFO, key, dataset.info.get(key), f"{counted}, as counted",
                                 "tools that trust it leave files out")  # fmt: skip
    splits = dataset.info.get("splits")
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        ends = span.split(":") if isinstance(span, str) else []
        if len(ends) != 2 or not all(end.isdecimal() for end in ends):
            findings.warning("totals", INFO, f"splits.{name}", span, '"first:last"', "the split cannot be used")
        elif not int(ends[0]) <= int(ends[1]) <= num_episodes:
            findings.error("totals", INFO, f"splits.{name}", span, f"within 0:{num_episodes}",
                           "the split asks for episodes that do not exist")  # fmt: skip


def check_features(dataset: LeRobotEntry, findings: Findings) -> None:
    """Look at the features of info.json: kinds of numbers, and names that pair with `info` or `video_info`."""
    groot = dataset.modality is not None
    for name, feature in dataset.features.items():
        where, names = f"features.{name}", feature.get("names")
        if feature["dtype"] == "float64":
            findings.warning("float64", INFO, where, "float64", "float32",
                             "batches mix float64 with a float32 model, and take twice the memory")  # fmt: skip
        if name == "action" and len(feature["shape"]) != 1:
            findings.error("features", INFO, where, feature["shape"], "one dimension", "policies read a vector")
        if feature["dtype"] != "video":
            flat = names if isinstance(names, list) else []
            if flat and len(feature["shape"]) == 1 and len(flat) != feature["shape"][0] and not _grouped(flat):
                findings.warning(
                    "features", INFO, where, f"{len(flat)} names", f"{feature['shape'][0]}", "names are mistaken"
                )
            continue
        told = video_info(feature).get("video.fps")
        if told is not None and (not isinstance(told, int | float) or abs(told - dataset.fps) > 1e-3 * dataset.fps):
            findings.error("fps", INFO, f"{where}, video.fps", told, f"{dataset.fps:g}, the dataset's fps",
                           "pictures and actions run apart")  # fmt: skip
        if dataset.version != "v3.0":
            _check_pairing(where, feature, findings.error if groot else findings.warning)


def _check_pairing(where: str, feature: dict[str, Any], note: Any) -> None:
    names = feature.get("names")
    names = [str(name) for name in names] if isinstance(names, list) else []
    pairs = {"channel": "video_info", "channels": "info"}
    axis = next((axis for axis in pairs if axis in names), None)
    if axis is None or not isinstance(feature.get(pairs[axis]), dict):
        has = [key for key in ("info", "video_info") if isinstance(feature.get(key), dict)]
        note("names pairing", "meta/info.json", where, f"names {names} with {' and '.join(has) or 'neither info'}",
             "[height, width, channel] with video_info, or [height, width, channels] with info",
             "GR00T N1 cannot read the camera")  # fmt: skip


def check_statistics(dataset: LeRobotEntry, rows: RowSummary, findings: Findings) -> None:
    """Look at the statistics that trainers normalise with: present, finite, of the right length, and of this data."""
    for file, where, statistics in _statistics(dataset, findings):
        for name, feature in dataset.features.items():
            if feature["dtype"] not in NUMERIC or len(feature["shape"]) != 1:
                continue
            figures = statistics.get(name)
            if figures is None and name not in statistics:
                if feature["dtype"].startswith("float") and name != "timestamp":
                    findings.error("statistics", file, f"{where}{name}", "none", "figures of every float feature",
                                   "normalisation fails")  # fmt: skip
                continue
            if not isinstance(figures, dict):
                findings.error("statistics", file, f"{where}{name}", figures, "figures by name", "readers fail")
                continue
            _check_figures(dataset, file, f"{where}{name}", figures, feature["shape"][0], findings)
            if not where and name in rows.ranges:
                _check_range(file, name, figures, rows.ranges[name], findings)


def _statistics(dataset: LeRobotEntry, findings: Findings) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (file, what it is of, statistics by feature)."""
    stats, per_episode = "meta/stats.json", "meta/episodes_stats.jsonl"
    wanted = dataset.version != "v2.1" or dataset.modality is not None
    if wanted or (dataset.root / stats).exists():
        values = read_json_object(dataset.root, stats, findings, "actions cannot be normalised")
        if values is not None:
            yield stats, "", values
    if dataset.version == "v2.1":
        read = read_json_lines(dataset.root, per_episode, findings, "LeRobot 0.3 cannot open the dataset")
        lines = read or []
        found = [whole_number(line.get("episode_index")) for line in lines]
        missing = {episode.index for episode in dataset.episodes} - set(found)
        if read is not None and missing:
            findings.error("statistics", per_episode, f"episode {min(missing)}", "no line", "one line an episode",
                           "LeRobot 0.3 cannot open the dataset")  # fmt: skip
        for number, line in zip(found, lines, strict=True):
            if isinstance(line.get("stats"), dict):
                yield per_episode, f"episode {number}, ", line["stats"]


def _check_figures(
    dataset: LeRobotEntry, file: str, where: str, figures: dict[str, Any], size: int, findings: Findings
) -> None:
    groot = dataset.modality is not None and file == "meta/stats.json"
    for stat in GROOT_STATISTICS if groot else GROOT_STATISTICS[:4]:
        if stat not in figures and (not groot or where in ("action", "observation.state")):
            wanted = ", ".join(GROOT_STATISTICS if groot else GROOT_STATISTICS[:4])
            findings.error("statistics", file, where, f"no {stat}", wanted,
                           "normalisation fails")  # fmt: skip
    for stat, values in figures.items():
        flat = values if isinstance(values, list) else [values]
        numbers = [v for v in flat if isinstance(v, int | float) and math.isfinite(v)]
        if len(numbers) != len(flat):
            findings.error("statistics", file, f"{where}, {stat}", flat, "finite numbers", "actions become NaN")
        # LeRobot's count is one number whatever the vector; GR00T cuts it like the others, and fails.
        elif len(flat) != size and (stat != "count" or (groot and where in ("action", "observation.state"))):
            findings.error(
                "statistics", file, f"{where}, {stat}", f"{len(flat)} values", f"{size}", "normalisation fails"
            )


def _check_range(
    file: str, name: str, figures: dict[str, Any], found: tuple[np.ndarray, np.ndarray], findings: Findings
) -> None:
    for stat, actual_D in (("min", found[0]), ("max", found[1])):
        try:
            told_D = np.array(figures.get(stat), np.float64)
        except (TypeError, ValueError):
            continue
        slack_D = 1e-4 * (1 + np.abs(actual_D))
        if told_D.shape == actual_D.shape and (off_D := np.abs(told_D - actual_D) > slack_D).any():
            dim = int(np.argmax(off_D))
            findings.warning("statistics", file, f"{name}, {stat}[{dim}]", f"{told_D[dim]:g}",
                             f"{actual_D[dim]:g}, as in the rows",
                             "actions are scaled by the figures of other data")  # fmt: skip


def check_unnamed_files(dataset: LeRobotEntry, findings: Findings) -> None:
    """Report files that no metadata names."""
    named = {episode.data_file for episode in dataset.episodes}
    named |= {span.file for episode in dataset.episodes for span in episode.videos.values()}
    for path in sorted(dataset.root.rglob("*")):
        relative = path.relative_to(dataset.root).as_posix()
        if path.is_file() and relative not in named and not any(fnmatch(relative, known) for known in ALWAYS_ALLOWED):
            findings.warning("unnamed file", relative, "", "a file", "only files that the metadata names",
                             "it is uploaded, and tools that list folders read it")  # fmt: skip


def _grouped(names: list[Any]) -> bool:
    """Say whether names are groups of names, as some published datasets have them."""
    return any(not isinstance(name, str) for name in names)
