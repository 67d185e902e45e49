"""The files of a journal: JSON lines while they are written, parquet once they are full; both are read as one table.

    STAGE-gGENERATION-TIME-HOST-PID-NUMBER.jsonl        open for appending, on a local disk
    STAGE-gGENERATION-TIME-HOST-PID-NUMBER.PART.jsonl   one commit, in an object store, which cannot append
    STAGE-gGENERATION-TIME-HOST-PID-NUMBER.parquet      the same records, compacted

A file is removed only after its records are in another file. Until then a record exists twice, which is harmless: the
latest record of a clip counts. Which one is the latest does not follow from clocks, which may be wrong: a journal that
is opened later has a higher generation, and within a journal records stay in order.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from dreamgen.errors import UserError
from dreamgen.run.process_identity import is_alive, machine_name
from dreamgen.run.records import METRICS_KEY
from dreamgen.run.store import Store

GENERATION = "generation"
IN_NAME = re.compile(r"[a-z]+-g(?P<generation>[0-9]{1,15})-")
NAME = re.compile(
    r"(?P<stage>[a-z]+)-(g[0-9]+-)?(?P<time>[0-9T]+)-(?P<host>.+)-(?P<pid>[0-9]+)-[0-9]{4,}(\.[0-9]+)?\.jsonl"
)
TEXTS = ("clip_id", "stage", "status", "reason", "error", "traceback", "file", METRICS_KEY, "worker")
COLUMNS = (*TEXTS, "num_bytes", "attempt", "time_s", GENERATION)
NUM_READS = 50
MERGE_FROM = 8  # closed files; fewer are read as fast one by one
MERGED_BYTES = 64 * 2**20  # a parquet file of this size is left as it is: about a million records
ABANDONED_AFTER_S = 24 * 3600.0


def read_files(folder: Store, stage: str, columns: Sequence[str]) -> Any:
    """Read the named columns of all records of a stage, in the order of the file names and of the lines in a file.

    Args:
        folder: `journal/` of the run; it may not exist yet.
        stage: Prefix of the file names.
        columns: Of `COLUMNS`; the metrics are JSON.

    Returns:
        pyarrow.Table.

    Raises:
        UserError: if other processes replace files at every attempt to read them.
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
        # Files were compacted meanwhile. A listing of a folder that changes may omit both the old and the new file.
    raise UserError(f"{folder} changes faster than it can be read", next_step="try again")


def schema(columns: Iterable[str] = COLUMNS) -> Any:
    """Return the pyarrow schema of the named columns."""
    import pyarrow as pa

    kinds = {"num_bytes": pa.int64(), "attempt": pa.int32(), "time_s": pa.float64(), GENERATION: pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])


def table_of_lines(lines: Iterable[str | bytes], columns: Sequence[str] = COLUMNS, generation: int = 0) -> Any:
    """Convert JSON lines of one generation to a table.

    A line cut short by a kill is skipped, so its clip counts as not done.
    """
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
            elif name == GENERATION:
                column.append(generation)
            else:
                column.append(record.get(name, 1 if name == "attempt" else None))
    return pa.table(values, schema=schema(columns))


def latest(table: Any) -> Any:
    """Keep the last record of each clip: that of the highest generation, and the last one within it.

    Files that were written before there were generations count as generation 0, in which `time_s` decides.
    """
    import numpy as np

    if len(table) == 0:
        return table
    codes = table["clip_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    generation, time_s = table[GENERATION].to_numpy(), table["time_s"].to_numpy()
    order = np.lexsort((np.arange(len(codes)), np.where(generation == 0, time_s, 0.0), generation, codes))
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
    """Merge the closed files of a stage into one parquet file if there are many.

    Files of running processes are left alone. Several processes may compact at the same time.
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
        return  # another process is compacting
    if tables:
        import pyarrow as pa

        generation = max(map(generation_of, names))
        write_compacted(folder, f"{file_stem(stage, generation)}.parquet", latest(pa.concat_tables(tables)))
    for name in names:
        folder.remove(name)


def file_stem(stage: str, generation: int) -> str:
    """Return a new prefix for this process's file names, as the module describes them."""
    now = f"{time.strftime('%Y%m%dT%H%M%S')}{time.time_ns() % 10**9:09d}"
    return f"{stage}-g{generation:06d}-{now}-{machine_name()}-{os.getpid()}"


def generation_of(name: str) -> int:
    """Return the highest generation of the records in a file; 0 for names without one."""
    match = IN_NAME.match(name)
    return int(match["generation"]) if match else 0


def next_generation(folder: Store, stage: str) -> int:
    """Return the generation of a journal that is opened now."""
    return 1 + max(map(generation_of, _names(folder, stage)), default=0)


def is_closed(name: str) -> bool:
    """Return whether a JSON lines file has no writer: its process ended, or it began a day ago on another machine."""
    match = NAME.fullmatch(name)
    if match is None:
        return False
    if match["host"] == machine_name():
        return not is_alive(int(match["pid"]))
    try:
        begun_s = time.mktime(time.strptime(match["time"][:15], "%Y%m%dT%H%M%S"))
    except ValueError:
        return False
    return time.time() - begun_s > ABANDONED_AFTER_S


def _names(folder: Store, stage: str) -> list[str]:
    return sorted(name for name in folder.sizes() if name.startswith(f"{stage}-"))


def _read(folder: Store, name: str, columns: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name.endswith(".parquet"):
        with folder.open(name) as stream:
            table = pq.ParquetFile(stream).read(columns=list(columns))  # of those that it has
        if GENERATION in columns and GENERATION not in table.column_names:
            table = table.append_column(GENERATION, pa.repeat(pa.scalar(0, pa.int64()), len(table)))
        return table.select(list(columns)).cast(schema(columns))
    if not name.endswith(".jsonl"):
        return None
    data, generation = folder.read(name), generation_of(name)
    if METRICS_KEY not in columns and (table := _read_fast(data, columns, generation)) is not None:
        return table
    return table_of_lines(data.split(b"\n"), columns, generation)  # not splitlines: records contain U+2028 unescaped


def _read_fast(data: bytes, columns: Sequence[str], generation: int) -> Any:
    """Read JSON lines with pyarrow, ten times as fast; None if a line is incomplete or there are no lines."""
    import pyarrow as pa
    import pyarrow.json

    plain = schema(name for name in columns if name not in ("num_bytes", GENERATION))
    wanted = plain.append(pa.field(METRICS_KEY, pa.struct([("num_bytes", pa.int64())])))
    options = pyarrow.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=options)
    except pa.ArrowException:
        return None
    num_bytes = pa.chunked_array([chunk.field("num_bytes") for chunk in table[METRICS_KEY].chunks], pa.int64())
    own = {"num_bytes": num_bytes, GENERATION: pa.repeat(pa.scalar(generation, pa.int64()), len(table))}
    values = {name: own[name] if name in own else table[name] for name in columns}
    if "attempt" in values:
        values["attempt"] = values["attempt"].fill_null(1)
    return pa.table(values, schema=schema(columns))
