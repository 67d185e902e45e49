"""Storage errors, as opposed to errors of one clip: no clip can be written until they are fixed, so the run stops."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgen.errors import CannotWrite, UserError
from dreamgen.run.files import WRITING
from dreamgen.run.store import is_url

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # full disk, full quota, file too large for the file system
BROKEN = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}  # read-only, or its server or disk is gone
FORBIDDEN = {errno.EACCES, errno.EPERM}
OF_NAMES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}  # whatever space is left
LEAST_FREE_BYTES = 2**20
IN_WORDS = re.compile(r"(?:os error|\berrno) (\d+)\)")  # of safetensors: "... No space left on device (os error 28)"


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
    number = _number(error)
    folder = _nearest_folder(place)
    free = None if folder is None else _free_bytes(folder)
    is_full = number in NO_ROOM or (number not in OF_NAMES and free is not None and free < LEAST_FREE_BYTES)
    # Permission may also be missing for a file that is only read; that concerns one clip.
    is_forbidden = number in FORBIDDEN and folder is not None and not os.access(folder, os.W_OK)
    if not (is_full or is_forbidden or number in BROKEN):
        return None
    reason = str(error) if number is None else os.strerror(number)
    what = "has no space left" if is_full else "cannot be written to" if is_forbidden else "cannot be read or written"
    return CannotWrite(
        f"{place} {what}",
        actual=reason if free is None else f"{reason}; {free / 2**20:,.0f} MiB free",
        next_step="free some space or fix the permissions, then run the same command again, with --resume if it has "
        "it: nothing that was recorded is lost or made twice",
    )


@contextmanager
def storage_errors_as_user_errors(place: str | Path) -> Iterator[None]:
    """Raise storage errors as `CannotWrite` and other errors unchanged.

    Args:
        place: What the body writes to; for a file that the error names, the message names that file's folder.

    Raises:
        CannotWrite: if the disk is full or cannot be written to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _number(error)
        if number is None and not isinstance(error, OSError | RuntimeError):
            raise  # a mistake in the code, also when little space is left
        file = None if number in FORBIDDEN else _file_of(error)
        storage = storage_error(error, place if file is None else file.parent)
        if storage is None:
            raise
        raise storage from error


def _file_of(error: BaseException) -> Path | None:
    """Return the file that was written when an error arose, if it is known."""
    for each in _chain(error):
        if isinstance(name := getattr(each, "filename", None), str):
            return Path(name)
        for note in getattr(each, "__notes__", ()):
            if note.startswith(WRITING):
                return Path(note.removeprefix(WRITING))
    return None


def _number(error: BaseException) -> int | None:
    """Return the system's error number; of libraries that tell it in words only, the one in their message."""
    for each in _chain(error):
        if isinstance(number := getattr(each, "errno", None), int):
            return number
        if match := IN_WORDS.search(str(each)):
            return int(match[1])
    return None


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
