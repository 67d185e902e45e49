"""SHA-256 of large files, remembered in the user's cache folder, so that unchanged weights are read once.

An entry counts only if the file's size, times and inode are those of the moment when it was hashed. The time of the
last change of the inode (ctime) is among them; unlike the modification time, a program cannot set it back.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgen.run.files import sha256_of_file, write_json

LEAST_BYTES = 2**20  # smaller files are hashed each time
SETTLED_AFTER_S = 2.0  # a file changed later than this before it was hashed could change again at the same time stamp
NUM_KEPT = 1000
VERSION, NUM_VALUES = 1, 6


def sha256_of_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Hash files in parallel; the hashes of large files that did not change come from the cache.

    Args:
        paths: Existing files.

    Returns:
        Path -> hex SHA-256 of the file's bytes.
    """
    paths, known = list(paths), _read_cache()
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL, and a large model has several files
        entries = list(threads.map(lambda path: _hashed(path, known), paths))
    added = {_name(path): entry for path, entry in zip(paths, entries, strict=True) if entry.can_be_kept}
    if any(known.get(name) != entry.to_json() for name, entry in added.items()):
        _remember(added)
    return {path: entry.sha256 for path, entry in zip(paths, entries, strict=True)}


def cache_file() -> Path:
    """Return the file that holds the hashes: `$XDG_CACHE_HOME/dreamgen/`, otherwise `~/.cache/dreamgen/`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreamgen" / "file_hashes.json"


@dataclass(frozen=True)
class _Hashed:
    """A file's hash, and its state when it was hashed.

    Args:
        state: Device, inode, size in bytes, and modification and change time in ns.
        sha256: Of the bytes.
        can_be_kept: Whether the file cannot have changed without a change of its state.
    """

    state: list[int]
    sha256: str
    can_be_kept: bool

    def to_json(self) -> list[Any]:
        return [*self.state, self.sha256]


def _hashed(path: Path, known: dict[str, list[Any]]) -> _Hashed:
    state, entry = _state(path), known.get(_name(path))
    if entry is not None and entry[:-1] == state:
        return _Hashed(state, entry[-1], can_be_kept=True)
    begun_s, sha256 = time.time(), sha256_of_file(path)
    is_settled = begun_s - max(state[-2:]) / 1e9 > SETTLED_AFTER_S and _state(path) == state
    return _Hashed(state, sha256, can_be_kept=is_settled and state[2] >= LEAST_BYTES)


def _name(path: Path) -> str:
    return str(path.resolve())


def _state(path: Path) -> list[int]:
    with path.open("rb") as stream:  # opened, because network file systems compare with their server then
        found = os.fstat(stream.fileno())
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_cache() -> dict[str, list[Any]]:
    try:
        values = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: the user has no home folder
        return {}
    if not isinstance(values, dict) or values.get("version") != VERSION or not isinstance(values.get("files"), dict):
        return {}
    entries = values["files"]
    return {name: entry for name, entry in entries.items() if isinstance(entry, list) and len(entry) == NUM_VALUES}


def _remember(added: dict[str, _Hashed]) -> None:
    """Add entries to the cache, after those that others wrote meanwhile; without a place to write it is left out."""
    kept = {name: entry for name, entry in _read_cache().items() if name not in added}
    entries = [*kept.items(), *((name, entry.to_json()) for name, entry in added.items())]
    with suppress(OSError, RuntimeError):
        write_json(cache_file(), {"version": VERSION, "files": dict(entries[-NUM_KEPT:])})
