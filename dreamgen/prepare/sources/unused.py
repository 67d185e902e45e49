"""What a dataset holds and prepare does not read, named so that nobody takes it for a part of the training set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.schema import INDEX_COLUMNS, is_depth
from dreamgen.data.trajectory import ACTION, STATE, read_schema
from dreamgen.errors import UserError

READ = (STATE, ACTION)


def unused_inputs(meta: LeRobotMeta, cameras: Collection[str]) -> list[str]:
    """Name the features and columns of a LeRobot dataset that are not used, with the reason.

    Args:
        meta: The dataset.
        cameras: Those that are used.
    """
    notes, vectors = [], []
    for name, feature in meta.info["features"].items():
        dtype = feature.get("dtype") if isinstance(feature, dict) else None
        if name in (*READ, *INDEX_COLUMNS, *cameras) or name.startswith("annotation."):
            continue  # read, computed anew, or a text
        if dtype in ("video", "image"):
            if isinstance(feature, dict) and is_depth(feature):
                notes.append(f"{name} is depth, which the world model does not show: not used")
            elif name in meta.episodes.existing_videos(meta.cameras):
                notes.append(f"{name} is not used: the chosen {'cameras are' if len(cameras) > 1 else 'camera is'} "
                             f"{', '.join(cameras)}")  # fmt: skip
        else:
            vectors.append(name)
    if vectors:
        notes.append(_columns_note(vectors))
    first = next(iter(meta.episodes), None)
    return notes + unused_columns(first.data_file if first else None, meta.info["features"])


def unused_columns(file: Path | None, features: Collection[str] = ()) -> list[str]:
    """Name the columns of a table that neither are read nor are `features`."""
    if file is None:
        return []
    try:
        columns = read_schema(file).names
    except UserError:
        return []  # the episode is refused, with its reason
    known = (*READ, *INDEX_COLUMNS, *features)
    others = [name for name in columns if name not in known and not name.startswith("annotation.")]
    return [_columns_note(others)] if others else []


def _columns_note(names: Sequence[str]) -> str:
    reason = f"prepare reads {STATE} and {ACTION}; join other vectors into these to keep them"
    return f"not used: {', '.join(names)}. {reason}"
