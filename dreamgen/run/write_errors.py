"""Errors of the disk rather than of a clip: no clip can be written until somebody mends it, so the run stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgen.errors import CannotWrite
from dreamgen.run.store import is_url

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # full disk, full quota, file too large for the file system
BROKEN = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}  # read-only, or its server or disk is gone
FORBIDDEN = {errno.EACCES, errno.EPERM}
LEAST_FREE_BYTES = 2**20


def storage_error(error: BaseException, place: str | Path) -> CannotWrite | None:
    """Tell an error of the storage from one of the clip that was being written.

    Encoders do not always pass on why they failed, so besides the error's number the room that is left is looked at.

    Args:
        error: What was raised while a file below `place` was written.
        place: File, folder or URL that was written to.

    Returns:
        An error to stop the run with; None if the clip itself is at fault.
    """
    if isinstance(error, CannotWrite):
        return error
    number = next((n for e in _chain(error) if isinstance(n := getattr(e, "errno", None), int)), None)
    folder = _nearest_folder(place)
    free = None if folder is None else _free_bytes(folder)
    is_full = number in NO_ROOM or (free is not None and free < LEAST_FREE_BYTES)
    # A file that was only read may be forbidden too, and that is the clip's own trouble.
    is_forbidden = number in FORBIDDEN and folder is not None and not os.access(folder, os.W_OK)
    if not (is_full or is_forbidden or number in BROKEN):
        return None
    reason = str(error) if number is None else os.strerror(number)
    return CannotWrite(
        f"{place} {'has no room left' if is_full else 'cannot be written to'}",
        actual=reason if free is None else f"{reason}; {free / 2**20:,.0f} MiB free",
        next_step="make room or mend the permissions, then run the same command again: nothing that was recorded "
        "is lost or made twice",
    )


@contextmanager
def said_if_storage_fails(place: str | Path) -> Iterator[None]:
    """Turn errors of the storage into `CannotWrite`; others pass.

    Raises:
        CannotWrite: if the disk is full or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        told = storage_error(error, place)
        if told is None:
            raise
        raise told from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _nearest_folder(place: str | Path) -> Path | None:
    if is_url(place):
        return None
    path = Path(place).absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), None)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
