"""`scores/scores.parquet`: one row a clip with each metric, its threshold, the verdict and the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.extensions.judge import Judge
from dreamgen.extensions.score import SCORES
from dreamgen.run.files import atomic_file
from dreamgen.run.records import JournalRecord

ROWS_AT_ONCE = 4096


class ScoreTable:
    """Writes the table row by row; whole or absent. Use as a context.

    Args:
        path: The parquet file.
        judges: The judges whose columns it has, beside those of all scores.
    """

    def __init__(self, path: Path, judges: Mapping[str, Judge]) -> None:
        self._path, self._rows, self._open = path, [], ExitStack()
        self._schema = _schema(judges)

    def __enter__(self) -> Self:
        temporary = self._open.enter_context(atomic_file(self._path))
        self._writer = self._open.enter_context(pq.ParquetWriter(temporary, self._schema))
        return self

    def add(self, record: JournalRecord) -> None:
        """Add a clip's metrics and verdict."""
        verdict = {"verdict": record.status, "reasons": record.reason or record.error}
        self._rows.append({"clip_id": record.clip_id, **record.metrics, **verdict})
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._open.__exit__(*error)

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _schema(judges: Mapping[str, Judge]) -> pa.Schema:
    columns = {"clip_id": pa.string(), "num_frames": pa.int64(), "wanted_num_frames": pa.int64()}
    for _, score in SCORES.items():
        columns |= dict.fromkeys((score.name, score.threshold.setting), pa.float64())
    for name, judge in judges.items():
        columns[f"{name}_version"] = pa.string()
        for metric in judge.metrics:
            columns |= dict.fromkeys((metric.name, metric.threshold.setting), pa.float64())
            columns[f"{metric.name}_reason"] = pa.string()
    return pa.schema(columns | {"verdict": pa.string(), "reasons": pa.string()})
