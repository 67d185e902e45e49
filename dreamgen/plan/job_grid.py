"""Conditionings x seeds -> rows of jobs, in batches; values that are equal in all jobs are held once.

Of each job only the id stays in memory, to find duplicates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.run.jobs import job_schema
from dreamgen.run.records import NOT_IN_JOB_ID, stored_name

CONDITIONINGS_A_BATCH = 2**14
CONDITIONING_SCHEMA = pa.schema(
    [("first_frame_sha256", pa.string()), ("instruction", pa.string()), ("seed", pa.int64()), ("source", pa.string())]
)


@dataclass(frozen=True)
class Conditioning:
    """A first frame with one instruction; each of its seeds becomes a job.

    Args:
        first_frame_sha256: Hash of the conditioning frames at the clip's size; None for text alone.
        instruction: The task in words, without prefix, on one line.
        seed: The first seed.
        source: Where the frame comes from, for display.
    """

    first_frame_sha256: str | None
    instruction: str
    seed: int
    source: str


@dataclass(frozen=True)
class Conditionings:
    """Conditionings on disk, read once for each seed.

    Args:
        file: Arrow stream, from `spool_conditionings`.
    """

    file: Path

    def tables(self) -> Iterator[pa.Table]:
        """Read them a few thousand at a time."""
        with pa.OSFile(str(self.file)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def distinct(self, column: str) -> pa.Array:
        """Return the distinct values of a column without nulls, in order of first occurrence."""
        seen = pa.array([], CONDITIONING_SCHEMA.field(column).type)
        for table in self.tables():
            seen = pa.concat_arrays([seen, pc.unique(table[column])]).unique()
        return seen.drop_null()

    def first_sources(self) -> Iterator[tuple[str, str]]:
        """Yield each distinct instruction and where it was first found."""
        seen: set[str] = set()
        for table in self.tables():
            first = table.filter(pa.array(first_of_each(table["instruction"].combine_chunks())))
            for text, source in zip(first["instruction"].to_pylist(), first["source"].to_pylist(), strict=True):
                if text not in seen:
                    seen.add(text)
                    yield text, source


def spool_conditionings(conditionings: Iterable[Conditioning], file: Path) -> Conditionings:
    """Write conditionings to a file as they come."""
    names = CONDITIONING_SCHEMA.names
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, CONDITIONING_SCHEMA) as writer:
        for batch in itertools.batched(conditionings, CONDITIONINGS_A_BATCH):
            columns = [[getattr(conditioning, name) for conditioning in batch] for name in names]
            writer.write_batch(pa.record_batch(columns, schema=CONDITIONING_SCHEMA))
    return Conditionings(file)


@dataclass(frozen=True)
class JobGrid:
    """All jobs of the settings: every conditioning with its first seed, then every one with its second, and so on.

    Args:
        conditionings: First frames with instructions.
        num_seeds: Clips of each conditioning.
        prefix: Put before each instruction.
        common: Values that are equal in all jobs, by field of `Job`, from `job_values`.
    """

    conditionings: Conditionings
    num_seeds: int
    prefix: str
    common: dict[str, Any]

    def ids(self) -> pa.Array:
        """Return the id of each job, equal to `job_id` of its values."""
        ids = [self._ids_of(table) for table in self._varying()]
        return pa.concat_arrays(ids) if ids else pa.array([], pa.string())

    def tables(self, ids: pa.Array, keep_N: np.ndarray) -> Iterator[pa.Table]:
        """Yield the jobs to keep, with all columns of `jobs.parquet`.

        Args:
            ids: From `ids`.
            keep_N: bool, one a job.
        """
        begin, common = 0, self._stored_common()
        for table in self._varying():
            kept = keep_N[begin : begin + len(table)]
            table = table.append_column("clip_id", ids.slice(begin, len(table))).filter(pa.array(kept))
            begin += len(kept)
            columns = [
                table[field.name]
                if field.name in table.column_names
                else pa.repeat(pa.scalar(common[field.name], field.type), len(table))
                for field in job_schema()
            ]
            yield pa.table(columns, schema=job_schema())

    def _stored_common(self) -> dict[str, Any]:
        return {stored_name(name): value for name, value in self.common.items()}

    def _varying(self) -> Iterator[pa.Table]:
        """Yield the columns that differ between jobs."""
        for number in range(self.num_seeds):
            for table in self.conditionings.tables():
                prompts = pc.binary_join_element_wise(pa.scalar(self.prefix), table["instruction"], "")
                seeds = pc.add(table["seed"], number)
                table = table.append_column("prompt", prompts)
                yield table.set_column(table.column_names.index("seed"), "seed", seeds)

    def _ids_of(self, table: pa.Table) -> pa.Array:
        varying = [name for name in table.column_names if name not in NOT_IN_JOB_ID]
        pieces, names = _canonical_pieces(self._stored_common(), varying)
        texts = [[_json(value) for value in table[name].to_pylist()] for name in names]
        ids = []
        for values in zip(*texts, strict=True):
            text = pieces[0] + "".join(value + piece for value, piece in zip(values, pieces[1:], strict=True))
            ids.append(hashlib.sha256(text.encode("utf-8")).hexdigest()[:20])
        return pa.array(ids, pa.string())


def first_of_each(ids: pa.Array) -> np.ndarray:
    """Return for each id whether this is its first occurrence; bool, one an id."""
    codes = ids.dictionary_encode().indices.to_numpy()
    is_first = np.zeros(len(codes), bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    return is_first


def _canonical_pieces(common: dict[str, Any], varying: list[str]) -> tuple[list[str], list[str]]:
    """Split the canonical JSON of `job_id` at the varying values.

    Returns:
        The text before, between and after these values, and their names in order.
    """
    content = {name: value for name, value in common.items() if name not in NOT_IN_JOB_ID}
    pieces, names, text = [], [], "{"
    for number, name in enumerate(sorted([*content, *varying])):
        text += ("," if number else "") + _json(name) + ":"
        if name in content:
            text += _json(content[name])
        else:
            pieces.append(text)
            names.append(name)
            text = ""
    return [*pieces, text + "}"], names


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
