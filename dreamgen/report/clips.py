"""The clips of a run: the outcome of each as columns, and those that the page lists as objects, a batch at a time.

Axes: N planned clips, in planned order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.run.jobs import BATCH, REJECTIONS, clip_sizes, iter_jobs, job_columns
from dreamgen.run.journal import latest_records, records_of
from dreamgen.run.records import METRICS_KEY, Job, JournalRecord, Status
from dreamgen.run.run_folder import RunFolder
from dreamgen.stages import CLIP_STAGES

Verdict = Literal["accepted", "not judged", "rejected", "failed", "waiting"]
VERDICTS: tuple[Verdict, ...] = ("accepted", "not judged", "rejected", "failed", "waiting")
SHOWN: tuple[Verdict, ...] = VERDICTS[:3]
STATUSES: tuple[Status | None, ...] = (None, "ok", "rejected", "failed")
JOURNALS = (*CLIP_STAGES, REJECTIONS)
PLAIN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")  # becomes part of a URL


@dataclass(frozen=True)
class Clip:
    """One listed clip.

    Args:
        row: Its place in planned order.
        job: The planned clip.
        verdict: accepted or rejected (results); failed (an error); not judged (not curated); waiting (not generated).
        reasons: Reasons for a rejection.
        metrics: What curate recorded, by name.
    """

    row: int
    job: Job
    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A clip at which a stage failed, with the error."""

    job: Job
    record: JournalRecord


@dataclass(frozen=True)
class ClipTable:
    """The outcome of every planned clip.

    Args:
        ids: Clip ids.
        verdict_N: Index in `VERDICTS`, uint8.
        status_N: Stage -> the status of its latest record, index in `STATUSES`, uint8.
        num_bytes_N: Size of the clip's mp4; -1 where there is none.
        models: Of all jobs, each once.
        codecs: Of all jobs, each once.
        num_safety_known: Clips whose record says whether the safety checker was on.
        num_unchecked: Those of them for which it was off.
        last_time_s: Time of the last record, in seconds since the epoch; None without a record.
    """

    ids: pa.Array
    verdict_N: np.ndarray
    status_N: dict[str, np.ndarray]
    num_bytes_N: np.ndarray
    models: frozenset[str] = frozenset()
    codecs: frozenset[str] = frozenset()
    num_safety_known: int = 0
    num_unchecked: int = 0
    last_time_s: float | None = None

    def __len__(self) -> int:
        return len(self.verdict_N)

    def count(self, *verdicts: Verdict) -> int:
        """Return how many clips have one of the verdicts."""
        return int(np.isin(self.verdict_N, [VERDICTS.index(verdict) for verdict in verdicts]).sum())

    def num_with(self, stage: str, *statuses: Status) -> int:
        """Return how many clips have a latest record of a stage with one of the statuses."""
        codes = [STATUSES.index(status) for status in statuses]
        return int(np.isin(self.status_N[stage], codes).sum()) if stage in self.status_N else 0

    @property
    def is_shown_N(self) -> np.ndarray:
        """Return which clips the page can list: made, with an mp4, bool."""
        return (self.verdict_N < len(SHOWN)) & (self.num_bytes_N >= 0)


NO_CLIPS = ClipTable(pa.array([], pa.string()), np.zeros(0, np.uint8), {}, np.zeros(0, np.int64))


def read_clips(run: RunFolder) -> ClipTable:
    """Read the outcome of every planned clip; a few bytes of memory each, and no objects.

    Raises:
        UserError: if the jobs cannot be read.
    """
    table = job_columns(run.jobs, ["clip_id", "model", "codec"])
    ids = table["clip_id"].combine_chunks()
    status_N, times_s, num_known, num_unchecked = {}, [], 0, 0
    for stage in JOURNALS:
        columns = ("status", METRICS_KEY) if stage == "generate" else ("status",)
        records = latest_records(run.journal, stage, columns)
        status_N[stage] = _status_codes(ids, records)
        if len(records):
            times_s.append(pc.max(records["time_s"]).as_py())
        if stage == "generate":  # the metrics are JSON as json.dumps writes it
            known = pc.match_substring(records[METRICS_KEY], '"safety_checker": ')
            num_known = pc.sum(known).as_py() or 0
            num_unchecked = pc.sum(pc.match_substring(records[METRICS_KEY], '"safety_checker": false')).as_py() or 0
    return ClipTable(
        ids=ids, verdict_N=_verdicts(status_N), status_N=status_N, num_bytes_N=_sizes(run, ids),
        models=frozenset(table["model"].unique().to_pylist()), codecs=frozenset(table["codec"].unique().to_pylist()),
        num_safety_known=num_known, num_unchecked=num_unchecked, last_time_s=max(times_s, default=None),
    )  # fmt: skip


def iter_clips(run: RunFolder, clips: ClipTable, rows: np.ndarray) -> Iterator[Clip]:
    """Iterate over some clips with their jobs and records.

    Args:
        run: The run.
        clips: Its clips.
        rows: Places of the wanted ones in planned order, int64, ascending.
    """
    records = {stage: latest_records(run.journal, stage) for stage in JOURNALS}
    for begin in range(0, len(rows), BATCH):
        some = rows[begin : begin + BATCH]
        ids = clips.ids.take(some)
        of_stage = {
            stage: {record.clip_id: record for record in records_of(_only(table, ids))}
            for stage, table in records.items()
        }
        for row, job in zip(some.tolist(), iter_jobs(run.jobs, some), strict=True):
            own = [found[job.clip_id] for found in of_stage.values() if job.clip_id in found]
            rejected = next((record for record in own if record.status == "rejected"), None)
            judged = of_stage["curate"].get(job.clip_id)
            reasons = (rejected.reason or "no reason given").split("; ") if rejected is not None else ()
            metrics = judged.metrics if judged is not None else {}
            yield Clip(row, job, VERDICTS[clips.verdict_N[row]], tuple(reasons), metrics)


def iter_failures(run: RunFolder, clips: ClipTable, max_num: int) -> Iterator[Failure]:
    """Iterate over the first failed clips with their errors.

    Args:
        run: The run.
        clips: Its clips.
        max_num: Largest number of failures.
    """
    rows = np.flatnonzero(clips.verdict_N == VERDICTS.index("failed"))[:max_num]
    if not len(rows):
        return
    ids = clips.ids.take(rows)
    failed: dict[str, JournalRecord] = {}
    for stage in JOURNALS:
        for record in records_of(_only(latest_records(run.journal, stage), ids)):
            if record.status == "failed":
                failed.setdefault(record.clip_id, record)
    yield from (Failure(job, failed[job.clip_id]) for job in iter_jobs(run.jobs, rows))


def choose_rows(verdict_N: np.ndarray, can_show_N: np.ndarray, max_clips: int) -> np.ndarray:
    """Choose the clips to list: each verdict in proportion and at least once, spread evenly over the plan.

    Args:
        verdict_N: Index in `VERDICTS`.
        can_show_N: Which clips can be listed, bool.
        max_clips: Largest number of clips.

    Returns:
        Their places in planned order, int64, ascending.
    """
    groups = [np.flatnonzero(can_show_N & (verdict_N == code)) for code in range(len(SHOWN))]
    shares = _shares([len(group) for group in groups], max_clips)
    chosen = [
        group[np.round(np.arange(share) * (len(group) - 1) / max(share - 1, 1)).astype(np.int64)]
        for group, share in zip(groups, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _shares(sizes: Sequence[int], max_num: int) -> list[int]:
    """Divide `max_num` among groups in proportion to their sizes; a group that is not empty gets at least one."""
    total = sum(sizes)
    num = min(max_num, total)
    if num <= 0:
        return [0] * len(sizes)
    exact = [size * num / total for size in sizes]
    shares = [int(share) for share in exact]
    while sum(shares) < num:
        open_groups = [i for i in range(len(sizes)) if shares[i] < sizes[i]]
        shares[max(open_groups, key=lambda i: (shares[i] == 0, exact[i] - shares[i]))] += 1
    for group in [i for i in range(len(sizes)) if sizes[i] and not shares[i]]:
        largest = max(range(len(sizes)), key=shares.__getitem__)
        if shares[largest] > 1:
            shares[largest], shares[group] = shares[largest] - 1, 1
    return shares


def _status_codes(ids: pa.Array, records: Any) -> np.ndarray:
    """Return the status of each clip's record, as index in `STATUSES`."""
    places = pc.index_in(ids, value_set=records["clip_id"].combine_chunks())
    codes = pc.index_in(records["status"].combine_chunks(), value_set=pa.array(STATUSES[1:], pa.string()))
    return np.asarray(pc.add(codes.take(places), 1).fill_null(0)).astype(np.uint8)


def _verdicts(status_N: dict[str, np.ndarray]) -> np.ndarray:
    """Return the verdict that follows from the latest records: a failure, then a rejection, then how far a clip is."""

    def any_is(status: Status) -> np.ndarray:
        return np.any([codes_N == STATUSES.index(status) for codes_N in status_N.values()], axis=0)

    names = (
        (any_is("failed"), "failed"), (any_is("rejected"), "rejected"), (status_N["curate"] > 0, "accepted"),
        (status_N["generate"] == 0, "waiting"),
    )  # fmt: skip
    codes = [VERDICTS.index(name) for _, name in names]
    return np.select([holds for holds, _ in names], codes, VERDICTS.index("not judged")).astype(np.uint8)


def _sizes(run: RunFolder, ids: pa.Array) -> np.ndarray:
    file_ids, sizes_F = clip_sizes(run)
    places = pc.index_in(ids, value_set=file_ids)
    sizes = pa.array(sizes_F).take(places).fill_null(-1)
    is_plain = np.asarray(pc.match_substring_regex(ids, f"^{PLAIN_ID.pattern}$"))
    return np.where(is_plain, np.asarray(sizes), -1)


def _only(table: Any, ids: pa.Array) -> Any:
    return table.filter(pc.is_in(table["clip_id"], value_set=ids))
