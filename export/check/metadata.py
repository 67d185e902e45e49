"""Reading files that may be damaged: what cannot be read becomes a finding and None, never an exception."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.core.errors import UserError
from dreamgen.core.files import inside
from export.check.findings import Findings

UNREADABLE = "no trainer can open the dataset"


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera lie; `from_s` and `to_s` are None when it has the file to itself."""

    file: str
    from_s: float | None = None
    to_s: float | None = None


@dataclass(frozen=True)
class EpisodeEntry:
    """An episode as the metadata describes it.

    Args:
        named_by: The metadata file that describes it.
        data_file: Relative path of its rows.
        first_row: Number of its first row in the dataset.
        videos: Camera -> span.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    named_by: str
    data_file: str
    first_row: int
    videos: dict[str, VideoSpan]

    @property
    def name(self) -> str:
        """How findings call it."""
        return f"episode {self.index}"


@dataclass(frozen=True)
class LeRobotEntry:
    """A LeRobot dataset as its metadata describes it.

    Args:
        version: "v2.0", "v2.1" or "v3.0".
        features: Those of info.json that are well formed.
        tasks: task_index -> task.
        modality: GR00T's modality.json, or None.
    """

    root: Path
    version: str
    info: dict[str, Any]
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: tuple[EpisodeEntry, ...]
    tasks: dict[int, str]
    modality: dict[str, Any] | None

    @property
    def exact_fps(self) -> Fraction:
        """The rate as the fraction that the number in info.json is meant to be."""
        return Fraction(self.fps).limit_denominator(1001)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are videos."""
        return tuple(name for name, feature in self.features.items() if feature["dtype"] == "video")


def read_json_object(root: Path, relative: str, findings: Findings, consequence: str = UNREADABLE) -> dict | None:
    """Return a JSON object, or None with a finding; the file is expected to exist."""
    text = read_text(root, relative, findings, consequence)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        findings.error("unreadable", relative, "", str(error), "JSON", consequence)
        return None
    if not isinstance(value, dict):
        findings.error("unreadable", relative, "", type(value).__name__, "a JSON object", consequence)
        return None
    return value


def read_json_lines(root: Path, relative: str, findings: Findings, consequence: str = UNREADABLE) -> list[dict] | None:
    """Return the objects of a file with one a line; a line that is not one becomes a finding and is left out."""
    text = read_text(root, relative, findings, consequence)
    if text is None:
        return None
    objects = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            findings.error("unreadable", relative, f"line {number}", str(error), "one JSON object a line", consequence)
            continue
        if isinstance(value, dict):
            objects.append(value)
        else:
            findings.error("unreadable", relative, f"line {number}", value, "one JSON object a line", consequence)
    return objects


def read_text(root: Path, relative: str, findings: Findings, consequence: str) -> str | None:
    """Return a UTF-8 file's text, or None with a finding."""
    path = existing(root, relative, "the layout", findings, consequence)
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        findings.error("unreadable", relative, "", str(error), "UTF-8 text", consequence)
        return None


def read_parquet(
    root: Path, relative: str, named_by: str, findings: Findings, without: str | None = None,
    consequence: str = UNREADABLE,
) -> pa.Table | None:  # fmt: skip
    """Return a parquet table, or None with a finding; columns that begin with `without` are not read."""
    path = existing(root, relative, named_by, findings, consequence)
    if path is None:
        return None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            return file.read(columns=[name for name in names if without is None or not name.startswith(without)])
    except (OSError, pa.ArrowException, ValueError) as error:
        findings.error("unreadable", relative, "", str(error), "a parquet file", consequence)
        return None


def existing(root: Path, relative: str, named_by: str, findings: Findings, consequence: str) -> Path | None:
    """Return the path of a file that lies in the dataset, or None with a finding."""
    try:
        path = inside(root, relative, named_by)
    except (UserError, ValueError, OSError) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        findings.error("outside path", named_by, "", relative, "a path within the dataset", reason)
        return None
    if not path.is_file():
        findings.error("missing file", relative, f"named by {named_by}", "it does not exist", "the file", consequence)
        return None
    return path


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
