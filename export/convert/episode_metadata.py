"""Per-episode metadata other than places: lines of JSON on disk, of which only the offsets are in memory.

Axes: N episodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.files import iter_json_lines, iter_parquet_rows
from dreamgen.data.lerobot.findings import FatalFindings
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, EPISODES_V2, whole_number
from dreamgen.errors import UserError
from export.convert.source import SourceDataset

KNOWN_FIELDS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "stats")
KNOWN_PREFIXES = ("data/", "videos/", "stats/", "meta/")
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


def read_extras(dataset: SourceDataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and other fields of each episode, such as a success flag, from the metadata of any version."""

    def is_extra(name: str) -> bool:
        return name not in KNOWN_FIELDS and not name.startswith(KNOWN_PREFIXES)

    for index, row in _rows(dataset, EPISODES_V2, is_extra):
        yield index, {name: value for name, value in row.items() if is_extra(name)}


def read_image_statistics(dataset: SourceDataset) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Yield number and recorded statistics of each episode's images and videos, by feature.

    Raises:
        UserError: naming lines of episodes_stats.jsonl that are no objects with an episode_index.
    """
    prefixes = tuple(f"stats/{feature}/" for feature in dataset.images)
    for index, row in _rows(dataset, EPISODE_STATS_V2, lambda name: name.startswith(prefixes)):
        recorded = row.get("stats", {})
        for name, values in row.items():
            if name.startswith(prefixes) and values is not None:
                feature, _, stat = name.removeprefix("stats/").rpartition("/")
                recorded.setdefault(feature, {})[stat] = values
        if isinstance(recorded, dict):
            yield index, {name: recorded[name] for name in dataset.images if isinstance(recorded.get(name), dict)}


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


def _rows(
    dataset: SourceDataset, file_v2: str, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and object of each episode: wanted columns of v3.0's metadata, or lines of a file of v2."""
    root, findings = dataset.root, FatalFindings(dataset.root)
    if dataset.version == "v3.0":
        for file in dataset.episodes.sources:
            columns = [name for name in pq.read_schema(root / file).names if is_wanted(name)]
            for _, row in iter_parquet_rows(root, file, ["episode_index", *columns], findings):
                yield row.pop("episode_index"), row
    elif (root / file_v2).is_file():
        for number, row in iter_json_lines(root, file_v2, findings):
            index = whole_number(row.get("episode_index"))
            if index is None:
                findings.add("episode-entry", file_v2, f"line {number}, episode_index", index, "a whole number")
            else:
                yield index, row
    findings.raise_if_any()
