"""Which files a check reads, in portions for worker processes, and files that the metadata does not name.

Axes: N episodes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.lerobot.files import open_parquet
from dreamgen.data.lerobot.metadata import LeRobotMeta
from export.check.findings import Findings
from export.manifest import BACKUP, MANIFEST, PROVENANCE

TABLES_PER_TASK = 32  # of v2, which has one an episode
ALWAYS_ALLOWED = ("README*", "LICENSE*", ".git*", ".cache/*", "meta/info.json", "meta/stats.json",
                  "meta/modality.json", "meta/tasks.*", "meta/episodes*", "meta/relative_stats*", "images/*",
                  f"*{BACKUP}*", MANIFEST, PROVENANCE)  # fmt: skip


@dataclass(frozen=True)
class FileGroup:
    """A v3.0 file and the episodes that should lie in it, or some v2 files of one episode each.

    Args:
        positions: Of the episodes.
        file: Path of the v3.0 file; "" for a group of v2 files.
        camera: Feature of a video; "" for tables.
        first_row: v3.0 tables: number of its first row in the dataset.
        num_rows: Videos: position -> rows of an episode, where they are not its length.
    """

    positions: np.ndarray
    file: str = ""
    camera: str = ""
    first_row: int = 0
    num_rows: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return 1 if self.file else len(self.positions)

    def single_files(self, episodes: Episodes) -> Iterator[FileGroup]:
        """Yield one group for each file."""
        if self.file:
            yield self
            return
        for position in self.positions.tolist():
            yield replace(self, positions=np.array([position]), file=episodes.file_name(position, self.camera))

    def named_by(self, episodes: Episodes) -> str:
        """Return the metadata file that names the first episode."""
        return episodes.source(int(self.positions[0])) if len(self.positions) else "nothing"


def table_groups(dataset: LeRobotMeta) -> Iterator[FileGroup]:
    """Yield the tables in the order in which readers join them."""
    episodes = dataset.episodes
    if not dataset.is_v3:
        yield from map(FileGroup, portions(len(episodes), TABLES_PER_TASK))
        return
    by_file = {episodes.file_name(int(own[0])): own for own in episodes.data.by_file(episodes.first_row_N)}
    # v3.0 readers take every file of the folder, in the order of the names.
    present = {path.relative_to(dataset.root).as_posix() for path in (dataset.root / "data").glob("*/*.parquet")}
    first_row = 0
    for file in sorted(present | set(by_file)):
        group = FileGroup(by_file.get(file, np.empty(0, np.int64)), file, first_row=first_row)
        yield group
        opened = open_parquet(dataset.root, file, group.named_by(episodes), Findings())
        if opened is None:
            first_row += int(episodes.length_N[group.positions].sum())
        else:
            with opened:
                first_row += opened.metadata.num_rows


def video_groups(dataset: LeRobotMeta, camera: str, num_rows: dict[int, int], videos_per_task: int) -> list[FileGroup]:
    """Return the videos of a camera.

    Args:
        num_rows: Position of an episode -> its rows, where they are not its length.
        videos_per_task: v2 files in a group.
    """
    places = dataset.episodes.cameras[camera]
    if places.from_s_N is not None:
        parts = places.by_file(places.from_s_N)
        files = [dataset.episodes.file_name(int(positions[0]), camera) for positions in parts]
    else:
        parts = portions(len(dataset.episodes), videos_per_task)
        files = [""] * len(parts)
    return [
        FileGroup(positions, file, camera, 0, {p: num_rows[p] for p in positions.tolist() if p in num_rows})
        for positions, file in zip(parts, files, strict=True)
    ]


def portions(count: int, size: int) -> list[np.ndarray]:
    """Return the numbers below `count` in portions."""
    return [np.arange(begin, min(begin + size, count)) for begin in range(0, count, size)]


def check_unnamed_files(dataset: LeRobotMeta, findings: Findings) -> None:
    """Report files that no metadata names."""
    # Eight bytes a name instead of the name: two names in a dataset of millions do not share them.
    named_N = np.unique(np.fromiter(map(_short_hash, _named_files(dataset.episodes)), np.int64))
    for relative in _present_files(dataset.root):
        place = int(np.searchsorted(named_N, _short_hash(relative)))
        is_named = place < len(named_N) and named_N[place] == _short_hash(relative)
        if not is_named and not any(fnmatch(relative, pattern) for pattern in ALWAYS_ALLOWED):
            findings.add("unnamed-file", relative, "", "a file", "only files that the metadata names")


def _named_files(episodes: Episodes) -> Iterator[str]:
    for camera in (None, *episodes.cameras):
        yield from episodes.file_names(camera)


def _present_files(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        below = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            yield name if below == "." else f"{below}/{name}"


def _short_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), signed=True)
