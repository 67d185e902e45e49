"""GR00T's `modality.json`: which slice of state and action is which part of the robot."""

from __future__ import annotations

from typing import Any

from dreamgen.data.lerobot.modality import VECTORS, usable_modality
from export.spec import IMAGE_PREFIX, Camera, DatasetSpec

TASK_ANNOTATION = "human.action.task_description"
TASK_COLUMN = f"annotation.{TASK_ANNOTATION}"


def modality_json(spec: DatasetSpec) -> dict[str, dict[str, Any]]:
    """Return modality.json: the parts that the demonstrations name, else one part that is the whole vector.

    Parts that do not fit the vectors are left out; prepare has already reported them.
    """
    sizes = {VECTORS["state"]: len(spec.state_names), VECTORS["action"]: len(spec.action_names)}
    given, _ = usable_modality(spec.modality, sizes)
    parts = {
        kind: given.get(kind) or ({"whole": {"start": 0, "end": sizes[column]}} if sizes[column] else {})
        for kind, column in VECTORS.items()
    }
    names = given.get("video", {})
    return {
        **parts,
        "video": {_video_name(camera, names): {"original_key": camera.name} for camera in spec.cameras},
        "annotation": {TASK_ANNOTATION: {}},
    }


def _video_name(camera: Camera, given: dict[str, dict]) -> str:
    for name, entry in given.items():
        if entry.get("original_key", f"{IMAGE_PREFIX}{name}") == camera.source:
            return name
    return camera.short
