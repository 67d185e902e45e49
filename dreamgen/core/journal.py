"""The journal: one appended line for what a stage did with a clip; readable while it is written and after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from dreamgen.core.files import fsync
from dreamgen.core.records import JournalRecord

_KNOWN = {f.name for f in fields(JournalRecord)}


class Journal:
    """Appends to a file of this process's own, so that several drivers never write into one another's lines.

    Args:
        folder: `journal/` of the run.
        stage: Name that the file begins with.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stage}-{time.strftime('%Y%m%dT%H%M%S')}-{os.uname().nodename}-{os.getpid()}.jsonl"
        self._stream = self.path.open("a", encoding="utf-8")
        fsync(folder)  # or a crash of the machine could take the file's name, and every record with it
        fsync(folder.parent)

    def append(self, record: JournalRecord) -> None:
        """Write one record and sync it to disk; it stands once this returns."""
        stamped = replace(record, time_s=record.time_s or time.time())
        self._stream.write(stamped.to_json() + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file; one without records is removed."""
        self._stream.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(folder: Path, stage: str) -> dict[str, JournalRecord]:
    """Read a stage's records, the latest for each clip.

    A last line that a kill cut short is passed over: its clip counts as not done.

    Args:
        folder: `journal/` of the run; it may not exist yet.
        stage: generate, label or curate.

    Returns:
        Clip id -> its latest record.
    """
    latest: dict[str, JournalRecord] = {}
    for record in iter_journal(folder, stage):
        before = latest.get(record.clip_id)
        if before is None or record.time_s >= before.time_s:
            latest[record.clip_id] = record
    return latest


def iter_journal(folder: Path, stage: str) -> Iterator[JournalRecord]:
    """Yield all of a stage's records, file by file: of a clip that was tried again there are several."""
    for path in sorted(folder.glob(f"{stage}-*.jsonl")):
        # By newline only: records hold U+2028 as it is.
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                try:
                    values = json.loads(line)
                except json.JSONDecodeError:
                    continue
                yield JournalRecord(**{k: v for k, v in values.items() if k in _KNOWN})
