"""Writing so that a file or folder is whole or absent, and keeping paths that come from data inside their folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgen.core.errors import UserError


def _temporary_sibling(path: Path) -> Path:
    # The suffix stays last: muxers and image writers choose their format by it.
    return path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`.

    Args:
        path: The final file. Its folder is made; an existing file is replaced in one step.

    Raises:
        Whatever the body raises; the temporary file is removed then and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling folder; on success it becomes `path`, so the folder is whole or absent.

    Raises:
        UserError: if `path` already exists; nothing that a user made is ever replaced.
    """
    path = Path(path)
    if path.exists():
        raise UserError(
            f"{path} already exists", allowed="a folder that does not exist yet", next_step="choose another output"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _fsync(Path(folder) / name)
        temporary.rename(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically, indented; NaN and infinity are refused because strict readers refuse them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON object.

    Raises:
        UserError: if the file is missing, not UTF-8, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", next_step="check the path") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON", actual=str(error), allowed="UTF-8 JSON") from None


def sha256_of_file(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(root: str | Path, relative: str | Path, named_by: str) -> Path:
    """Resolve a path that came from data and refuse one that leaves `root`.

    Args:
        root: The folder that the data owns.
        relative: The path as the data gives it.
        named_by: Where it was read, for the error (a file, a row).

    Returns:
        The resolved absolute path; it need not exist.

    Raises:
        UserError: if the path is absolute, or leads outside `root` through `..` or a symbolic link.
    """
    root = Path(root).resolve()
    resolved = (root / relative).resolve()
    if Path(relative).is_absolute() or not resolved.is_relative_to(root):
        raise UserError(
            f"{named_by} names a path outside its dataset",
            actual=str(relative),
            allowed=f"a relative path below {root}",
            next_step="mend the path; data may not reach other folders",
        )
    return resolved


def existing_folder(path: str | Path, purpose: str) -> Path:
    """Return `path` if it is a folder with something in it.

    Raises:
        UserError: if it is missing, a file, or empty.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{purpose}: folder does not exist", actual=str(path), next_step="check the path")
    if not path.is_dir():
        raise UserError(f"{purpose}: not a folder", actual=str(path), allowed="a folder")
    if not any(path.iterdir()):
        raise UserError(f"{purpose}: folder is empty", actual=str(path), allowed="a folder with data in it")
    return path
