"""The datasets of a run folder, for `dreamgen check RUN`."""

from __future__ import annotations

from pathlib import Path

from dreamgen.errors import UserError, quoted
from dreamgen.extensions.export_format import reader_of
from dreamgen.run.run_folder import RunFolder


def datasets_of(path: Path) -> list[Path]:
    """Return the datasets that a path stands for: those of a run folder, or itself.

    Raises:
        UserError: if it is a run folder without datasets.
    """
    run = RunFolder(path)
    if not run.settings_file.is_file() or reader_of(path) is not None:
        return [path]
    entries = sorted(run.datasets.iterdir()) if run.datasets.is_dir() else []
    found = [entry for entry in entries if not entry.name.startswith(".") and reader_of(entry) is not None]
    if not found:
        raise UserError(
            f"the run {path} has no dataset", allowed="a run after dreamgen export, or the path of a dataset",
            next_step=f"dreamgen export --out {quoted(path)}",
        )  # fmt: skip
    return found
