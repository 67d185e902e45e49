"""The files of a journal: lines of JSON while they are written, parquet once they are full; both read as one table.

    STAGE-TIME-HOST-PID-NUMBER.jsonl     written now: locally it grows; in an object store, where nothing can be
    STAGE-TIME-HOST-PID-NUMBER.PART.jsonl   appended, each commit is a part of its own
    STAGE-TIME-HOST-PID-NUMBER.parquet   the same records, compacted

A file is removed only after the records that it held stand in another one. Between the two a record is there twice,
which changes nothing: the last one of a clip counts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from dreamgen.errors import UserError
from dreamgen.run.files import is_alive
from dreamgen.run.records import METRICS_KEY
from dreamgen.run.store import Store

NAME = re.compile(r"(?P<stage>[a-z]+)-(?P<time>[0-9T]+)-(?P<host>.+)-(?P<pid>[0-9]+)-[0-9]{4,}(\.[0-9]+)?\.jsonl")
TEXTS = ("clip_id", "stage", "status", "reason", "error", "traceback", "file", METRICS_KEY, "worker")
COLUMNS = (*TEXTS, "num_bytes", "attempt", "time_s")
NUM_READS = 50
MERGE_FROM = 8  # closed files; fewer are read as fast one by one
MERGED_BYTES = 64 * 2**20  # a parquet file of this size is left as it is: about a million records
ABANDONED_AFTER_S = 24 * 3600.0


def read_files(folder: Store, stage: str, columns: Sequence[str]) -> Any:
    """Read the named columns of all of a stage's records, in the order of the files' names and within them.

    Args:
        folder: `journal/` of the run; it may not exist yet.
        stage: What the files begin with.
        columns: Of `COLUMNS`; the metrics are JSON.

    Returns:
        pyarrow.Table.
    """
    import pyarrow as pa

    names = _names(folder, stage)
    for _ in range(NUM_READS):
        try:
            tables = [table for name in names if (table := _read(folder, name, columns)) is not None]
        except FileNotFoundError:
            tables = None
        before, names = names, _names(folder, stage)
        if tables is not None and names == before:
            return pa.concat_tables(tables) if tables else schema(columns).empty_table()
        # Files were compacted meanwhile; a folder that changes while it is listed may show neither old nor new.
    raise UserError(f"{folder} changes faster than it can be read", next_step="try again")


def schema(columns: Iterable[str] = COLUMNS) -> Any:
    """Return the pyarrow schema of the named columns."""
    import pyarrow as pa

    kinds = {"num_bytes": pa.int64(), "attempt": pa.int32(), "time_s": pa.float64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])


def table_of_lines(lines: Iterable[str | bytes], columns: Sequence[str] = COLUMNS) -> Any:
    """Turn lines of JSON into a table; a line that a kill cut short is passed over: its clip counts as not done."""
    import pyarrow as pa

    values: dict[str, list[Any]] = {name: [] for name in columns}
    for line in lines:
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        metrics = record.get(METRICS_KEY) or {}
        for name, column in values.items():
            if name == METRICS_KEY:
                column.append(json.dumps(metrics, ensure_ascii=False))
            elif name == "num_bytes":
                column.append(metrics.get("num_bytes"))
            else:
                column.append(record.get(name, 1 if name == "attempt" else None))
    return pa.table(values, schema=schema(columns))


def latest(table: Any) -> Any:
    """Keep of each clip the record with the highest `time_s`, of equal ones the last."""
    import numpy as np

    if len(table) == 0:
        return table
    codes = table["clip_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((np.arange(len(codes)), table["time_s"].to_numpy(), codes))
    is_last = np.append(codes[order][1:] != codes[order][:-1], True)
    if is_last.all():
        return table
    return table.take(np.sort(order[is_last]))


def write_compacted(folder: Store, name: str, table: Any) -> None:
    """Write records as parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write(name, sink.getvalue().to_pybytes())


def compact(folder: Store, stage: str) -> None:
    """Put a stage's closed files together into one, where there are many or they are lines of JSON.

    Files that a living process writes are left alone. Several processes may do this at once.
    """
    sizes = {name: size for name, size in folder.sizes().items() if name.startswith(f"{stage}-")}
    small = [name for name, size in sizes.items() if name.endswith(".parquet") and size < MERGED_BYTES]
    closed = [name for name in sizes if is_closed(name)]
    if len(small) + len(closed) < MERGE_FROM:
        return
    names = sorted([*small, *closed])
    try:
        tables = [table for name in names if (table := _read(folder, name, COLUMNS)) is not None]
    except FileNotFoundError:
        return  # another process is at it
    if tables:
        import pyarrow as pa

        write_compacted(folder, f"{file_stem(stage)}.parquet", latest(pa.concat_tables(tables)))
    for name in names:
        folder.remove(name)


def file_stem(stage: str) -> str:
    """Return the beginning of the names of this process's files; of two made in one second the later one sorts last."""
    return f"{stage}-{time.strftime('%Y%m%dT%H%M%S')}{time.time_ns() % 10**9:09d}-{os.uname().nodename}-{os.getpid()}"


def is_closed(name: str) -> bool:
    """Say whether nobody writes a file of lines any more: its process is gone, or was begun days ago elsewhere."""
    match = NAME.fullmatch(name)
    if match is None:
        return False
    if match["host"] == os.uname().nodename:
        return not is_alive(int(match["pid"]))
    try:
        begun_s = time.mktime(time.strptime(match["time"][:15], "%Y%m%dT%H%M%S"))
    except ValueError:
        return False
    return time.time() - begun_s > ABANDONED_AFTER_S


def _names(folder: Store, stage: str) -> list[str]:
    return sorted(name for name in folder.sizes() if name.startswith(f"{stage}-"))


def _read(folder: Store, name: str, columns: Sequence[str]) -> Any:
    import pyarrow.parquet as pq

    if name.endswith(".parquet"):
        with folder.open(name) as stream:
            return pq.read_table(stream, columns=list(columns)).cast(schema(columns))
    if not name.endswith(".jsonl"):
        return None
    data = folder.read(name)
    if METRICS_KEY not in columns and (table := _read_fast(data, columns)) is not None:
        return table
    return table_of_lines(data.split(b"\n"), columns)  # records hold U+2028 as it is


def _read_fast(data: bytes, columns: Sequence[str]) -> Any:
    """Read lines of JSON ten times as fast, if all are whole; None if one is not, or there is none."""
    import pyarrow as pa
    import pyarrow.json

    plain = schema(name for name in columns if name != "num_bytes")
    wanted = plain.append(pa.field(METRICS_KEY, pa.struct([("num_bytes", pa.int64())])))
    how = pyarrow.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=how)
    except pa.ArrowException:
        return None
    numbers = pa.chunked_array([chunk.field("num_bytes") for chunk in table[METRICS_KEY].chunks], pa.int64())
    values = {name: numbers if name == "num_bytes" else table[name] for name in columns}
    if "attempt" in values:
        values["attempt"] = values["attempt"].fill_null(1)
    return pa.table(values, schema=schema(columns))
