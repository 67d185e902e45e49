"""GR00T's `modality.json` against the features of its dataset."""

from __future__ import annotations

from typing import Any

from export.check.files import whole_number
from export.check.findings import Findings
from export.check.lerobot.episodes import LeRobotEntry

MODALITY = "meta/modality.json"
DEFAULT_COLUMN = {"state": "observation.state", "action": "action"}


def check_modality(dataset: LeRobotEntry, findings: Findings) -> None:
    """Check slices, cameras and annotations of modality.json; a v2 dataset without one is only noted."""
    if dataset.modality is None:
        if not dataset.is_v3 and not (dataset.root / MODALITY).exists():
            findings.add("modality-missing", MODALITY, "", "it does not exist", "the file, where GR00T is to read it")
        return
    for kind in ("state", "action", "video", "annotation"):
        entries = dataset.modality.get(kind, {})
        if not isinstance(entries, dict):
            findings.add("modality-entry", MODALITY, kind, entries, "an object")
            continue
        if kind == "action" and not entries:
            findings.add("modality-entry", MODALITY, kind, "no part", "the parts of the action")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                findings.add("modality-entry", MODALITY, f"{kind}.{name}", entry, "an object")
            elif kind == "video":
                _check_camera(dataset, name, entry, findings)
            elif kind == "annotation":
                column = annotation_column(name, entry)
                if column not in dataset.features:
                    findings.add("annotation-column", MODALITY, f"annotation.{name}", f"column {column}",
                                 "a feature of info.json")  # fmt: skip
            else:
                _check_slice(dataset, kind, name, entry, findings)


def annotation_column(name: str, entry: dict[str, Any]) -> str:
    """Return the column of an annotation."""
    given = entry.get("original_key")
    return given if isinstance(given, str) and given else f"annotation.{name}"


def annotation_columns(dataset: LeRobotEntry) -> list[str]:
    """Return the columns that GR00T reads annotations from."""
    entries = (dataset.modality or {}).get("annotation")
    return [annotation_column(name, entry) for name, entry in (entries if isinstance(entries, dict) else {}).items()
            if isinstance(entry, dict)]  # fmt: skip


def _check_slice(dataset: LeRobotEntry, kind: str, name: str, entry: dict[str, Any], findings: Findings) -> None:
    column = entry.get("original_key") or DEFAULT_COLUMN[kind]
    feature = dataset.features.get(column) if isinstance(column, str) else None
    if feature is None:
        findings.add("modality-entry", MODALITY, f"{kind}.{name}", f"original_key {column}", "a feature of info.json")
        return
    size, start, end = feature["shape"][0], whole_number(entry.get("start")), whole_number(entry.get("end"))
    if start is None or end is None or not 0 <= start < end <= size:
        shown = f"start {entry.get('start')}, end {entry.get('end')}"
        findings.add("modality-slice", MODALITY, f"{kind}.{name}", shown,
                     f"0 <= start < end <= {size}, the size of {column}")  # fmt: skip


def _check_camera(dataset: LeRobotEntry, name: str, entry: dict[str, Any], findings: Findings) -> None:
    given = entry.get("original_key")
    candidates = (given,) if given is not None else (name, f"observation.images.{name}")
    kinds = {dataset.features[key]["dtype"] for key in candidates if isinstance(key, str) and key in dataset.features}
    if not kinds & {"video", "image"}:
        findings.add("modality-entry", MODALITY, f"video.{name}", f"original_key {given}", "a video of info.json")
