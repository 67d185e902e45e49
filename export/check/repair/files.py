"""Replace a file in one step and keep the original under another name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreamgen.run.files import atomic_file
from export.check.lerobot.files import BACKUP


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


@contextmanager
def replaced(root: Path, relative: str, what: str, changes: list[Change]) -> Iterator[Path]:
    """Yield a path to write a file's new content to; it replaces the file if the body raises nothing.

    The original gets a second name first, so that it exists at every moment.
    """
    path, backup = root / relative, None
    if path.exists():
        backup = _free_name(path)
        try:
            os.link(path.resolve(), backup)
        except OSError:  # a file system without links, or the original is on another one
            shutil.copy2(path, backup)
    try:
        with atomic_file(path) as temporary:
            yield temporary
    except BaseException:
        if backup is not None:
            backup.unlink()
        raise
    changes.append(Change(relative, what, backup and backup.relative_to(root).as_posix()))


def _free_name(path: Path) -> Path:
    number = 1
    while True:
        name = path.with_name(f"{path.name}{BACKUP}{'' if number == 1 else f'-{number}'}")
        if not name.exists():
            return name
        number += 1
