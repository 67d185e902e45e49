"""Which clips of a run are made and which are left, and what kills leave behind."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

from dreamgen.core.journal import read_journal
from dreamgen.core.records import Job, JournalRecord
from dreamgen.core.run_folder import RunFolder

STAGE = "generate"
TEMPORARY_CLIP = re.compile(r"\.[0-9a-f]{20}\.(?P<pid>[0-9]+)-[0-9a-f]+\.tmp\.mp4")
STALE_AFTER_S = 600.0


def todo(run: RunFolder, jobs: Sequence[Job]) -> list[Job]:
    """List the jobs that are not done, in planned order.

    Done is a clip whose file is as large as its record says, or one that was rejected. A failed clip is not, nor a
    record without its file, nor a file without its record.
    """
    records = read_journal(run.journal, STAGE)
    return [job for job in jobs if not _is_done(run, records.get(job.clip_id))]


def remove_stale_temporaries(run: RunFolder) -> int:
    """Remove half-written clips of processes that are gone.

    A process on another machine cannot be seen from here, so a file that was written to lately is left alone.

    Returns:
        How many were removed.
    """
    num_removed = 0
    for path in run.clips.glob("??/.*.tmp.mp4"):
        match = TEMPORARY_CLIP.fullmatch(path.name)
        if match and not _is_alive(int(match["pid"])) and time.time() - path.stat().st_mtime > STALE_AFTER_S:
            path.unlink(missing_ok=True)
            num_removed += 1
    return num_removed


def mean_figure(records: Sequence[JournalRecord], *names: str) -> float | None:
    """Return the mean, over the clips that were made, of the sum of the named figures; None without clips."""
    sums = [sum(record.figures[name] for name in names) for record in records if record.status == "ok"]
    return sum(sums) / len(sums) if sums else None


def _is_done(run: RunFolder, record: JournalRecord | None) -> bool:
    if record is None or record.status == "failed":
        return False
    if record.status == "rejected":
        return True
    file = run.clip_file(record.clip_id)
    return file.is_file() and record.figures.get("num_bytes") in (None, file.stat().st_size)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
