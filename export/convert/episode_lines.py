"""What the metadata say of each episode besides where it is: lines of JSON on disk, of which only the places are held.

Axes: N episodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.errors import UserError

KNOWN_OF_EPISODE = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "stats")
FOREIGN_PREFIXES = ("data/", "videos/", "stats/", "meta/")
EPISODE_INDEX = re.compile(rb'"episode_index"\s*:\s*(\d+)\s*[,}]')
ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class EpisodeLines:
    """A file with a line of JSON for each episode, or for some.

    Args:
        path: The file; None where there is none.
        offset_N: Where each episode's line begins, int64.
        size_N: Its bytes; 0 where it has none.
    """

    path: Path | None
    offset_N: np.ndarray
    size_N: np.ndarray

    @classmethod
    def none_of(cls, num_episodes: int) -> EpisodeLines:
        """Return the lines of a file that does not exist."""
        return cls(None, *np.zeros((2, num_episodes), np.int64))

    def __getitem__(self, which: slice) -> EpisodeLines:
        return EpisodeLines(self.path, self.offset_N[which], self.size_N[which])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each episode's object, empty where it has no line.

        Raises:
            UserError: naming an episode's line that is no object.
        """
        if self.path is None:
            yield from ({} for _ in self.size_N)
            return
        with self.path.open("rb") as stream:
            for offset, size in zip(self.offset_N.tolist(), self.size_N.tolist(), strict=True):
                stream.seek(offset)
                yield self._row(stream.read(size)) if size else {}

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{self.path}: a line is not JSON", actual=f"{line[:40]!r}: {error}", allowed="an object a line",
                next_step="dreamgen check names the line",
            ) from None  # fmt: skip
        if not isinstance(row, dict):
            raise UserError(f"{self.path}: a line is not an object", actual=repr(line[:80]))
        return row


class LineWriter:
    """Writes objects as lines, for some of the episodes. Use as a context."""

    def __init__(self, path: Path, num_episodes: int) -> None:
        self._path, self._places = path, np.zeros((2, num_episodes), np.int64)
        self._end = 0

    def __enter__(self) -> LineWriter:
        self._stream = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, place: int, row: dict[str, Any]) -> None:
        """Write an episode's object."""
        line = json.dumps(row).encode() + b"\n"
        self._stream.write(line)
        self._places[:, place] = self._end, len(line)
        self._end += len(line)

    def lines(self) -> EpisodeLines:
        """Return what was written."""
        return EpisodeLines(self._path, *self._places)


def lines_of_jsonl(path: Path, index_N: np.ndarray) -> EpisodeLines:
    """Find each episode's line in episodes.jsonl or episodes_stats.jsonl.

    Args:
        path: The file.
        index_N: Numbers of the episodes, ascending.

    Raises:
        UserError: naming a line that is no object with an episode_index.
    """
    if not path.is_file():
        return EpisodeLines.none_of(len(index_N))
    places, offset = np.zeros((2, len(index_N)), np.int64), 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                # Lines of statistics are long, and the number nearly always stands at their head.
                match = EPISODE_INDEX.search(line[:64])
                index = int(match[1]) if match else _index_of(path, number, line)
                place = int(np.searchsorted(index_N, index))
                if place < len(index_N) and index_N[place] == index:
                    places[:, place] = offset, len(line)
            offset += len(line)
    return EpisodeLines(path, *places)


def _index_of(path: Path, number: int, line: bytes) -> int:
    try:
        return int(json.loads(line)["episode_index"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} line {number} is no object with an episode_index", actual=repr(error)) from None


def lines_of_parquet(
    root: Path, index_N: np.ndarray, pictures: list[str], folder: Path
) -> tuple[EpisodeLines, EpisodeLines]:
    """Copy what v3.0's metadata say besides, and the statistics of pictures, into lines.

    Args:
        root: The dataset.
        index_N: Numbers of the episodes, ascending.
        pictures: Features whose statistics are wanted.
        folder: Where the lines go.

    Returns:
        Like episodes.jsonl and episodes_stats.jsonl, with these entries only.
    """
    with (
        LineWriter(folder / "extras.jsonl", len(index_N)) as extras,
        LineWriter(folder / "statistics.jsonl", len(index_N)) as statistics,
    ):
        for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
            source = pq.ParquetFile(path)
            names = source.schema_arrow.names
            own = [n for n in names if n not in KNOWN_OF_EPISODE and not n.startswith(FOREIGN_PREFIXES)]
            wanted = [n for n in names if any(n.startswith(f"stats/{picture}/") for picture in pictures)]
            for batch in source.iter_batches(ROWS_AT_ONCE, columns=["episode_index", *own, *wanted]):
                for row in batch.to_pylist():
                    place = int(np.searchsorted(index_N, row["episode_index"]))
                    metrics: dict[str, dict[str, Any]] = {}
                    for name in wanted:
                        feature, _, figure = name.removeprefix("stats/").rpartition("/")
                        if row[name] is not None:
                            metrics.setdefault(feature, {})[figure] = row[name]
                    if own:
                        extras.write(place, {name: row[name] for name in own})
                    statistics.write(place, {"stats": metrics})
    return extras.lines(), statistics.lines()
