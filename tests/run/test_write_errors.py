"""A full or forbidden disk is distinguished from a clip's own error, and stops the run."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest

from dreamgen.data.video import write_video
from dreamgen.errors import CannotWrite, UserError
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.write_errors import storage_error, storage_errors_as_user_errors


@pytest.mark.parametrize(
    ("error", "is_storages"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),  # of a folder that can be written to
        (ValueError("too small"), False),
        (UserError("a clip's"), False),
        (RuntimeError("CUDA error: device-side assert"), False),
    ],
)
def test_kinds_of_errors(tmp_path, error, is_storages):
    found_error = storage_error(error, tmp_path / "clips" / "ab" / "x.mp4")
    assert (found_error is not None) == is_storages
    try:
        raise RuntimeError("encoder") from error
    except RuntimeError as outer:
        assert (storage_error(outer, tmp_path) is not None) == is_storages


def test_it_travels_between_processes():
    error = CannotWrite("x has no space left", actual="0 MiB free", next_step="make room")
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is CannotWrite and str(other) == str(error)


def test_a_clip_on_a_full_disk_stops_the_run(small_disk):
    noise_THWC = np.random.default_rng(0).integers(0, 256, (60, 128, 192, 3), np.uint8)
    file = small_disk / "clips" / "ab" / "x.mp4"
    with pytest.raises(Exception) as caught:  # libav has its own words for it
        write_video(file, noise_THWC, 16, crf=0)
    (small_disk / "filler").write_bytes(b"x" * 1_500_000)
    found_error = storage_error(caught.value, file)
    assert found_error is not None and "no space" in found_error.what and "MiB free" in found_error.actual
    assert not file.exists() and list(file.parent.iterdir()) == []  # nothing half-written is left


def test_a_journal_on_a_full_disk_keeps_what_it_told(small_disk):
    synced = []
    with pytest.raises(CannotWrite, match="no space left"), Journal(small_disk / "journal", "generate") as journal:
        for number in range(100_000):
            record = JournalRecord(f"{number:020x}", "generate", "failed", error="E", traceback="x" * 5000)
            synced += journal.add(record)
            synced += journal.flush() if number == 50 else []
    found = read_journal(small_disk / "journal", "generate")
    assert len(synced) > 50 and {record.clip_id for record in synced} <= set(found)


def test_other_errors_pass():
    with pytest.raises(FileNotFoundError), storage_errors_as_user_errors("/"):
        Path("/no/such/file").stat()
