"""GR00T's `modality.json`, which names slices of state and action: which entries of one from a dataset can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamgen.data.lerobot.schema import whole_number

VECTORS = {"state": "observation.state", "action": "action"}
KINDS = (*VECTORS, "video", "annotation")


def usable_modality(modality: Any, sizes: Mapping[str, int]) -> tuple[dict[str, dict[str, dict]], list[str]]:
    """Separate the entries that can be used from those that cannot.

    Args:
        modality: Any JSON value; None where there is no modality.json.
        sizes: Vector -> its dimensions, of the vectors that an entry of state or action may be a slice of.

    Returns:
        Kind -> name -> entry, unchanged, without empty kinds; and a sentence for each entry that cannot be used.
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
        return f"has an original_key that is not a name, {str(given)[:40]}: not used"
    if kind not in VECTORS:
        return None
    column = given or VECTORS[kind]
    if column not in sizes:
        return f"is a slice of {column}, which the training set does not have: not used"
    if is_slice(entry, sizes[column]):
        return None
    return f"is {entry.get('start')}:{entry.get('end')}, but {column} has {sizes[column]} values: not used"


def is_slice(entry: Mapping[str, Any], size: int) -> bool:
    """Return True if `start` and `end` (exclusive) bound a part of a vector of this size."""
    start, end = whole_number(entry.get("start")), whole_number(entry.get("end"))
    return start is not None and end is not None and 0 <= start < end <= size
