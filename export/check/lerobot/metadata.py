"""Checks of info.json and GR00T's modality.json against each other and against what was counted."""

from __future__ import annotations

from typing import Any

from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.modality import KINDS, VECTORS, is_slice
from dreamgen.data.lerobot.schema import (
    INFO,
    MODALITY,
    Feature,
    as_stored,
    policy_axis_names,
    split_ends,
    video_info,
)
from export.check.findings import Findings
from export.check.lerobot.statistics import PICTURES

SPARE_TOTALS = ("total_videos", "total_chunks")  # loaders do not use them; tools do


def check_totals(dataset: LeRobotMeta, findings: Findings) -> None:
    """Compare the totals and splits of info.json with the episodes, tasks and cameras."""
    for key, counted in dataset.counted_totals().items():
        if dataset.info.get(key) != counted:
            findings.add("wrong-total", INFO, key, as_stored(dataset.info.get(key)), f"{counted}, as counted",
                         severity="warning" if key in SPARE_TOTALS else None)  # fmt: skip
    splits, num_episodes = dataset.info.get("splits"), len(dataset.episodes)
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        ends = split_ends(span)
        if ends is None:
            findings.add("wrong-split", INFO, f"splits.{name}", span, '"first:last"', severity="warning")
        elif not ends[0] <= ends[1] <= num_episodes:
            findings.add("wrong-split", INFO, f"splits.{name}", span, f"within 0:{num_episodes}")


def check_features(dataset: LeRobotMeta, findings: Findings) -> None:
    """Check dtypes and shapes of info.json, and that names fit the shape and pair with `info` or `video_info`."""
    for name, feature in dataset.features.items():
        where, shape = f"features.{name}", feature["shape"]
        if feature["dtype"] == "float64":
            findings.add("float64", INFO, where, "float64", "float32")
        if name == "action" and len(shape) != 1:
            findings.add("feature", INFO, where, shape, "one dimension, as policies read a vector")
        if feature["dtype"] in PICTURES and len(shape) != 3:
            findings.add("feature", INFO, where, f"shape {shape}", "height, width and channels, also of gray pictures")
        elif feature["dtype"] in PICTURES and dataset.is_v3:
            names, allowed = feature.get("names"), policy_axis_names(feature)
            if names != allowed:
                findings.add("picture-names", INFO, where, f"names {names} for shape {shape}", allowed)
        if feature["dtype"] != "video":
            names = feature.get("names")
            # Some published datasets have groups of names.
            flat = names if isinstance(names, list) and all(isinstance(entry, str) for entry in names) else []
            if flat and len(shape) == 1 and len(flat) != shape[0]:
                findings.add("feature-names", INFO, where, f"{len(flat)} names", f"{shape[0]}")
            continue
        fps = video_info(feature).get("video.fps")
        if fps is not None and (not isinstance(fps, int | float) or abs(fps - dataset.fps) > 1e-3 * dataset.fps):
            findings.add("fps-differs", INFO, f"{where}, video.fps", as_stored(fps),
                         f"{float(dataset.fps):g}, the dataset's fps")  # fmt: skip
        if not dataset.is_v3:
            _check_axis_names(where, feature, dataset.modality is not None, findings)


def _check_axis_names(where: str, feature: Feature, is_groot: bool, findings: Findings) -> None:
    names = feature.get("names")
    names = [str(name) for name in names] if isinstance(names, list) else []
    pairs = {"channel": "video_info", "channels": "info"}
    axis = next((axis for axis in pairs if axis in names), None)
    if axis is None or not isinstance(feature.get(pairs[axis]), dict):
        present = [key for key in ("info", "video_info") if isinstance(feature.get(key), dict)]
        findings.add("names-pairing", INFO, where, f"names {names} with {' and '.join(present) or 'neither info'}",
                     "[height, width, channel] with video_info, or [height, width, channels] with info",
                     severity=None if is_groot else "warning")  # fmt: skip


def check_modality(dataset: LeRobotMeta, findings: Findings) -> None:
    """Check slices, cameras and annotations of modality.json; in v2 its absence is only a warning."""
    if dataset.modality is None:
        if not dataset.is_v3 and not (dataset.root / MODALITY).exists():
            findings.add("modality-missing", MODALITY, "", "it does not exist", "the file, where GR00T is to read it")
        return
    for kind in KINDS:
        entries = dataset.modality.get(kind, {})
        if not isinstance(entries, dict):
            findings.add("modality-entry", MODALITY, kind, entries, "an object")
            continue
        if kind == "action" and not entries:
            findings.add("modality-entry", MODALITY, kind, "no part", "the parts of the action")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                findings.add("modality-entry", MODALITY, f"{kind}.{name}", entry, "an object")
            else:
                _check_modality_entry(dataset, kind, name, entry, findings)


def _check_modality_entry(
    dataset: LeRobotMeta, kind: str, name: str, entry: dict[str, Any], findings: Findings
) -> None:
    features, where, given = dataset.features, f"{kind}.{name}", entry.get("original_key")
    if kind == "video":
        candidates = (given,) if given is not None else (name, f"observation.images.{name}")
        dtypes = {features[key]["dtype"] for key in candidates if isinstance(key, str) and key in features}
        if not dtypes & {"video", "image"}:
            findings.add("modality-entry", MODALITY, where, f"original_key {given}", "a video of info.json")
        return
    if kind == "annotation":
        column = annotation_column(name, entry)
        if column not in features:
            findings.add("annotation-column", MODALITY, where, f"column {column}", "a feature of info.json")
        return
    column = given or VECTORS[kind]
    if not isinstance(column, str) or column not in features:
        findings.add("modality-entry", MODALITY, where, f"original_key {column}", "a feature of info.json")
        return
    size = features[column]["shape"][0]
    if not is_slice(entry, size):
        findings.add("modality-slice", MODALITY, where, f"start {entry.get('start')}, end {entry.get('end')}",
                     f"0 <= start < end <= {size}, the size of {column}")  # fmt: skip


def annotation_column(name: str, entry: dict[str, Any]) -> str:
    """Return the column of an annotation."""
    given = entry.get("original_key")
    return given if isinstance(given, str) and given else f"annotation.{name}"


def annotation_columns(dataset: LeRobotMeta) -> list[str]:
    """Return the columns that GR00T reads annotations from."""
    entries = (dataset.modality or {}).get("annotation")
    return [annotation_column(name, entry) for name, entry in (entries if isinstance(entries, dict) else {}).items()
            if isinstance(entry, dict)]  # fmt: skip
