"""A journal's files: synced in groups, compacted when full or left by a dead process, the same records throughout."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dreamgen.run import journal as journal_module
from dreamgen.run.journal import Journal, latest_records, read_journal
from dreamgen.run.journal_files import GENERATION, MERGE_FROM, compact, is_closed, table_of_lines
from dreamgen.run.process_identity import machine_name
from dreamgen.run.records import JournalRecord
from dreamgen.run.store import Store

DEAD = 2**22 + 1  # above the largest process id that Linux gives


def record(number: int, status: str = "ok", time_s: float = 0.0, **more) -> JournalRecord:
    metrics = {"num_bytes": 1000 + number, "dream_s": 1.5}
    return JournalRecord(f"{number:020x}", "generate", status, metrics=metrics, worker="a:1", time_s=time_s, **more)


def left_by(pid: int, folder: Path, number: int, *records: JournalRecord) -> Path:
    path = folder / f"generate-20260101T000000-{machine_name()}-{pid}-{number:04d}.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in records))
    return path


def test_full_files_become_parquet_and_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "RECORDS_A_FILE", 50)
    monkeypatch.setattr(journal_module, "COMPACT_FROM", 20)
    written = [record(n, time_s=1.0 + n, error=None, reason="a\u2028b" if n % 7 == 0 else None) for n in range(130)]
    with Journal(tmp_path, "generate") as journal:
        synced = [r for one in written for r in journal.add(one)]
        synced += journal.flush()
        assert synced == written
        suffixes = [path.suffix for path in tmp_path.iterdir()]
        assert suffixes.count(".jsonl") == 1 and ".parquet" in suffixes  # the one that is written now
        assert read_journal(tmp_path, "generate") == {r.clip_id: r for r in written}
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert read_journal(tmp_path, "generate") == {r.clip_id: r for r in written}
    table = latest_records(tmp_path, "generate", ("status", "num_bytes"))
    assert table["num_bytes"].to_pylist() == [1000 + n for n in range(130)]


def test_a_record_is_told_only_after_its_sync(tmp_path, monkeypatch):
    may_sync, fsync = threading.Event(), os.fsync
    journal = Journal(tmp_path, "generate")
    monkeypatch.setattr(os, "fsync", lambda fd: may_sync.wait() and fsync(fd))
    assert [r for n in range(20) for r in journal.add(record(n))] == []
    num_syncs = []
    monkeypatch.setattr(os, "fsync", lambda fd: num_syncs.append(fd) or fsync(fd))
    may_sync.set()
    assert [r.clip_id for r in journal.flush()] == [record(n).clip_id for n in range(20)]
    assert len(num_syncs) < 5  # together, not one by one
    journal.close()


def test_an_error_of_the_disk_reaches_the_one_who_adds(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "generate")
    journal.append(record(0))

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Exception, match="has no space left") as caught:
            for number in itertools.count(1):
                assert journal.add(record(number)) == []
                time.sleep(0.01)
        assert "No space left" in caught.value.actual and "same command again" in caught.value.next_step
    with pytest.raises(Exception, match="has no space left"):
        journal.close()


def test_files_of_dead_processes_are_merged_and_living_ones_left(tmp_path):
    for number in range(MERGE_FROM):
        left_by(DEAD, tmp_path, number, record(number, "failed", 1.0, error="E: x"), record(99, time_s=2.0 + number))
    left_by(DEAD, tmp_path, 50, record(3, time_s=5.0))
    alive = left_by(os.getpid(), tmp_path, 1, record(4, time_s=9.0))
    torn = left_by(DEAD, tmp_path, 51, record(50, time_s=1.0))
    torn.write_text(torn.read_text()[:40])
    assert is_closed(torn.name) and not is_closed(alive.name)
    before = read_journal(tmp_path, "generate")
    compact(Store(str(tmp_path)), "generate")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert alive.name in names and len(names) == 2
    assert read_journal(tmp_path, "generate") == before and len(before) == MERGE_FROM + 1
    assert before[record(3).clip_id].status == "ok" and before[record(99).clip_id].time_s == 1.0 + MERGE_FROM


def test_compaction_keeps_the_order_and_reads_files_of_before(tmp_path):
    pq.write_table(table_of_lines([record(1, "failed", 9e9).to_json()]).drop_columns(GENERATION),
                   tmp_path / "generate-20990101T000000-a-1.parquet")  # fmt: skip
    for number in range(MERGE_FROM + 1):
        with Journal(tmp_path, "generate") as journal:
            journal.append(record(1, "ok" if number % 2 == 0 else "rejected", 1e9 - number, attempt=number + 1))
        assert read_journal(tmp_path, "generate")[record(1).clip_id].attempt == number + 1
        for path in tmp_path.glob("*.jsonl"):
            path.rename(str(path).replace(f"-{os.getpid()}-", f"-{DEAD}-"))  # so that it counts as closed
    compact(Store(str(tmp_path)), "generate")
    assert [path.suffix for path in tmp_path.iterdir()].count(".jsonl") < MERGE_FROM
    assert read_journal(tmp_path, "generate")[record(1).clip_id].attempt == MERGE_FROM + 1
    with Journal(tmp_path, "generate") as journal:
        journal.append(record(1, "failed", 1.0))
    assert read_journal(tmp_path, "generate")[record(1).clip_id].status == "failed"


def test_a_writer_whose_file_was_taken_away_begins_another(tmp_path):
    with Journal(tmp_path, "generate") as journal:
        journal.append(record(1))
        lost = next(tmp_path.glob("*.jsonl"))
        kept = lost.read_text()
        lost.unlink()
        (tmp_path / "generate-0.jsonl").write_text(kept)  # as another driver's compaction would have kept it
        journal.append(record(2))
        assert set(read_journal(tmp_path, "generate")) == {record(1).clip_id, record(2).clip_id}


def test_both_ways_of_reading_lines_agree(tmp_path):
    records = [record(1, time_s=1.0), record(2, "failed", 2.5, error="E: \u2028", traceback="T"), record(3, "rejected")]
    path = left_by(DEAD, tmp_path, 1, *records)
    columns = ("clip_id", "status", "error", "num_bytes", "attempt", "time_s")
    fast = latest_records(tmp_path, "generate", columns).select(columns)
    assert fast.equals(table_of_lines(path.read_bytes().split(b"\n"), columns))
    path.write_bytes(path.read_bytes() + b'{"clip_id": "torn')
    assert latest_records(tmp_path, "generate", columns).select(columns).equals(fast)


def test_reading_goes_on_while_files_are_compacted(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "RECORDS_A_FILE", 25)
    monkeypatch.setattr(journal_module, "COMPACT_FROM", 25)
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(latest_records(tmp_path, "generate", ("status",))))

    reader = threading.Thread(target=read)
    with Journal(tmp_path, "generate") as journal:
        reader.start()
        for number in range(200):
            journal.append(record(number))
            if number % 50 == 0:
                compact(Store(str(tmp_path)), "generate")
        stop.set()
        reader.join()
    assert seen == sorted(seen) and len(read_journal(tmp_path, "generate")) == 200
