"""Per-episode metadata other than places, kept as lines of JSON on disk while a dataset is converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.files import iter_json_lines, iter_parquet_rows
from dreamgen.data.lerobot.findings import FatalFindings
from dreamgen.data.lerobot.lines import EpisodeLines
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, EPISODES_V2, whole_number
from dreamgen.errors import UserError, quoted
from export.convert.source import SourceDataset

KNOWN_FIELDS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "stats")
KNOWN_PREFIXES = ("data/", "videos/", "stats/", "meta/")


def write_lines(path: Path, num_episodes: int, rows: Iterable[tuple[int, dict[str, Any]]]) -> EpisodeLines:
    """Write objects, each with the number of its episode, as lines."""
    places_2N = np.zeros((2, num_episodes), np.int64)
    with path.open("wb") as stream:
        for index, row in rows:
            line = json.dumps(row).encode() + b"\n"
            if 0 <= index < num_episodes:
                places_2N[:, index] = stream.tell(), len(line)
                stream.write(line)
    return EpisodeLines(path, *places_2N)


def read_extras(dataset: SourceDataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and other fields of each episode, such as a success flag, from the metadata of any version."""

    def is_extra(name: str) -> bool:
        return name not in KNOWN_FIELDS and not name.startswith(KNOWN_PREFIXES)

    for index, row in _rows(dataset, EPISODES_V2, is_extra):
        yield index, {name: value for name, value in row.items() if is_extra(name)}


def read_statistics(dataset: SourceDataset) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Yield number and recorded statistics of each episode, by feature.

    Raises:
        UserError: naming lines of episodes_stats.jsonl that are no objects with an episode_index.
    """
    features = (*dataset.images, *dataset.vectors)
    prefixes = tuple(f"stats/{feature}/" for feature in features)
    for index, row in _rows(dataset, EPISODE_STATS_V2, lambda name: name.startswith(prefixes)):
        recorded = row.get("stats", {})
        for name, values in row.items():
            if name.startswith(prefixes) and values is not None:
                feature, _, stat = name.removeprefix("stats/").rpartition("/")
                recorded.setdefault(feature, {})[stat] = values
        if isinstance(recorded, dict):
            yield index, {name: recorded[name] for name in features if isinstance(recorded.get(name), dict)}


def extras_schema(root: Path, extras: EpisodeLines) -> pa.Schema:
    """Return names and types of the other fields of episodes.

    Raises:
        UserError: if a field has several types.
    """
    schemas, batch = [pa.schema([])], 1000
    try:
        for start in range(0, len(extras.size_N), batch):
            rows = list(extras[start : start + batch].rows())
            names = dict.fromkeys(name for row in rows for name in row)
            schemas.append(pa.table({name: [row.get(name) for row in rows] for name in names}).schema)
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{root}: a field of the episodes' metadata has several types", actual=str(error),
            next_step=f"dreamgen check {quoted(root)}",
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
