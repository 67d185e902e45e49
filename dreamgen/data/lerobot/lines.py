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

EPISODE_INDEX = re.compile(rb'"episode_index"\s*:\s*(\d+)\s*[,}]')


@dataclass(frozen=True)
class EpisodeLines:
    """Where each episode's line is.

    Args:
        path: The file.
        offset_N: Where each line begins, int64.
        size_N: Its bytes, int64; 0 for an episode without a line.
    """

    path: Path
    offset_N: np.ndarray
    size_N: np.ndarray

    def __getitem__(self, which: slice | np.ndarray) -> EpisodeLines:
        return EpisodeLines(self.path, self.offset_N[which], self.size_N[which])

    def read(self) -> Iterator[bytes]:
        """Yield each episode's line as it is, empty where there is none."""
        with self.path.open("rb") as stream:
            for offset, size in zip(self.offset_N.tolist(), self.size_N.tolist(), strict=True):
                stream.seek(offset)
                yield stream.read(size)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each episode's object, of a file whose lines are known to be objects; {} where there is none."""
        return (json.loads(line) if line else {} for line in self.read())


def find_lines(root: Path, relative: str, index_N: np.ndarray, findings: FindingSink) -> EpisodeLines | None:
    """Find each episode's line; None without the file.

    Args:
        root: The dataset.
        relative: The file, relative to it.
        index_N: Numbers of the episodes, ascending.
        findings: Receives lines of no episode and, where there is no such file, missing-file.
    """
    path = find_file(root, relative, "the layout", findings)
    if path is None:
        return None
    places_2N, offset = np.zeros((2, len(index_N)), np.int64), 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            # Lines of statistics are long, and the number nearly always is at their head.
            match, where = EPISODE_INDEX.search(line[:64]), f"line {number}"
            row = {"episode_index": int(match[1])} if match else parse_json_line(line, relative, where, findings)
            if row is not None:
                index = whole_number(row.get("episode_index"))
                place = int(np.searchsorted(index_N, index)) if index is not None and 0 <= index < 2**62 else -1
                if 0 <= place < len(index_N) and index_N[place] == index:
                    places_2N[:, place] = offset, len(line)
                else:
                    findings.add("episode-entry", relative, where, f"episode_index {index}",
                                 "an episode of episodes.jsonl", fatal=False)  # fmt: skip
            offset += len(line)
    return EpisodeLines(path, *places_2N)
