"""Reading files that may be damaged: what cannot be read becomes a finding and None, never an exception."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.errors import UserError
from dreamgen.run.files import inside
from export.check.findings import Findings

PARQUET_DAMAGE = (OSError, pa.ArrowException, ValueError)


def read_json_object(root: Path, relative: str, findings: Findings) -> dict | None:
    """Return a JSON object, or None with a finding; the file is expected to exist."""
    path = existing(root, relative, "the layout", findings)
    if path is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        findings.add("unreadable-file", relative, "", str(error), "UTF-8 JSON")
        return None
    if not isinstance(value, dict):
        findings.add("unreadable-file", relative, "", type(value).__name__, "a JSON object")
        return None
    return value


def iter_json_lines(
    root: Path, relative: str, findings: Findings, named_by: str = "the layout"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file with one JSON object a line, a line at a time.

    A line that is none becomes a finding and is left out, a missing file likewise.
    """
    path = existing(root, relative, named_by, findings)
    if path is None:
        return
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                value = json_line(line, relative, number, findings)
                if value is not None:
                    yield number, value
    except OSError as error:
        findings.add("unreadable-file", relative, "", str(error), "UTF-8 text")


def json_line(line: bytes, relative: str, number: int, findings: Findings) -> dict[str, Any] | None:
    """Return the object of one line, or None: silently for an empty line, else with a finding."""
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        findings.add("unreadable-file", relative, f"line {number}", str(error), "one JSON object a line")
        return None
    if not isinstance(value, dict):
        findings.add("unreadable-file", relative, f"line {number}", value, "one JSON object a line")
        return None
    return value


def open_parquet(root: Path, relative: str, named_by: str, findings: Findings) -> pq.ParquetFile | None:
    """Open a parquet file, or return None with a finding; the caller closes it."""
    path = existing(root, relative, named_by, findings)
    if path is None:
        return None
    try:
        return pq.ParquetFile(path)
    except PARQUET_DAMAGE as error:
        findings.add("unreadable-file", relative, "", str(error), "a parquet file with a footer")
        return None


def existing(root: Path, relative: str, named_by: str, findings: Findings) -> Path | None:
    """Return the path of a file that lies in the dataset, or None with a finding."""
    path = root / relative
    if _plainly_inside(root, relative):
        return path
    try:
        path = inside(root, relative, named_by)
    except (UserError, ValueError, OSError) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        findings.add("path-outside", named_by, relative, reason, "a path within the dataset")
        return None
    if not path.is_file():
        findings.add("missing-file", relative, f"named by {named_by}", "it does not exist", "the file")
        return None
    return path


def _plainly_inside(root: Path, relative: str) -> bool:
    """Say whether a path is a regular file below root with no link on its way: the common case, at little cost."""
    if relative.startswith("/") or ".." in relative.split("/"):
        return False
    try:
        path = os.path.join(root, relative)  # noqa: PTH118  (pathlib takes ten times as long, for every file)
        return stat.S_ISREG(os.lstat(path).st_mode) and _without_links(os.fspath(root), os.path.dirname(relative))  # noqa: PTH120
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=16)
def _without_links(root: str, folder: str) -> bool:
    path = os.path.join(root, folder)  # noqa: PTH118
    return os.path.realpath(path) == os.path.normpath(os.path.join(os.path.realpath(root), folder))  # noqa: PTH118


def forget_folders() -> None:
    """Look at the folders anew: another check in this process may find them changed."""
    _without_links.cache_clear()


FIELD = re.compile(r"\{(\w+)(?::0?(\d))?d?\}")


def fill_template(template: str, values: dict[str, Any]) -> str | None:
    """Fill `{name}` and `{name:03d}` of a path template; None if it names something unknown.

    `str.format` is not used: a template comes from data, and its grammar reaches attributes and any width.
    """
    unknown = [match[1] for match in FIELD.finditer(template) if match[1] not in values]
    filled = FIELD.sub(lambda match: str(values.get(match[1], "")).zfill(int(match[2] or 0)), template)
    return None if unknown or "{" in filled or "}" in filled else filled


def whole_number(value: object) -> int | None:
    """Return a whole number, or None for anything else, True and False among them."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
