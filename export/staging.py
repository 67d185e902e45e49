"""The staging folder of an export: the next export of the same clips continues what a killed one left."""

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
from dreamgen.run.files import fsync, remove_temporaries, write_text
from export.clips import Clip

STAGING_FOLDER = ".unfinished"
REPLACED = ".replaced"  # ending of a dataset in the staging folder whose successor takes its place


@dataclass(frozen=True)
class StagingArea:
    """Paths of an export in progress; each property and method makes the folder that it returns.

    Args:
        folder: Holds all of them, beside the datasets, so that a rename moves a finished dataset.
    """

    folder: Path

    @property
    def episode_store(self) -> Path:
        """What inspecting each clip gave."""
        return self._made("episodes")

    @property
    def transcoded(self) -> Path:
        """Clips that were cut out of other files or encoded again."""
        return self._made("transcoded")

    def dataset(self, name: str) -> Path:
        """Return the folder of a dataset that is being written."""
        return self._made(name)

    def provenance(self, name: str) -> Path:
        """Return the provenance of a dataset that is being written."""
        return self.folder / f"{name}.provenance.parquet"

    def done_markers(self, name: str) -> Path:
        """Return the folder of markers of the dataset's finished files."""
        return self._made(f"{name}.done")

    def finish(self, name: str, path: Path, replaces: bool = False) -> None:
        """Rename a finished dataset to its final path; one that it replaces is removed after that.

        Raises:
            UserError: if the path exists and is not to be replaced.
        """
        if path.exists() and not replaces:
            raise UserError(f"{path} already exists", next_step="choose another output")
        for folder in sorted(p for p in self.dataset(name).rglob("*") if p.is_dir()):
            fsync(folder)
        fsync(self.dataset(name))
        replaced = self.folder / f"{path.name}{REPLACED}"
        if path.exists():
            path.rename(replaced)
        self.dataset(name).rename(path)
        fsync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(self.done_markers(name))

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def staging_area(datasets: Path, fingerprint: str) -> Iterator[StagingArea]:
    """Lock the staging folder; on success it is removed, after an error or a kill it stays for the next try.

    Args:
        datasets: Folder of the datasets.
        fingerprint: Hash of what is exported, and how; files of another export are removed.

    Raises:
        UserError: if another process exports into the same folder.
    """
    folder = datasets / STAGING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another export writes to {datasets}", next_step="wait until it is done") from None
        _put_back(datasets)
        recorded = folder / "fingerprint"
        if recorded.exists() and recorded.read_text() == fingerprint:
            log("export: continuing an export that was stopped")
            remove_temporaries(folder)  # of half-written tables, which would be published as tables
        else:
            for path in folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(recorded, fingerprint)
        try:
            yield StagingArea(folder)
        except UserError:
            if not any(path.is_file() for path in folder.glob("*/*")):  # there is nothing to continue
                discard(datasets)
            raise
        shutil.rmtree(folder)


def sweep(datasets: Path) -> None:
    """Remove the staging folder of an export that was killed after its last dataset, unless one is running."""
    lock = datasets / STAGING_FOLDER / "lock"
    if lock.exists():
        with lock.open("w") as held, suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _put_back(datasets)
            discard(datasets)


def _put_back(datasets: Path) -> None:
    """Restore a dataset whose replacement was killed between the two renames."""
    for replaced in (datasets / STAGING_FOLDER).glob(f"*{REPLACED}"):
        path = datasets / replaced.name.removesuffix(REPLACED)
        if not path.exists():
            replaced.rename(path)


def discard(datasets: Path) -> None:
    """Remove the staging folder, and the folder of the datasets if it is empty."""
    shutil.rmtree(datasets / STAGING_FOLDER, ignore_errors=True)
    with suppress(OSError):
        datasets.rmdir()


def fingerprint_of(settings: dict[str, Any], clips: Iterable[Clip]) -> tuple[str, int]:
    """Hash what determines an export's bytes.

    Args:
        settings: Plain values.
        clips: The sizes and times of their files are hashed; the files are not read.

    Returns:
        The hash, and the bytes of the clips' mp4s.
    """
    digest = hashlib.sha256(json.dumps([dreamgen.__version__, settings], sort_keys=True, default=str).encode())
    num_bytes = 0
    for clip in clips:
        digest.update(clip.to_json().encode())
        for path in (*clip.videos, clip.label):
            with suppress(FileNotFoundError):  # inspection reports it
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns};".encode())
                num_bytes += 0 if path is clip.label else stat.st_size
    return digest.hexdigest(), num_bytes
