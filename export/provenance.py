"""Provenance: one row per episode in a file beside the dataset, where it does not disturb readers of the dataset."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import dreamgen
from dreamgen.run.files import atomic_file
from export.episode_store import EpisodeStore

ROWS_PER_GROUP = 1000
EPISODE_COLUMNS = {
    "episode_index": pa.int64(),
    "clip_id": pa.string(),
    "kind": pa.string(),
    "num_frames": pa.int64(),
    "instruction": pa.string(),
}
ARROW_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def write_provenance(path: Path, episodes: EpisodeStore, shared: dict[str, Any], shorten: Callable[[str], str]) -> None:
    """Write one row per episode, atomically.

    Columns: episode_index, clip_id, kind (dreamed or real), num_frames, the fields of the clip's job, hash and maker of
    its label, `score_NAME` for each score, and those of `shared`. Those of job and label are empty for real episodes;
    those of sampling are for clips that were imported.

    Args:
        path: The parquet file.
        episodes: Episodes of the dataset.
        shared: Columns with one value for all rows, from `run_provenance`.
        shorten: From `published_paths`: the file goes where the dataset goes.
    """
    schema = _schema(episodes, shared)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in itertools.batched(episodes.clips(), ROWS_PER_GROUP):
            rows = []
            for index, num_frames, clip in group:
                row = {"episode_index": index, "clip_id": clip.clip_id, "kind": clip.kind, "num_frames": num_frames}
                row |= {"instruction": clip.instruction, **_origin_columns(clip.origin), **shared}
                cells = {name: _cell(row.get(name), schema.field(name).type) for name in schema.names}
                rows.append({name: shorten(cell) if isinstance(cell, str) else cell for name, cell in cells.items()})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def run_provenance(license_id: str | None = None) -> dict[str, Any]:
    """Return the columns with one value for all episodes: license and version."""
    return {"licence": license_id, "dreamgen_version": dreamgen.__version__}


def _origin_columns(origin: dict[str, Any]) -> dict[str, Any]:
    scores = {f"score_{name}": value for name, value in sorted(origin.get("scores", {}).items())}
    return {name: value for name, value in origin.items() if name != "scores"} | scores


def _schema(episodes: EpisodeStore, shared: dict[str, Any]) -> pa.Schema:
    """Choose each column's type: that of all its values, float for mixed numbers and for scores, else text."""
    from_job: dict[str, set[type]] = {}
    scores: dict[str, set[type]] = {}
    for _, _, clip in episodes.clips():
        for name, value in _origin_columns(clip.origin).items():
            if name.startswith("score_"):
                scores.setdefault(name, set()).add(float if isinstance(value, int) else type(value))
            else:
                from_job.setdefault(name, set()).add(type(value))
    columns = from_job | scores | {name: {type(value)} for name, value in shared.items()}
    return pa.schema(EPISODE_COLUMNS | {name: _arrow_type(types) for name, types in columns.items()})


def _arrow_type(types: set[type]) -> pa.DataType:
    types = types - {type(None)}
    if types == {int, float}:
        return pa.float64()
    return ARROW_TYPES.get(next(iter(types)), pa.string()) if len(types) == 1 else pa.string()


def _cell(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if kind == pa.float64():
        return float(value)
    return value if kind != pa.string() or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
