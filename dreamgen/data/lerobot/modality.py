"""GR00T's `modality.json`, which names slices of state and action: what can be used of one that came from data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VECTORS = {"state": "observation.state", "action": "action"}
KINDS = (*VECTORS, "video", "annotation")


def usable_modality(modality: Any, sizes: Mapping[str, int]) -> tuple[dict[str, dict[str, dict]], list[str]]:
    """Tell the entries that can be used from those that cannot.

    Args:
        modality: Whatever JSON held; None where there is no modality.
        sizes: Vector -> its dimensions, of the vectors that a part of state or action may be a slice of.

    Returns:
        Kind -> name -> entry, as they stand, without kinds that are left with none; and a sentence for each other one.
    """
    usable: dict[str, dict[str, dict]] = {}
    if not isinstance(modality, dict):
        return usable, [] if modality is None else ["modality.json is not a table: not used"]
    problems = []
    for kind in KINDS:
        entries = modality.get(kind, {})
        if not isinstance(entries, dict):
            problems.append(f"modality.json's {kind} is not a table of parts: not used")
            continue
        for name, entry in entries.items():
            problem = _problem(kind, entry, sizes)
            if problem:
                problems.append(f"modality.json's {kind} {name} {problem}")
            else:
                usable.setdefault(kind, {})[name] = entry
    return usable, problems


def _problem(kind: str, entry: Any, sizes: Mapping[str, int]) -> str | None:
    if not isinstance(entry, dict):
        return f"is {str(entry)[:40]}, not an object: not used"
    given = entry.get("original_key")
    if not isinstance(given, str | None):
        return f"has an original_key that is no name, {str(given)[:40]}: not used"
    if kind not in VECTORS:
        return None
    column = given or VECTORS[kind]
    if column not in sizes:
        return f"is a slice of {column}, which the training set does not have: not used"
    start, end = entry.get("start"), entry.get("end")
    # By type: JSON's true would be 1.
    if type(start) is int and type(end) is int and 0 <= start < end <= sizes[column]:
        return None
    return f"is {start}:{end}, but {column} has {sizes[column]} values: not used"
