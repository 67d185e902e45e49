"""Files with a line of JSON for each episode, of which only the places of the lines are in RAM.

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

from dreamgen.data.lerobot.files import find_file, parse_json_line
from dreamgen.data.lerobot.findings import FindingSink
from dreamgen.data.lerobot.schema import whole_number
from dreamgen.errors import UserError

EPISODE_INDEX = re.compile(rb'"episode_index"\s*:\s*(\d+)\s*[,}]')


@dataclass(frozen=True)
class EpisodeLines:
    """Where each episode's line is.

    Args:
        path: The file; None where there is none.
        offset_N: Where each line begins, int64.
        size_N: Its bytes, int64; 0 for an episode without a line.
    """

    path: Path | None
    offset_N: np.ndarray
    size_N: np.ndarray

    @classmethod
    def none_of(cls, num_episodes: int) -> EpisodeLines:
        """Return the lines of a file that does not exist."""
        return cls(None, *np.zeros((2, num_episodes), np.int64))

    def __getitem__(self, which: slice | np.ndarray) -> EpisodeLines:
        return EpisodeLines(self.path, self.offset_N[which], self.size_N[which])

    def read(self) -> Iterator[bytes]:
        """Yield each episode's line as it is, empty where there is none."""
        if self.path is None:
            yield from (b"" for _ in self.size_N)
            return
        with self.path.open("rb") as stream:
            for offset, size in zip(self.offset_N.tolist(), self.size_N.tolist(), strict=True):
                stream.seek(offset)
                yield stream.read(size)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each episode's object, empty where it has no line.

        Raises:
            UserError: naming a line that is no object.
        """
        for line in self.read():
            try:
                row = json.loads(line) if line else {}
            except ValueError as error:
                raise UserError(
                    f"{self.path}: a line is not JSON", actual=f"{line[:40]!r}: {error}", allowed="an object a line",
                    next_step="dreamgen check names the line",
                ) from None  # fmt: skip
            if not isinstance(row, dict):
                raise UserError(f"{self.path}: a line is not an object", actual=repr(line[:80]))
            yield row


def find_lines(root: Path, relative: str, index_N: np.ndarray, findings: FindingSink) -> EpisodeLines:
    """Find each episode's line.

    Args:
        root: The dataset.
        relative: The file, relative to it.
        index_N: Numbers of the episodes, ascending.
        findings: Receives lines of no episode and, where there is no such file, missing-file.
    """
    path = find_file(root, relative, "the layout", findings)
    if path is None:
        return EpisodeLines.none_of(len(index_N))
    places_2N, offset = np.zeros((2, len(index_N)), np.int64), 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            # Lines of statistics are long, and the number nearly always is at their head.
            match = EPISODE_INDEX.search(line[:64])
            row = {"episode_index": int(match[1])} if match else parse_json_line(
                line, relative, f"line {number}", findings
            )  # fmt: skip
            if row is not None:
                index = whole_number(row.get("episode_index"))
                place = int(np.searchsorted(index_N, index)) if index is not None and 0 <= index < 2**62 else -1
                if 0 <= place < len(index_N) and index_N[place] == index:
                    places_2N[:, place] = offset, len(line)
                else:
                    findings.add("episode-entry", relative, f"line {number}", f"episode_index {index}",
                                 "an episode of episodes.jsonl", fatal=index is None)  # fmt: skip
            offset += len(line)
    return EpisodeLines(path, *places_2N)
