"""Read the rows of a CSV or JSONL one by one; a bad row yields an error that names its line, and reading continues."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamgen.errors import UserError
from dreamgen.run.json_text import BadJson, parse_json


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Read a CSV with a header.

    Yields:
        Each row's line number, and its cells by column or its error.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for values in reader:
                if None in values:
                    yield reader.line_num, UserError(
                        f"{path}, line {reader.line_num}: more cells than columns", actual=str(values[None]),
                        allowed='text with commas in "quotes"',
                    )  # fmt: skip
                else:
                    yield reader.line_num, values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table", actual=str(error), allowed="UTF-8 CSV") from None


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Read a .csv or .jsonl as `csv_rows` does."""
    if not path.is_file():
        raise UserError(f"the table {path} does not exist", next_step="check --plan.first_frames")
    return csv_rows(path) if path.suffix.lower() == ".csv" else jsonl_rows(path)


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Read a file with one JSON object a line as `csv_rows` does."""
    try:
        # Only \n ends a line: a JSON string may hold other line separators.
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _jsonl_row(f"{path}, line {number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read", actual=str(error), allowed="UTF-8, one JSON object a line") from None


def _jsonl_row(where: str, line: str) -> dict[str, Any] | UserError:
    try:
        values = parse_json(line)
    except BadJson as error:
        return UserError(f"{where} is not JSON", actual=str(error))
    return values if isinstance(values, dict) else UserError(f"{where} is not a JSON object", actual=line[:80])
