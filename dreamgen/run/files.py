"""Atomic writes of files and folders, and checks that paths read from data stay inside their folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgen.errors import UserError
from dreamgen.run.json_text import BadJson, parse_json, read_json_text
from dreamgen.run.process_identity import is_alive, machine_name

TEMPORARY = re.compile(r"\..+\.(?P<pid>[0-9]{1,7})-(?P<host>[0-9a-f]{8})[0-9a-f]{8}\.tmp.*", re.DOTALL)
STALE_AFTER_S = 600.0
WRITING = "while writing "  # begins the note of `errors_name`


def _this_host() -> str:
    return hashlib.sha256(machine_name().encode()).hexdigest()[:8]


def _temporary_sibling(path: Path) -> Path:
    # The suffix stays last: muxers and image writers choose the format by it.
    return path.with_name(f".{path.stem}.{os.getpid()}-{_this_host()}{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def remove_stale_temporaries(folder: Path, below: bool = False) -> int:
    """Remove the temporary files that ended processes of this host left in a folder, which others may be using.

    Processes of other hosts are not visible, so their temporary files are kept, like all other files.

    Args:
        folder: It need not exist.
        below: Whether to look into its sub-folders too, which are not followed where they are links.

    Returns:
        Number of files and folders that were removed.
    """
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    num_removed = 0
    for entry in entries:
        match = TEMPORARY.fullmatch(entry.name) if entry.name[0] == "." else None
        if match is None and below and entry.is_dir(follow_symlinks=False):
            num_removed += remove_stale_temporaries(Path(entry.path), below=True)
        if match is None or match["host"] != _this_host() or is_alive(int(match["pid"])):
            continue
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime <= STALE_AFTER_S:
                continue
        except FileNotFoundError:  # another process removed it
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)
        num_removed += 1
    return num_removed


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that a pattern names, sorted, without hidden ones.

    A temporary file of a killed process is hidden and ends like a whole one, and so would match `*.parquet`.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def remove_temporaries(folder: Path) -> None:
    """Remove all temporary files below a folder, which the caller keeps other processes from writing to."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if TEMPORARY.fullmatch(name):
                (Path(parent) / name).unlink(missing_ok=True)


def _make_readable(path: Path, mode: int) -> None:
    # Some libraries create files that only the owner can read; a run folder is for the team, as far as umask allows.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Note in each error that a file was being written: a failed write does not say which."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{WRITING}{path}")
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`.

    Args:
        path: The final file. Its folder is created; an existing file is replaced atomically.

    Raises:
        Whatever the body raises; then the temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        with errors_name(path):
            yield temporary
            _make_readable(temporary, 0o666)
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling folder; on success it is renamed to `path`, so the folder is complete or absent.

    Temporary siblings of killed processes of this host are removed first.

    Raises:
        UserError: if `path` already exists; nothing that a user made is ever replaced.
    """
    path = Path(path)
    if path.exists():
        raise UserError(
            f"{path} already exists", allowed="a folder that does not exist yet", next_step="choose another output"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(path.parent)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                _make_readable(Path(folder) / name, 0o666)
                fsync(Path(folder) / name)
            fsync(Path(folder))
        temporary.rename(path)
        fsync(path.parent)
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
        UserError: if the file is missing, not UTF-8, not JSON, or not an object.
    """
    try:
        value = parse_json(read_json_text(Path(path)))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", next_step="check the path") from None
    except BadJson as error:
        raise UserError(f"{path} is not valid JSON", actual=str(error), allowed="UTF-8 JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object", actual=type(value).__name__)
    return value


def sha256_of_file(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(root: str | Path, relative: str | Path, named_by: str) -> Path:
    """Resolve a path read from data, and refuse a path outside `root`.

    A snapshot in the Hugging Face cache consists of links to the blobs folder beside it; these count as inside.

    Args:
        root: The folder of the data.
        relative: The path in the data.
        named_by: Where the path was read (a file, a row), for the error.

    Returns:
        The resolved absolute path; it need not exist.

    Raises:
        UserError: if the path is absolute, leads outside `root` through `..` or a symbolic link, or is not valid.
    """
    root = Path(root).resolve()
    try:
        resolved = (root / relative).resolve()
        os.lstat(resolved)  # raises an error for a name that is too long
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a cycle of links
        raise UserError(f"{named_by} names no path", actual=f"{str(relative)[:80]!r}: {error}"[:200]) from None
    owned = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    lexically_inside = Path(os.path.normpath(root / relative)).is_relative_to(root)
    if not Path(relative).is_absolute() and lexically_inside and any(map(resolved.is_relative_to, owned)):
        return resolved
    if lexically_inside and not Path(relative).is_absolute():
        raise UserError(
            f"{named_by} leads outside its dataset by a symbolic link", actual=f"{relative} -> {resolved}",
            allowed=f"files below {root}", next_step="copy the linked files into the dataset",
        )  # fmt: skip
    raise UserError(
        f"{named_by} names a path outside its dataset",
        actual=str(relative),
        allowed=f"a relative path below {root}",
        next_step="fix the path; data may not reach other folders",
    )


def regular_file(path: Path) -> Path:
    """Return `path` if it is a regular file: opening a FIFO would wait for its writer, and a device has no end.

    Raises:
        UserError: if it does not exist or is something else.
    """
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read", actual=getattr(error, "strerror", None) or str(error)) from None
    if not is_regular:
        raise UserError(f"{path} is not a regular file", allowed="a file that is read from beginning to end")
    return path


def name_problem(name: str) -> str | None:
    """Return why text from data cannot be the name of a file or folder; None if it can.

    Every name that becomes a part of a path passes here: names of cameras, of formats, of clips.
    """
    if not name or name in (".", "..") or name != name.strip():
        return "is empty, a dot, or has spaces around it"
    if any(character in "/\\" or not character.isprintable() for character in name):
        return "has slashes or characters that cannot be printed"  # among them halves of surrogate pairs
    return "is longer than 200 bytes" if len(name.encode()) > 200 else None


def path_component(name: str, what: str) -> str:
    """Return a name that becomes a part of a path.

    Args:
        name: The name.
        what: What has the name, for the error.

    Raises:
        UserError: if a file or folder cannot have it.
    """
    if problem := name_problem(name):
        raise UserError(
            f"{what} {name!r} {problem}", allowed="a name without slashes, such as observation.images.front"
        )
    return name


def existing_folder(path: str | Path, purpose: str) -> Path:
    """Return `path` if it is a folder that is not empty.

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
