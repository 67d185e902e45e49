"""Check that the disk has room for datasets before the first byte is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dreamgen.errors import UserError

GIB = 2**30


def check_space(folder: Path, needed: Mapping[str, int], keep_free_gib: float) -> None:
    """Make sure that datasets fit on the disk.

    Args:
        folder: Where they will be written; it need not exist.
        needed: Bytes by dataset.
        keep_free_gib: Space that must remain free.

    Raises:
        UserError: with the needed and the free space.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_gib, needed_gib = shutil.disk_usage(nearest).free / GIB, sum(needed.values()) / GIB
    if needed_gib + keep_free_gib > free_gib:
        each = ", ".join(f"{name} {size / GIB:.3g}" for name, size in needed.items())
        raise UserError(
            f"the disk of {nearest} has no room for the datasets",
            actual=f"{free_gib:.3g} GiB free",
            allowed=f"{needed_gib + keep_free_gib:.3g} GiB: {each}, and {keep_free_gib:g} that must remain free",
            next_step="free some space, write fewer --export.formats, or lower --export.keep_free_gib",
        )
