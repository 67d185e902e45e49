"""Reading and writing `jobs.parquet`, and the clips of a run that came through every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from dreamgen.core.errors import UserError
from dreamgen.core.files import atomic_file
from dreamgen.core.journal import read_journal
from dreamgen.core.records import AcceptedClip, Job
from dreamgen.core.run_folder import RunFolder


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f.name for f in fields(Job)]
    try:
        return [Job(**row) for row in pq.read_table(path, columns=names).to_pylist()]
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
    jobs = read_jobs(run.need(run.jobs, "plan"))
    generated, labelled, verdicts = (read_journal(run.journal, s) for s in ("generate", "label", "curate"))
    if not verdicts:
        raise UserError("no clip has a verdict yet", next_step=f"dreamgen curate --out {run.root}")
    return [
        AcceptedClip(
            job=job,
            video=run.clip_file(job.clip_id),
            num_frames=int(generated[job.clip_id].figures["num_frames"]),
            label=run.label_file(job.clip_id),
            scores={**labelled[job.clip_id].figures, **verdicts[job.clip_id].figures},
            safety_checker=generated[job.clip_id].figures.get("safety_checker"),
        )
        for job in jobs
        if all(job.clip_id in r and r[job.clip_id].status == "ok" for r in (generated, labelled, verdicts))
    ]


def _schema():
    import pyarrow as pa

    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "str | None": pa.string()}
    return pa.schema([(f.name, kinds[f.type]) for f in fields(Job)])
