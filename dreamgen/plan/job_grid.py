"""Scenes x seeds -> rows of jobs, in pieces: what the settings make equal for all is written down once.

Of each job only its id stays in memory, by which a plan finds what is asked for twice.
"""

from __future__ import annotations

import hashlib
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

SCENES_A_PIECE = 2**14
SCENE_SCHEMA = pa.schema(
    [("first_frame_sha256", pa.string()), ("instruction", pa.string()), ("seed", pa.int64()), ("source", pa.string())]
)


@dataclass(frozen=True)
class Conditioning:
    """A first frame with one instruction; each of its seeds becomes a job.

    Args:
        first_frame_sha256: Of what the clip begins with, at its size; None for text alone.
        instruction: Without prefix, on one line.
        seed: The first one.
        source: Where the frame came from.
    """

    first_frame_sha256: str | None
    instruction: str
    seed: int
    source: str


@dataclass(frozen=True)
class Conditionings:
    """Scenes on the disk, to be gone through once a seed.

    Args:
        file: Arrow stream, from `spool_scenes`.
    """

    file: Path

    def pieces(self) -> Iterator[pa.Table]:
        """Read them a few thousand at a time."""
        with pa.OSFile(str(self.file)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def distinct(self, column: str) -> pa.Array:
        """Return the distinct values of a column that are not null, in the order in which they come."""
        seen = pa.array([], SCENE_SCHEMA.field(column).type)
        for piece in self.pieces():
            seen = pa.concat_arrays([seen, pc.unique(piece[column])]).unique()
        return seen.drop_null()


def spool_conditionings(scenes: Iterable[Conditioning], file: Path) -> Conditionings:
    """Write scenes to a file as they come."""
    held: list[Conditioning] = []
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, SCENE_SCHEMA) as writer:

        def write() -> None:
            columns = [[getattr(scene, name) for scene in held] for name in SCENE_SCHEMA.names]
            writer.write_batch(pa.record_batch(columns, schema=SCENE_SCHEMA))
            held.clear()

        for scene in scenes:
            held.append(scene)
            if len(held) >= SCENES_A_PIECE:
                write()
        if held:
            write()
    return Conditionings(file)


@dataclass(frozen=True)
class JobGrid:
    """All jobs that the settings ask for; all scenes come with their first seed before any comes with its second.

    Args:
        scenes: First frames with instructions.
        num_seeds: Clips a scene.
        prefix: Before each instruction.
        common: The values that are equal in all jobs, by field of `Job`, from `job_values`.
    """

    scenes: Conditionings
    num_seeds: int
    prefix: str
    common: dict[str, Any]

    def ids(self) -> pa.Array:
        """Return the id of each job: `job_id` of its values, with what is equal in all written down once."""
        pieces = [self._ids_of(table) for table in self._varying()]
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.string())

    def tables(self, ids: pa.Array, keep_N: np.ndarray) -> Iterator[pa.Table]:
        """Go through the jobs that are to be kept, with all columns.

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
        for number in range(self.num_seeds):
            for table in self.scenes.pieces():
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
    """Say of each id whether it comes here for the first time; bool, one an id."""
    codes = ids.dictionary_encode().indices.to_numpy()
    is_first = np.zeros(len(codes), bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    return is_first


def _canonical_pieces(common: dict[str, Any], varying: list[str]) -> tuple[list[str], list[str]]:
    """Cut the canonical JSON of `job_id` where the varying values go: pieces around them, and their names in order."""
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
