"""The manifest of a dataset: size and SHA-256 of every file, so that any change of any byte is found.

    # DreamGen manifest 1. To verify it: dreamgen check --verify DATASET, or sha256sum --check manifest.sha256
    # size 1234
    <64 hex digits>  meta/info.json
    ...
    # manifest <SHA-256 of the lines above>

It lies in the dataset's root, where no reader of datasets looks: they read `data/`, `videos/`, `meta/` and HDF5 files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from dreamgen.run.files import TEMPORARY, atomic_file, remove_stale_temporaries, sha256_of_file

MANIFEST = "manifest.sha256"
BACKUP = ".before-fix"  # originals that `check --fix` keeps end with it
HEADER = f"# DreamGen manifest 1. To verify it: dreamgen check --verify DATASET, or sha256sum --check {MANIFEST}\n"

SIZE, SEAL = "# size ", "# manifest "
LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)")
PROVENANCE = "*.provenance.parquet"  # lies beside a dataset, and in an uploaded one
# Not part of a dataset: copies that a repair keeps, and what version control and the hub's client add.
UNLISTED = (MANIFEST, PROVENANCE, f"*{BACKUP}*", ".git*", "*/.git*", ".cache/*", ".DS_Store", "*/.DS_Store")
CHANGED_BY_USERS = ("README*", "LICENSE*")


@dataclass(frozen=True)
class Entry:
    """A file as it was written: its size in bytes, and the SHA-256 of its bytes as hex digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Args:
        entries: Path relative to the dataset -> the file as it was written.
        problem: Why the manifest itself cannot be trusted; None if it is whole.
    """

    entries: dict[str, Entry]
    problem: str | None = None


def write_manifest(root: Path, num_threads: int | None = None) -> None:
    """Record every file below a folder.

    Args:
        root: The dataset, complete but for the manifest.
        num_threads: Hash at once; one per core if None.
    """
    remove_stale_temporaries(root)  # of a process that was killed while it wrote a manifest
    names = sorted(name for name in present_files(root) if not TEMPORARY.fullmatch(Path(name).name))
    entries: dict[str, Entry] = {}
    for name, entry in zip(names, hash_files((root / name for name in names), num_threads), strict=True):
        if isinstance(entry, OSError):
            raise entry
        entries[name] = entry
    _write(root, entries)


def update_manifest(root: Path, replaced: Mapping[str, Path]) -> None:
    """Record files that are about to be replaced, unless the manifest already disagreed with the file on disk.

    What was changed by something else than DreamGen stays a finding, whatever is repaired in it.

    Args:
        root: A dataset, with or without a manifest.
        replaced: Path relative to the dataset -> the file that will replace it.
    """
    manifest = read_manifest(root)
    if manifest is None or manifest.problem:
        return
    entries = dict(manifest.entries)
    for name, new in replaced.items():
        path = root / name
        if not path.exists() or entries.get(name) == entry_of(path):
            entries[name] = entry_of(new)
    _write(root, entries)


def read_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a dataset; None if there is none. Lines that cannot be read are left out and reported."""
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        return Manifest({}, str(error))
    above, seal, below = content.rpartition(SEAL.encode())
    is_whole = bool(seal) and below == f"{hashlib.sha256(above).hexdigest()}\n".encode()
    body = (above if seal else content).decode(errors="surrogateescape")
    entries: dict[str, Entry] = {}
    size = -1
    for line in body.split("\n"):
        if line.startswith(SIZE) and line[len(SIZE) :].isdecimal() and len(line) < 30:
            size = int(line[len(SIZE) :])
        elif match := LINE.fullmatch(line):
            entries[_unescaped(match[3]) if match[1] else match[3]] = Entry(size, match[2])
    return Manifest(entries, None if is_whole else "its last line is not the SHA-256 of the others")


def present_files(root: Path) -> Iterator[str]:
    """Yield the path of every file that belongs to a dataset, relative to it."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        below = Path(folder).relative_to(root).as_posix()
        for name in names:
            relative = name if below == "." else f"{below}/{name}"
            if not any(fnmatch(relative, pattern) for pattern in UNLISTED):
                yield relative


def hash_files(paths: Iterable[Path], num_threads: int | None = None) -> Iterator[Entry | OSError]:
    """Yield size and hash of each file, in order, or why it cannot be read."""

    def read(path: Path) -> Entry | OSError:
        try:
            return entry_of(path)
        except OSError as error:
            return error

    with ThreadPoolExecutor(num_threads or os.cpu_count()) as threads:  # hashing releases Python's lock
        yield from threads.map(read, paths)


def entry_of(path: Path) -> Entry:
    """Return size and hash of a file."""
    return Entry(path.stat().st_size, sha256_of_file(path))


def _write(root: Path, entries: Mapping[str, Entry]) -> None:
    body = HEADER + "".join(
        f"{SIZE}{entry.size}\n{_line(entry.sha256, name)}\n" for name, entry in sorted(entries.items())
    )
    content = body.encode(errors="surrogateescape")
    with atomic_file(root / MANIFEST) as temporary:
        temporary.write_bytes(content + f"{SEAL}{hashlib.sha256(content).hexdigest()}\n".encode())


def _line(sha256: str, name: str) -> str:
    # As sha256sum escapes names.
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'\\' if escaped != name else ''}{sha256}  {escaped}"


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), name)
