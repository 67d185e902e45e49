"""Replace files of a dataset together: all of them or none, and each original is kept under another name.

New files are written in a folder that no reader of datasets looks into. A list of them is the point of no return: from
then on the next check says that a repair was interrupted, and the next repair finishes it first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgen.errors import UserError
from dreamgen.run.files import fsync, inside, read_json, write_json
from export.manifest import BACKUP, update_manifest

REPAIR_FOLDER = f".repair{BACKUP}"  # readers and checkers ignore the ending
LIST = "replaced.json"


@dataclass(frozen=True)
class Change:
    """A repair of one file.

    Args:
        file: Relative to the dataset.
        what: What was changed, in words.
        backup: Where the original is now, relative to the dataset; None for a new file.
    """

    file: str
    what: str
    backup: str | None

    def __str__(self) -> str:
        kept = f"; the original is {self.backup}" if self.backup else ""
        return f"fixed {self.file}: {self.what}{kept}"


class Replacements:
    """Files that are about to be replaced.

    Args:
        root: The dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._new = root, root / REPAIR_FOLDER / "new"
        self._changes: list[Change] = []

    @contextmanager
    def file(self, relative: str, what: str) -> Iterator[Path]:
        """Yield a path to write a file's new content to.

        Args:
            relative: The file that it replaces if all else succeeds.
            what: What is changed, in words.
        """
        path = self._new / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        fsync(path)
        fsync(path.parent)
        backup = _free_name(self.root, relative) if (self.root / relative).exists() else None
        self._changes.append(Change(relative, what, backup))

    def commit(self) -> list[Change]:
        """Replace the files and return the changes."""
        if self._changes:
            write_json(self._new.parent / LIST, {change.file: change.backup for change in self._changes})
            _apply(self.root)
        return self._changes


@contextmanager
def replacing(root: Path, changes: list[Change]) -> Iterator[Replacements]:
    """Collect the new files of one repair; they replace the old ones if the block raises nothing.

    Args:
        root: The dataset.
        changes: Receives the changes.
    """
    folder = root / REPAIR_FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process repairs {root}", next_step="wait until it is done") from None
        try:
            _apply(root)  # of a repair that was interrupted
            shutil.rmtree(folder / "new", ignore_errors=True)
            replacements = Replacements(root)
            yield replacements
            changes += replacements.commit()
        finally:
            if not (folder / LIST).exists():
                shutil.rmtree(folder, ignore_errors=True)


def is_interrupted(root: Path) -> bool:
    """Return whether a repair was interrupted while it replaced files."""
    return (root / REPAIR_FOLDER / LIST).exists()


def finish_interrupted(root: Path) -> bool:
    """Replace the files that an interrupted repair did not replace, or remove what an earlier kill of it left.

    Returns:
        Whether there were files to replace.
    """
    if not (root / REPAIR_FOLDER).exists():
        return False
    was_interrupted = is_interrupted(root)
    with replacing(root, []):
        return was_interrupted


def _apply(root: Path) -> None:
    """Replace the listed files; a file whose new content is gone was replaced before."""
    listed = root / REPAIR_FOLDER / LIST
    if not listed.exists():
        return
    replaced = _read_list(root, listed)
    update_manifest(root, {relative: new for relative in replaced if (new := _new_file(root, relative)).exists()})
    for relative, backup in replaced.items():
        path, new = root / relative, _new_file(root, relative)
        if not new.exists():
            continue
        # The original gets a second name first, so that it exists at every moment.
        if backup is not None and not (root / backup).exists():
            try:
                os.link(path.resolve(), root / backup)
            except OSError:  # a file system without links, or the original is on another one
                shutil.copy2(path, root / backup)
        new.replace(path)
        fsync(path.parent)
    shutil.rmtree(root / REPAIR_FOLDER / "new", ignore_errors=True)
    listed.unlink()


def json_text(value: dict[str, Any], before: Path) -> str:
    """Return JSON laid out as the file that it replaces, so that equal values are equal bytes."""
    is_narrow = before.is_file() and before.read_text(encoding="utf-8", errors="replace").startswith('{\n  "')
    return json.dumps(value, indent=2 if is_narrow else 4, ensure_ascii=False, allow_nan=False) + "\n"


def _new_file(root: Path, relative: str) -> Path:
    return root / REPAIR_FOLDER / "new" / relative


def _read_list(root: Path, listed: Path) -> dict[str, str | None]:
    """Read the list of files; it may come with a dataset of others, so each path must lie in the dataset."""
    replaced = read_json(listed)
    for names in replaced.items():
        for name in (name for name in names if name is not None):
            inside(root, str(name), str(listed))
    return replaced


def _free_name(root: Path, relative: str) -> str:
    number = 1
    while True:
        name = f"{relative}{BACKUP}{'' if number == 1 else f'-{number}'}"
        if not (root / name).exists():
            return name
        number += 1
