"""Reading and writing `jobs.parquet`, and the clips of a run that came through every stage."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.core.errors import UserError
from dreamgen.core.files import atomic_file
from dreamgen.core.journal import iter_journal
from dreamgen.core.records import AcceptedClip, Job
from dreamgen.core.run_folder import RunFolder

if TYPE_CHECKING:
    import sqlite3

STAGES_OF_A_CLIP = ("generate", "label", "curate")
JOBS_AT_ONCE = 1000


def write_jobs(path: Path, jobs: Sequence[Job]) -> None:
    """Write jobs as parquet, one row a clip, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(job) for job in jobs], schema=_schema())
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def read_jobs(path: Path) -> list[Job]:
    """Read the jobs of a run, in planned order.

    Raises:
        UserError: if the file is not a jobs table.
    """
    return list(iter_jobs(path))


def iter_jobs(path: Path) -> Iterator[Job]:
    """Yield what `read_jobs` reads, a thousand rows at a time.

    Raises:
        UserError: if the file is not a jobs table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f.name for f in fields(Job)]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(JOBS_AT_ONCE, columns=names):
                yield from (Job(**row) for row in batch.to_pylist())
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a jobs table", actual=f"{error}"[:200],
            next_step=f"remove {path} and run dreamgen plan again; clips that are done are found by their ids",
        ) from None  # fmt: skip


def accepted_clips(run: RunFolder) -> list[AcceptedClip]:
    """Collect the clips that were generated, labelled and accepted, in planned order.

    Raises:
        UserError: if jobs or verdicts are missing.
    """
    return list(iter_accepted_clips(run))


def iter_accepted_clips(run: RunFolder) -> Iterator[AcceptedClip]:
    """Yield what `accepted_clips` collects, in memory that does not grow with their number.

    The journal's latest records are looked up in a database in a temporary file.

    Raises:
        UserError: if jobs or verdicts are missing.
    """
    import sqlite3

    run.need(run.jobs, "plan")
    with (
        tempfile.TemporaryDirectory(prefix="dreamgen-") as folder,
        closing(sqlite3.connect(Path(folder) / "records")) as records,
    ):
        records.executescript(
            "pragma journal_mode = off; pragma synchronous = off; create table latest"
            " (key text primary key, time_s real, is_ok integer, figures text) without rowid;"
        )
        num_verdicts = [_keep_latest(records, run, stage) for stage in STAGES_OF_A_CLIP][-1]
        if not num_verdicts:
            raise UserError("no clip has a verdict yet", next_step=f"dreamgen curate --out {run.root}")
        for job in iter_jobs(run.jobs):
            keys = [f"{stage} {job.clip_id}" for stage in STAGES_OF_A_CLIP]
            found = dict(records.execute("select key, figures from latest where is_ok and key in (?, ?, ?)", keys))
            if len(found) == len(keys):
                yield _accepted(run, job, *(json.loads(found[key]) for key in keys))


def _keep_latest(records: sqlite3.Connection, run: RunFolder, stage: str) -> int:
    rows = (
        (f"{stage} {r.clip_id}", r.time_s, r.status == "ok", json.dumps(r.figures))
        for r in iter_journal(run.journal, stage)
    )
    done = records.executemany(
        "insert into latest values (?, ?, ?, ?) on conflict (key) do update set time_s = excluded.time_s,"
        " is_ok = excluded.is_ok, figures = excluded.figures where excluded.time_s >= latest.time_s",
        rows,
    )
    return done.rowcount


def _accepted(run: RunFolder, job: Job, generated: dict, labelled: dict, verdict: dict) -> AcceptedClip:
    return AcceptedClip(
        job=job,
        video=run.clip_file(job.clip_id),
        num_frames=int(generated["num_frames"]),
        label=run.label_file(job.clip_id),
        scores={**labelled, **verdict},
        safety_checker=generated.get("safety_checker"),
    )


def _schema():
    import pyarrow as pa

    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "str | None": pa.string()}
    return pa.schema([(f.name, kinds[f.type]) for f in fields(Job)])
