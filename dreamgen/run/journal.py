"""The journal: the result of each stage for each clip; readable while it is written and after a kill.

A record is durable once it is synced. Records that arrive while the disk is busy are synced together, so that one disk
does not slow down a thousand workers; a clip counts as done only after its record's sync.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

from dreamgen.run.files import fsync
from dreamgen.run.journal_files import (
    COLUMNS,
    GENERATION,
    compact,
    file_stem,
    latest,
    next_generation,
    read_files,
    table_of_lines,
    write_compacted,
)
from dreamgen.run.records import METRICS_KEY, JournalRecord
from dreamgen.run.store import Store
from dreamgen.run.write_errors import storage_errors_as_user_errors

RECORDS_A_FILE = 20_000
MAX_PENDING = 1_000
COMPACT_FROM = 1_000  # a shorter file stays readable JSON lines
REMOTE_COMMIT_EVERY_S = 1.0  # each commit to an object store is an object
FIELDS = [METRICS_KEY if f.name == "metrics" else f.name for f in fields(JournalRecord)]


class Journal:
    """Appends to files of this process's own, so that several drivers never write into one another's records.

    Args:
        folder: `journal/` of the run, local or in an object store.
        stage: Name that the files begin with.
    """

    def __init__(self, folder: Path | Store, stage: str) -> None:
        self.folder, self.stage = as_store(folder), stage
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._pending: list[JournalRecord] = []
        self._synced: list[JournalRecord] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._number = 0
        self._stream: IO[bytes] | None = None
        if not self.folder.is_remote:
            Path(self.folder.place).mkdir(parents=True, exist_ok=True)
        with storage_errors_as_user_errors(self.folder.place):
            compact(self.folder, stage)
            self._generation = next_generation(self.folder, stage)
            # Taken once, so that the names of its files are in order even if the clock is set back.
            self._prefix = file_stem(stage, self._generation)
            self._begin_file()

    def append(self, record: JournalRecord) -> None:
        """Write one record and sync it; it is durable once this returns."""
        self._commit([_stamped(record)])

    def add(self, record: JournalRecord) -> list[JournalRecord]:
        """Queue a record; it is synced soon, together with others.

        Returns:
            The records that were synced since the last call, in order; only these are done.

        Raises:
            UserError: if the disk is full or cannot be written to; records not returned are not done.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._commit_what_comes, daemon=True)
            self._thread.start()
        with self._lock:
            self._pending.append(_stamped(record))
        self._wake.set()
        while len(self._pending) >= MAX_PENDING and self._error is None:
            time.sleep(0.001)  # the disk is far behind
        return self._take_synced()

    def flush(self) -> list[JournalRecord]:
        """Sync all queued records, and return those that `add` has not returned yet."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            self._wake.set()
            thread.join()
        with self._lock:
            pending, self._pending = self._pending, []
        if pending and self._error is None:
            self._commit(pending)
            self._synced += pending
        return self._take_synced()

    def close(self) -> None:
        """Sync the remaining records and close the file; an empty file is removed, a long one compacted."""
        try:
            self.flush()
        finally:
            self._end_file()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(Exception):  # report the first error; records that were not synced are not done
            self.close()

    def _take_synced(self) -> list[JournalRecord]:
        if self._error is not None:
            raise self._error
        with self._lock:
            synced, self._synced = self._synced, []
        return synced

    def _commit_what_comes(self) -> None:
        while self._thread is not None:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                pending, self._pending = self._pending, []
            if not pending:
                continue
            try:
                self._commit(pending)
            except BaseException as error:  # raised in the thread that adds, which must not continue
                self._error = error
                return
            with self._lock:
                self._synced += pending
            if self.folder.is_remote and self._thread is not None:
                time.sleep(REMOTE_COMMIT_EVERY_S)

    def _commit(self, records: list[JournalRecord]) -> None:
        lines = [record.to_json() for record in records]
        with storage_errors_as_user_errors(self.folder.place):
            if self.folder.is_remote:
                part = f"{self._stem}.{len(self._parts):05d}.jsonl"
                self.folder.write(part, ("\n".join(lines) + "\n").encode())
                self._parts.append(part)
            else:
                assert self._stream is not None, "a local journal has a file open"
                if os.fstat(self._stream.fileno()).st_nlink == 0:
                    self._begin_file()  # another process compacted it
                self._stream.write(("\n".join(lines) + "\n").encode())
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._lines += lines
            if len(self._lines) >= RECORDS_A_FILE:
                self._end_file()
                self._begin_file()

    def _begin_file(self) -> None:
        self._number += 1
        self._stem = f"{self._prefix}-{self._number:04d}"
        self._lines: list[str] = []
        self._parts: list[str] = []
        if not self.folder.is_remote:
            path = Path(self.folder.place) / f"{self._stem}.jsonl"
            self._stream, self._parts = path.open("ab"), [path.name]
            # Otherwise a crash of the machine could lose the file's entry, and every record with it.
            fsync(path.parent)
            fsync(path.parent.parent)

    def _end_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if len(self._lines) >= COMPACT_FROM or (self.folder.is_remote and len(self._parts) > 1):
            write_compacted(
                self.folder, f"{self._stem}.parquet", latest(table_of_lines(self._lines, COLUMNS, self._generation))
            )
        elif self._lines:
            return
        for part in self._parts:
            self.folder.remove(part)


def latest_records(folder: Path | Store, stage: str, columns: tuple[str, ...] = COLUMNS) -> Any:
    """Read the named columns of each clip's latest record; a million take seconds, without Python objects.

    Args:
        folder: `journal/` of the run; it may not exist yet.
        stage: generate, label or curate.
        columns: Of `journal_files.COLUMNS`; `clip_id`, `time_s` and the generation are always included.

    Returns:
        pyarrow.Table, one row a clip.
    """
    needed = tuple(dict.fromkeys(("clip_id", "time_s", GENERATION, *columns)))
    return latest(read_files(as_store(folder), stage, needed))


def read_journal(folder: Path | Store, stage: str) -> dict[str, JournalRecord]:
    """Read a stage's records whole, the latest for each clip; use `latest_records` for counting.

    Args:
        folder: `journal/` of the run; it may not exist yet.
        stage: generate, label or curate.

    Returns:
        Clip id -> its latest record.
    """
    return {record.clip_id: record for record in records_of(latest_records(folder, stage))}


def records_of(table: Any) -> list[JournalRecord]:
    """Turn rows with all columns into records."""
    rows = table.select(FIELDS).to_pylist()
    return [JournalRecord(metrics=json.loads(row.pop(METRICS_KEY)), **row) for row in rows]


def as_store(folder: Path | Store) -> Store:
    """Return a folder as a `Store`."""
    return folder if isinstance(folder, Store) else Store(str(folder))


def _stamped(record: JournalRecord) -> JournalRecord:
    return replace(record, time_s=record.time_s or time.time())
