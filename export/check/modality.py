"""GR00T's `modality.json` against the features and rows of its dataset."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from export.check.findings import Findings
from export.check.metadata import LeRobotEntry, read_parquet, whole_number

MODALITY = "meta/modality.json"
NO_GROOT = "GR00T cannot read the dataset"


def check_modality(dataset: LeRobotEntry, findings: Findings) -> None:
    """Check slices, cameras and annotations of modality.json; a v2 dataset without one is only noted."""
    if dataset.modality is None:
        if dataset.version != "v3.0" and not (dataset.root / MODALITY).exists():
            findings.warning(
                "modality", MODALITY, "", "it does not exist", "the file, where GR00T is to read it", NO_GROOT
            )
        return
    for kind in ("state", "action", "video", "annotation"):
        entries = dataset.modality.get(kind, {})
        if not isinstance(entries, dict):
            findings.error("modality", MODALITY, kind, entries, "an object", NO_GROOT)
            continue
        if kind == "action" and not entries:
            findings.error(
                "modality", MODALITY, kind, "no part", "the parts of the action", "GR00T has nothing to predict"
            )
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                findings.error("modality", MODALITY, f"{kind}.{name}", entry, "an object", NO_GROOT)
            elif kind == "video":
                _check_camera(dataset, name, entry, findings)
            elif kind == "annotation":
                _check_annotation(dataset, name, entry, findings)
            else:
                _check_slice(dataset, kind, name, entry, findings)


def _check_slice(dataset: LeRobotEntry, kind: str, name: str, entry: dict[str, Any], findings: Findings) -> None:
    column = entry.get("original_key") or ("observation.state" if kind == "state" else "action")
    feature = dataset.features.get(column) if isinstance(column, str) else None
    if feature is None:
        findings.error(
            "modality", MODALITY, f"{kind}.{name}", f"original_key {column}", "a feature of info.json", NO_GROOT
        )
        return
    size, start, end = feature["shape"][0], whole_number(entry.get("start")), whole_number(entry.get("end"))
    if start is None or end is None or not 0 <= start < end <= size:
        findings.error("modality", MODALITY, f"{kind}.{name}", f"start {entry.get('start')}, end {entry.get('end')}",
                       f"0 <= start < end <= {size}, the size of {column}",
                       "GR00T reads a shorter part than it is told, or none")  # fmt: skip


def _check_camera(dataset: LeRobotEntry, name: str, entry: dict[str, Any], findings: Findings) -> None:
    given = entry.get("original_key")
    candidates = (given,) if given is not None else (name, f"observation.images.{name}")
    kinds = {dataset.features[key]["dtype"] for key in candidates if isinstance(key, str) and key in dataset.features}
    if not kinds & {"video", "image"}:
        findings.error("modality", MODALITY, f"video.{name}", f"original_key {given}", "a video of info.json", NO_GROOT)


def _check_annotation(dataset: LeRobotEntry, name: str, entry: dict[str, Any], findings: Findings) -> None:
    column = entry.get("original_key") or f"annotation.{name}"
    if not isinstance(column, str) or column not in dataset.features:
        findings.error(
            "annotation", MODALITY, f"annotation.{name}", f"column {column}", "a feature of info.json", NO_GROOT
        )
        return
    for file in dict.fromkeys(episode.data_file for episode in dataset.episodes):
        # A file that is missing or unreadable was reported when its rows were read.
        table = read_parquet(dataset.root, file, "meta/episodes", Findings())
        if table is None or column not in table.column_names:
            continue
        cells = table.column(column)
        if not pa.types.is_integer(cells.type) or cells.null_count:
            findings.error("annotation", file, column, f"{cells.type}, {cells.null_count} empty cells",
                           "one whole number a row", "GR00T takes a list for an index and fails")  # fmt: skip
            continue
        for index in sorted(set(pc.unique(cells).to_pylist()) - set(dataset.tasks)):
            findings.error("annotation", file, column, str(index), "an index of tasks.jsonl",
                           "the instruction cannot be found")  # fmt: skip
