"""Storage errors, as opposed to errors of one clip: no clip can be written until they are fixed, so the run stops."""

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
    """Return a storage error as `CannotWrite`; None if the error concerns only the clip that was written.

    Encoders do not always report why they failed, so the free space is checked besides the error number.

    Args:
        error: What was raised while a file below `place` was written.
        place: File, folder or URL that was written to.

    Returns:
        An error that stops the run; None if the clip itself caused the failure.
    """
    if isinstance(error, CannotWrite):
        return error
    number = next((n for e in _chain(error) if isinstance(n := getattr(e, "errno", None), int)), None)
    folder = _nearest_folder(place)
    free = None if folder is None else _free_bytes(folder)
    is_full = number in NO_ROOM or (free is not None and free < LEAST_FREE_BYTES)
    # Permission may also be missing for a file that is only read; that concerns one clip.
    is_forbidden = number in FORBIDDEN and folder is not None and not os.access(folder, os.W_OK)
    if not (is_full or is_forbidden or number in BROKEN):
        return None
    reason = str(error) if number is None else os.strerror(number)
    return CannotWrite(
        f"{place} {'has no space left' if is_full else 'cannot be written to'}",
        actual=reason if free is None else f"{reason}; {free / 2**20:,.0f} MiB free",
        next_step="free some space or fix the permissions, then run the same command again: nothing that was recorded "
        "is lost or made twice",
    )


@contextmanager
def storage_errors_as_user_errors(place: str | Path) -> Iterator[None]:
    """Raise storage errors as `CannotWrite` and other errors unchanged.

    Raises:
        CannotWrite: if the disk is full or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        storage = storage_error(error, place)
        if storage is None:
            raise
        raise storage from error


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
