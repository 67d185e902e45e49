"""Missing index columns, derived from the episodes; every other column is copied and compared.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.files import open_parquet
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.schema import Feature
from dreamgen.data.timeline import frame_times_s
from export.check.findings import Findings
from export.check.lerobot.files import FileGroup, table_groups
from export.check.repair.files import Replacements

DERIVED = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
HUGGINGFACE = b"huggingface"  # its copy of the schema would no longer be the file's


def repair_columns(dataset: LeRobotMeta, new_files: Replacements, notes: list[str]) -> dict[str, Feature]:
    """Add index columns to the tables that lack them.

    Returns:
        The features of columns that were added.
    """
    added: set[str] = set()
    for group in table_groups(dataset):
        for file in group.single_files(dataset.episodes):
            added |= _add_to(dataset, file, new_files, notes)
    return {name: {"dtype": DERIVED[name], "shape": [1], "names": None} for name in DERIVED if name in added}


def _add_to(dataset: LeRobotMeta, group: FileGroup, new_files: Replacements, notes: list[str]) -> set[str]:
    opened = open_parquet(dataset.root, group.file, "", Findings())
    if opened is None:
        return set()
    with opened:
        missing = [name for name in DERIVED if name not in opened.schema_arrow.names]
        if not missing:
            return set()
        episodes, positions = dataset.episodes, group.positions
        lengths_E, first_rows_E = episodes.length_N[positions], episodes.first_row_N[positions]
        begins_E = first_rows_E - group.first_row if dataset.is_v3 else np.zeros(1, np.int64)
        fits = np.array_equal(begins_E, np.r_[0, np.cumsum(lengths_E)[:-1]])
        if not fits or lengths_E.sum() != opened.metadata.num_rows:
            notes.append(
                f"not fixed: {group.file} lacks {', '.join(missing)}, and its rows are not those of its episodes"
            )
            return set()
        frames_N = np.concatenate([np.arange(length) for length in lengths_E])
        columns = {
            "timestamp": frame_times_s(int(lengths_E.max()), dataset.fps)[frames_N].astype(np.float32),
            "frame_index": frames_N,
            "episode_index": np.repeat(episodes.index_N[positions], lengths_E),
            "index": np.repeat(first_rows_E, lengths_E) + frames_N,
        }
        with new_files.file(group.file, f"columns + {', '.join(missing)}") as path:
            _write(opened, path, {name: columns[name] for name in missing})
            _compare(opened, path)
    return set(missing)


def _write(source: pq.ParquetFile, path: Path, columns: dict[str, np.ndarray]) -> None:
    schema = source.schema_arrow
    for name in columns:
        schema = schema.append(pa.field(name, DERIVED[name]))
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != HUGGINGFACE}
    schema = schema.with_metadata(metadata or None)
    first = 0
    with pq.ParquetWriter(path, schema, compression=source.metadata.row_group(0).column(0).compression) as writer:
        for table in _groups(source):
            for name, values_N in columns.items():
                table = table.append_column(name, pa.array(values_N[first : first + table.num_rows], DERIVED[name]))
            first += table.num_rows
            writer.write_table(table.cast(schema))


def _compare(source: pq.ParquetFile, path: Path) -> None:
    """Make sure that the columns of the source are unchanged."""
    with pq.ParquetFile(path) as written:
        for before, after in zip(_groups(source), _groups(written), strict=True):
            kept = after.select(before.column_names).cast(before.schema)
            if not before.equals(kept) and not _equal_bytes(before, kept):
                raise AssertionError(f"{path}: a column changed while another was added")


def _equal_bytes(one: pa.Table, other: pa.Table) -> bool:
    # NaN is not equal to itself, so columns with NaN are compared as Python prints them.
    return all(str(a.to_pylist()) == str(b.to_pylist()) for a, b in zip(one.columns, other.columns, strict=True))


def _groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    return (file.read_row_group(number) for number in range(file.metadata.num_row_groups))
