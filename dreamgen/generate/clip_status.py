"""Which clips of a run are done and which are left, and the temporary files of killed processes.

A clip is done if its record and its file agree. For a million clips this reads two columns of the journal and lists 256
folders, instead of checking each file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.run.files import remove_stale_temporaries
from dreamgen.run.jobs import JobRows, clip_sizes, job_columns
from dreamgen.run.journal import latest_records
from dreamgen.run.records import IMPORTED, Job, JournalRecord
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.shard import Shard

STAGE = "generate"
LEFT, DONE, REJECTED, FAILED = range(4)


@dataclass(frozen=True)
class RunStatus:
    """The state of each planned clip of a shard.

    Args:
        jobs: Jobs of the shard, in planned order.
        states_N: LEFT, DONE, REJECTED or FAILED for each job. A failed clip is retried like one that is left.
    """

    jobs: JobRows
    states_N: np.ndarray

    @property
    def left(self) -> JobRows:
        """The jobs whose clips are still to be made."""
        return self.jobs.where((self.states_N == LEFT) | (self.states_N == FAILED))

    def counts(self) -> dict[str, int]:
        """Return the number of clips in each state."""
        num_left, num_done, num_rejected, num_failed = np.bincount(self.states_N, minlength=4).tolist()
        return {
            "num_jobs": len(self.jobs), "num_done": num_done, "num_rejected": num_rejected, "num_failed": num_failed,
            "num_left": num_left,
        }  # fmt: skip


def clip_status(run: RunFolder, shard: Shard | None = None) -> RunStatus:
    """Return which clips are done and which are left; those that were imported are not generated.

    Args:
        run: With jobs planned.
        shard: Of the driver; all jobs when not given.
    """
    ids = job_columns(run.jobs, ["clip_id"])["clip_id"].combine_chunks()
    jobs = JobRows(run.jobs, np.flatnonzero((shard or Shard()).holds(ids)))
    jobs = jobs.where(~jobs.is_one_of("level", [IMPORTED]))
    return RunStatus(jobs, clip_states(run, ids.take(jobs.rows)))


def clip_states(run: RunFolder, ids: pa.Array) -> np.ndarray:
    """Return the state of clips.

    A clip is done if its file has the size that its record states. A record without its file, or a file without its
    record, is not done.

    Args:
        run: With the journal and the clips.
        ids: Clip ids.

    Returns:
        uint8, one for each id: LEFT, DONE, REJECTED or FAILED.
    """
    records = latest_records(run.journal, STAGE, ("status", "num_bytes"))
    file_ids, sizes_F = clip_sizes(run)
    record_of_N, _ = _found(ids, records["clip_id"].combine_chunks())
    file_of_N, has_file_N = _found(ids, file_ids)
    status = records["status"].combine_chunks().take(record_of_N)
    wanted_N = np.asarray(records["num_bytes"].combine_chunks().take(record_of_N).fill_null(-1))
    size_N = np.append(sizes_F, 0)[np.where(has_file_N, np.asarray(file_of_N.fill_null(0)), len(sizes_F))]
    is_whole_N = has_file_N & ((wanted_N < 0) | (wanted_N == size_N))
    states_N = np.full(len(ids), LEFT, np.uint8)
    for name, state in (("ok", DONE), ("rejected", REJECTED), ("failed", FAILED)):
        states_N[np.asarray(pc.equal(status, name).fill_null(False))] = state
    states_N[(states_N == DONE) & ~is_whole_N] = LEFT
    return states_N


def todo(run: RunFolder, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that are not done, in their order."""
    states = clip_states(run, pa.array([job.clip_id for job in jobs], pa.string()))
    return [job for job, state in zip(jobs, states, strict=True) if state in (LEFT, FAILED)]


def remove_half_written(run: RunFolder) -> int:
    """Remove half-written clips and texts of ended processes of this host; others may be generating into the run.

    Returns:
        Number of removed files.
    """
    return sum(remove_stale_temporaries(folder, below=True) for folder in (run.clips, run.texts))


def mean_metric(records: Sequence[JournalRecord], *names: str) -> float | None:
    """Return the mean over successful clips of the sum of the named metrics; None without clips."""
    sums = [sum(record.metrics[name] for name in names) for record in records if record.status == "ok"]
    return sum(sums) / len(sums) if sums else None


def _found(ids: pa.Array, among: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the position of each id in `among` (null if it is not there), and whether it is there."""
    places = pc.index_in(ids, value_set=among)
    return places, np.asarray(places.is_valid())
