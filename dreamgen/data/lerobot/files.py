"""Tolerant file access: what cannot be read becomes a finding and None, never an exception."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.findings import FindingSink
from dreamgen.errors import UserError
from dreamgen.run.files import inside
from dreamgen.run.json_text import BadJson, parse_json, read_json_text

PARQUET_DAMAGE = (OSError, pa.ArrowException, ValueError)
ROWS_PER_READ = 1000
MAX_LINE_BYTES = 64 * 2**20  # a longer line is read in pieces, none of which is JSON


def find_file(root: Path, relative: str, named_by: str, findings: FindingSink) -> Path | None:
    """Return the path of a file that lies in the dataset, or None with a finding.

    Args:
        root: The dataset.
        relative: Path of the file in it, as the metadata gives it.
        named_by: What names the file, for the finding.
        findings: Receives path-outside or missing-file.
    """
    path = root / relative
    if _is_plain_file(root, relative):
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


def _is_plain_file(root: Path, relative: str) -> bool:
    """Return True for a regular file below root with no symbolic link on its way: the common case, decided fast."""
    if relative.startswith("/") or ".." in relative.split("/"):
        return False
    try:
        path = os.path.join(root, relative)  # noqa: PTH118  (pathlib takes ten times as long, for every file)
        return stat.S_ISREG(os.lstat(path).st_mode) and _has_no_links(os.fspath(root), os.path.dirname(relative))  # noqa: PTH120
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=16)
def _has_no_links(root: str, folder: str) -> bool:
    path = os.path.join(root, folder)  # noqa: PTH118
    return os.path.realpath(path) == os.path.normpath(os.path.join(os.path.realpath(root), folder))  # noqa: PTH118


def clear_link_cache() -> None:
    """Forget which folders have no links: they may have changed since the last dataset was read."""
    _has_no_links.cache_clear()


def read_json_object(root: Path, relative: str, findings: FindingSink) -> dict[str, Any] | None:
    """Return a JSON object, or None with a finding; the file is expected to exist."""
    path = find_file(root, relative, "the layout", findings)
    if path is None:
        return None
    try:
        value = parse_json(read_json_text(path))
    except (OSError, BadJson) as error:
        findings.add("unreadable-file", relative, "", str(error), "UTF-8 JSON")
        return None
    if not isinstance(value, dict):
        findings.add("unreadable-file", relative, "", type(value).__name__, "a JSON object")
        return None
    return value


def iter_json_lines(root: Path, relative: str, findings: FindingSink) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file with one JSON object a line; other lines become findings."""
    path = find_file(root, relative, "the layout", findings)
    if path is None:
        return
    try:
        # Bytes are split at \n only: tasks hold U+2028 and other characters at which text mode would end a line.
        with path.open("rb") as stream:
            for number, line in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES), b""), start=1):
                value = parse_json_line(line, relative, f"line {number}", findings)
                if value is not None:
                    yield number, value
    except OSError as error:
        findings.add("unreadable-file", relative, "", str(error), "UTF-8 text")


def parse_json_line(line: bytes, relative: str, where: str, findings: FindingSink) -> dict[str, Any] | None:
    """Return the object of one line, or None: silently for an empty line, else with a finding."""
    if not line.strip():
        return None
    try:
        value = parse_json(line)
    except BadJson as error:
        findings.add("unreadable-file", relative, where, str(error), "one JSON object a line")
        return None
    if not isinstance(value, dict):
        findings.add("unreadable-file", relative, where, value, "one JSON object a line")
        return None
    return value


def open_parquet(root: Path, relative: str, named_by: str, findings: FindingSink) -> pq.ParquetFile | None:
    """Open a parquet file, or return None with a finding; the caller closes it."""
    path = find_file(root, relative, named_by, findings)
    if path is None:
        return None
    try:
        opened = pq.ParquetFile(path)
        names = opened.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError("it has columns of one name")
        return opened
    except PARQUET_DAMAGE as error:
        findings.add("unreadable-file", relative, "", str(error), "a parquet file with a footer")
        return None


def iter_parquet_rows(
    root: Path, relative: str, columns: Iterable[str], findings: FindingSink
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, values) of those columns that the file has; what cannot be read becomes a finding."""
    opened = open_parquet(root, relative, "the layout", findings)
    if opened is None:
        return
    with opened:
        present, number = [name for name in columns if name in opened.schema_arrow.names], 0
        try:
            for batch in opened.iter_batches(ROWS_PER_READ, columns=present, use_threads=False):
                for row in batch.to_pylist() if present else [{}] * batch.num_rows:
                    yield number, row
                    number += 1
        except PARQUET_DAMAGE as error:
            findings.add("unreadable-file", relative, "", str(error), "a parquet file")
