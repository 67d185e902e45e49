"""Per-episode metadata other than places: lines of JSON on disk, of which only the offsets are in memory.

Axes: N episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.metadata import read_jsonl
from dreamgen.errors import UserError

KNOWN_FIELDS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "stats")
KNOWN_PREFIXES = ("data/", "videos/", "stats/", "meta/")
ROWS_PER_READ = 200
NO_LINE = -1


@dataclass(frozen=True)
class EpisodeLines:
    """A file with a JSON object for some of the episodes.

    Args:
        path: The file.
        offset_N: Where each episode's line begins, int64; `NO_LINE` for an episode without one.
    """

    path: Path
    offset_N: np.ndarray

    def __getitem__(self, which: slice) -> EpisodeLines:
        return EpisodeLines(self.path, self.offset_N[which])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each episode's object, empty for an episode without a line."""
        with self.path.open("rb") as stream:
            for offset in self.offset_N.tolist():
                stream.seek(max(offset, 0))
                yield {} if offset == NO_LINE else json.loads(stream.readline())


def write_lines(path: Path, num_episodes: int, rows: Iterable[tuple[int, dict[str, Any]]]) -> EpisodeLines:
    """Write objects, each with the number of its episode, as lines."""
    offset_N = np.full(num_episodes, NO_LINE, np.int64)
    with path.open("wb") as stream:
        for index, row in rows:
            if 0 <= index < num_episodes:
                offset_N[index] = stream.tell()
                stream.write(json.dumps(row).encode() + b"\n")
    return EpisodeLines(path, offset_N)


def read_extras(root: Path, version: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and other fields of each episode, such as a success flag, from the metadata of any version."""
    if version == "v3.0":
        yield from _parquet_rows(root, lambda name: name not in KNOWN_FIELDS and not name.startswith(KNOWN_PREFIXES))
        return
    for index, row in _numbered_lines(root / "meta/episodes.jsonl"):
        yield index, {n: v for n, v in row.items() if n not in KNOWN_FIELDS and not n.startswith(KNOWN_PREFIXES)}


def read_image_statistics(
    root: Path, version: str, features: Iterable[str]
) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Yield number and recorded statistics of each episode, by feature, of images and videos.

    Raises:
        UserError: naming a line of episodes_stats.jsonl that is no object with an episode_index.
    """
    features = tuple(features)
    if version == "v3.0":
        prefixes = tuple(f"stats/{feature}/" for feature in features)
        for index, row in _parquet_rows(root, lambda name: name.startswith(prefixes)):
            statistics: dict[str, dict[str, Any]] = {}
            for name, values in row.items():
                feature, _, stat = name.removeprefix("stats/").rpartition("/")
                if values is not None:
                    statistics.setdefault(feature, {})[stat] = values
            yield index, statistics
    elif (path := root / "meta/episodes_stats.jsonl").is_file():
        for index, row in _numbered_lines(path):
            stats = row.get("stats")
            if isinstance(stats, dict):
                yield index, {n: stats[n] for n in features if isinstance(stats.get(n), dict)}


def extras_schema(root: Path, extras: EpisodeLines) -> pa.Schema:
    """Return names and types of the other fields of episodes.

    Raises:
        UserError: if a field has several types.
    """
    schemas, batch = [pa.schema([])], 1000
    try:
        for start in range(0, len(extras.offset_N), batch):
            rows = list(extras[start : start + batch])
            names = dict.fromkeys(name for row in rows for name in row)
            schemas.append(pa.table({name: [row.get(name) for row in rows] for name in names}).schema)
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{root}: a field of the episodes' metadata has several types", actual=str(error),
            next_step=f"dreamgen check {root}",
        ) from None  # fmt: skip


def _numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(read_jsonl(path), start=1):
        index = row.get("episode_index")
        if not isinstance(index, int):
            raise UserError(f"{path}: object {number} has no episode_index", actual=index, allowed="a whole number")
        yield index, row


def _parquet_rows(root: Path, is_wanted: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        with pq.ParquetFile(path) as source:
            names = [name for name in source.schema_arrow.names if is_wanted(name)]
            if not names:
                continue
            for batch in source.iter_batches(ROWS_PER_READ, columns=["episode_index", *names]):
                for row in batch.to_pylist():
                    yield row.pop("episode_index"), row
