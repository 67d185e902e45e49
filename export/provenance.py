"""Where each episode came from: one row an episode, beside the dataset, so that no reader stumbles over it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import dreamgen
from dreamgen.run.files import atomic_file, read_json
from dreamgen.run.run_folder import RunFolder
from export.episode_store import Episodes

ROWS_AT_ONCE = 1000
KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def provenance_file(run: RunFolder, dataset: str) -> Path:
    """Return where a dataset's provenance lies."""
    return run.datasets / f"{dataset}.provenance.parquet"


def write_provenance(path: Path, episodes: Episodes, of_run: dict[str, Any]) -> None:
    """Write one row an episode, atomically.

    Columns: episode_index, clip_id, kind (dreamed or real), num_frames, what the job says, `score_NAME` for each
    figure, and those of the run. A real episode has none of the job's.

    Args:
        of_run: `run_provenance`.
    """
    schema = _schema(episodes, of_run)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for some in itertools.batched(episodes.clips(), ROWS_AT_ONCE):
            rows = []
            for index, num_frames, clip in some:
                row = {"episode_index": index, "clip_id": clip.clip_id, "kind": clip.kind, "num_frames": num_frames}
                row |= {"instruction": clip.instruction, **_columns(clip.origin), **of_run}
                rows.append({name: _cell(row.get(name), schema.field(name).type) for name in schema.names})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def run_provenance(run: RunFolder, licence: str | None = None) -> dict[str, Any]:
    """Return what all clips of a run share: error of the inverse-dynamics model, licence, version.

    `idm_held_out` is JSON: every entry of idm/config.json whose name begins with `held_out`; None without the file.
    """
    config = run.idm / "config.json"
    held_out = None
    if config.exists():
        held_out = json.dumps({k: v for k, v in read_json(config).items() if k.startswith("held_out")})
    return {"idm_held_out": held_out, "licence": licence, "dreamgen_version": dreamgen.__version__}


def _columns(origin: dict[str, Any]) -> dict[str, Any]:
    scores = {f"score_{name}": value for name, value in sorted(origin.get("scores", {}).items())}
    return {name: value for name, value in origin.items() if name != "scores"} | scores


def _schema(episodes: Episodes, of_run: dict[str, Any]) -> pa.Schema:
    """Choose the columns' types: that of all values, numbers where they differ, else text."""
    kinds: dict[str, set[type]] = {}
    scores: dict[str, set[type]] = {}
    for _, _, clip in episodes.clips():
        for name, value in _columns(clip.origin).items():
            (scores if name.startswith("score_") else kinds).setdefault(name, set()).add(type(value))
    for name, value in of_run.items():
        scores.setdefault(name, set()).add(type(value))
    scores = {n: {float if k in (bool, int) and n.startswith("score_") else k for k in s} for n, s in scores.items()}
    first = {"episode_index": pa.int64(), "clip_id": pa.string(), "kind": pa.string(), "num_frames": pa.int64(),
             "instruction": pa.string()}  # fmt: skip
    return pa.schema(first | {name: _kind(found) for name, found in (kinds | scores).items()})


def _kind(found: set[type]) -> pa.DataType:
    found = found - {type(None)}
    if found <= {int, float} and len(found) == 2:
        return pa.float64()
    return KINDS.get(next(iter(found)), pa.string()) if len(found) == 1 else pa.string()


def _cell(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if kind == pa.float64():
        return float(value)
    return value if kind != pa.string() or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
