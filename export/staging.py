"""The folder in which an export works: what a killed one leaves is taken up by the next one for the same clips."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dreamgen
from dreamgen.errors import UserError
from dreamgen.progress import log
from dreamgen.run.files import fsync, write_text
from export.clips import Clip

NAME = ".unfinished"


@dataclass(frozen=True)
class StagingArea:
    """Paths of an export that is not finished.

    Args:
        folder: Holds all of it, beside the datasets, so that a finished dataset is moved by a rename.
    """

    folder: Path

    @property
    def episode_store(self) -> Path:
        """What was found when each clip was looked at."""
        return self._made("admitted")

    @property
    def fitted(self) -> Path:
        """Clips that had to be cut out of others' files or encoded again."""
        return self._made("fitted")

    def dataset(self, name: str) -> Path:
        """The dataset as far as it is written."""
        return self._made(name)

    def done_markers(self, name: str) -> Path:
        """What says which of its files are whole."""
        return self._made(f"{name}.done")

    def finish(self, name: str, path: Path) -> None:
        """Move a finished dataset to where it belongs; from then on it exists, whole.

        Raises:
            UserError: if something is there.
        """
        if path.exists():
            raise UserError(f"{path} already exists", next_step="choose another output")
        for folder in sorted(p for p in self.dataset(name).rglob("*") if p.is_dir()):
            fsync(folder)
        fsync(self.dataset(name))
        self.dataset(name).rename(path)
        fsync(path.parent)
        shutil.rmtree(self.done_markers(name))

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def staging_area(datasets: Path, fingerprint: str) -> Iterator[StagingArea]:
    """Claim the working folder; on success it is removed, on an error or a kill it stays for the next try.

    Args:
        datasets: Folder of the datasets.
        fingerprint: What is exported, and how; the leftovers of another export are removed.

    Raises:
        UserError: if another process exports into the same folder.
    """
    folder = datasets / NAME
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another export writes to {datasets}", next_step="wait until it is done") from None
        of = folder / "fingerprint"
        if of.exists() and of.read_text() == fingerprint:
            log("export: going on with what an export that was stopped has left")
        else:
            for path in folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(of, fingerprint)
        try:
            yield StagingArea(folder)
        except UserError:
            if not any(path.is_file() for path in folder.glob("*/*")):  # there is nothing to go on with
                discard(datasets)
            raise
        shutil.rmtree(folder)


def sweep(datasets: Path) -> None:
    """Remove what an export left that was killed after its last dataset was done, unless another one is at work."""
    lock = datasets / NAME / "lock"
    if lock.exists():
        with lock.open("w") as held, suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            discard(datasets)


def discard(datasets: Path) -> None:
    """Remove a working folder that nothing can be made of, and the datasets' folder where nothing else is in it."""
    shutil.rmtree(datasets / NAME, ignore_errors=True)
    with suppress(OSError):
        datasets.rmdir()


def fingerprint_of(settings: dict[str, Any], clips: Iterable[Clip]) -> tuple[str, int]:
    """Hash what decides an export's bytes.

    Args:
        settings: Plain values.
        clips: Their files are looked at by size and time, not read.

    Returns:
        The hash, and the bytes of the clips' mp4s.
    """
    digest = hashlib.sha256(json.dumps([dreamgen.__version__, settings], sort_keys=True, default=str).encode())
    num_bytes = 0
    for clip in clips:
        digest.update(clip.to_json().encode())
        for path in (*clip.videos, clip.label):
            with suppress(FileNotFoundError):  # it will be refused
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns};".encode())
                num_bytes += 0 if path is clip.label else stat.st_size
    return digest.hexdigest(), num_bytes
