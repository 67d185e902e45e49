"""Findings of the LeRobot reader: `check` lists them all, stages that need the data raise the fatal ones."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dreamgen.errors import Problems, quoted

MAX_RAISED = 20
WHAT = {
    "missing-file": "does not exist",
    "unreadable-file": "cannot be read",
    "unknown-version": "is not a version that can be read",
    "fps": "is not a frame rate",
    "feature": "is not a table of features",
    "path-template": "cannot be used to name files",
    "path-outside": "leads out of the dataset",
    "episode-entry": "is malformed",
    "episode-duplicate": "is listed twice",
    "no-episodes": "lists no episode",
    "task-entry": "is malformed",
}


class FindingSink(Protocol):
    """Whatever takes findings: `export.check.findings.Findings`, or `FatalFindings`."""

    def add(self, code: str, file: str, where: str, value: object, expected: object, *, fatal: bool = True) -> None:
        """Take one finding.

        Args:
            code: Kind of finding, as `docs/checking.md` lists them.
            file: Path relative to the dataset.
            where: Line, row, episode or key within the file; "" for the whole file.
            value: What the file holds.
            expected: What it should hold.
            fatal: An episode, a task or the whole dataset cannot be read because of it.
        """


class FatalFindings:
    """Collect the findings that leave something unread, and raise them together; the others are dropped.

    Args:
        root: The dataset, for the error messages.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._problems = Problems()

    def add(self, code: str, file: str, where: str, value: object, expected: object, *, fatal: bool = True) -> None:
        """Take one finding; see `FindingSink.add`."""
        if not fatal or len(self._problems.errors) == MAX_RAISED:
            return
        subject = str(self._root / (where if code == "path-outside" else file))
        if where and code not in ("missing-file", "path-outside"):
            subject += f": {where}"
        self._problems.add(
            f"{subject} {WHAT[code]}", actual=str(value)[:200], allowed=expected,
            next_step=f"copy the dataset again; dreamgen check {quoted(self._root)} lists all problems",
        )  # fmt: skip

    def raise_if_any(self) -> None:
        """Raise one error that lists what was collected.

        Raises:
            UserError: if there was a fatal finding.
        """
        self._problems.raise_if_any(f"the metadata of {self._root} cannot be used")
