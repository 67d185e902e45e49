"""A benchmark's metrics: stored as JSON, shown as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_report(report: dict[str, Any], out: str | None) -> None:
    """Write the report as JSON, if a file is given."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(report, indent=1))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; None leaves a cell empty, and a row that is too short its last cells."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    filled = [[*row, *[""] * (len(columns) - len(row))] for row in cells]
    head, *body = [f"| {' | '.join(line)} |" for line in [list(columns), *filled]]
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def spread(line: dict[str, Any], median: str, form: str) -> str:
    """Return a time as `median (min to max)`."""
    return f"{line[median]:{form}} ({line['min_s']:{form}} to {line['max_s']:{form}})"


def shown(value: float | None, form: str) -> str | None:
    """Return a formatted value, or None for None."""
    return None if value is None else format(value, form)
