"""GR00T's `modality.json`: which slice of state and action is which part of the robot."""

from __future__ import annotations

from typing import Any

from dreamgen.core.errors import Problems
from export.spec import DatasetSpec

TASK_ANNOTATION = "human.action.task_description"
TASK_COLUMN = f"annotation.{TASK_ANNOTATION}"


def modality_json(spec: DatasetSpec) -> dict[str, dict[str, Any]]:
    """Return modality.json: the demonstrations' own parts where they name some, else one part that is the whole vector.

    Raises:
        UserError: if a part of the demonstrations' modality reaches beyond the vectors that are written.
    """
    source = spec.modality or {}
    problems = Problems()
    parts = {
        kind: _parts(kind, len(names), source, problems)
        for kind, names in (("state", spec.state_names), ("action", spec.action_names))
    }
    problems.raise_if_any("the demonstrations' modality does not fit the labels")
    return {
        **parts,
        "video": {_video_name(spec): {"original_key": spec.camera}},
        "annotation": {TASK_ANNOTATION: {}},
    }


def _parts(kind: str, dims: int, source: dict[str, Any], problems: Problems) -> dict[str, dict[str, Any]]:
    if dims == 0:
        return {}
    column = "observation.state" if kind == "state" else "action"
    # A part that is read from another column has no counterpart in a dreamed dataset.
    given = {
        name: part for name, part in (source.get(kind) or {}).items() if part.get("original_key", column) == column
    }
    for name, part in given.items():
        if not 0 <= part["start"] < part["end"] <= dims:
            problems.add(
                f"train/features.json: modality {kind}.{name} is no slice of {column}",
                actual=f"start {part['start']}, end {part['end']}",
                allowed=f"0 <= start < end <= {dims}",
                next_step="mend meta/modality.json of the demonstrations and prepare again",
            )
    return given or {"whole": {"start": 0, "end": dims}}


def _video_name(spec: DatasetSpec) -> str:
    for name, entry in ((spec.modality or {}).get("video") or {}).items():
        if entry.get("original_key", f"observation.images.{name}") == spec.source_camera:
            return name
    return spec.camera_short
