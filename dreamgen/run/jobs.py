"""Reading and writing `jobs.parquet` in batches, and the clips that passed every stage.

The file stores repeated texts once. No more than a few thousand jobs are held in memory as objects; a caller may also
read whole columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamgen.errors import UserError, quoted
from dreamgen.run.files import atomic_file
from dreamgen.run.journal import latest_records, records_of
from dreamgen.run.records import AcceptedClip, Job, JournalRecord, stored_name
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np

BATCH = 4096  # jobs in memory as objects
REJECTIONS = "reject"  # journal of the clips that a person rejected
ROW_GROUP = 2**16
CLIP_FOLDERS = tuple(f"{number:02x}" for number in range(256))
FIELDS = tuple(f.name for f in fields(Job))
COLUMNS = tuple(map(stored_name, FIELDS))


def write_jobs(path: Path, jobs: Iterable[Job]) -> None:
    """Write jobs as parquet, one row per clip, atomically."""
    import pyarrow as pa

    remaining = iter(jobs)

    def tables() -> Iterator[Any]:
        while batch := list(itertools.islice(remaining, BATCH)):
            yield pa.Table.from_pylist([_as_row(job) for job in batch], schema=job_schema())

    write_job_tables(path, tables())


def write_job_tables(path: Path, tables: Iterable[Any]) -> None:
    """Write tables with the columns of `Job` to one file, in order, atomically."""
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, job_schema(), compression="zstd") as writer:
        held: list[Any] = []
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= ROW_GROUP:
                _write_held(writer, held)
                held = []
        _write_held(writer, held)


def iter_job_tables(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Any]:
    """Read a jobs table in batches, in planned order.

    Yields:
        pyarrow.Table with the named columns.

    Raises:
        UserError: if the file is not a jobs table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damage_as_user_error(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))


def job_columns(path: Path, columns: Sequence[str]) -> Any:
    """Read some columns of all jobs; repeated texts are dictionary-encoded.

    Returns:
        pyarrow.Table in planned order.

    Raises:
        UserError: if the file is not a jobs table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [name for name in columns if pa.types.is_string(job_schema().field(name).type) and name != "clip_id"]
    with _damage_as_user_error(path):
        return pq.read_table(path, columns=list(columns), read_dictionary=texts).select(list(columns))


def read_jobs(path: Path) -> list[Job]:
    """Read all jobs of a run, in planned order.

    Raises:
        UserError: if the file is not a jobs table.
    """
    return list(iter_jobs(path))


def iter_jobs(path: Path, rows: np.ndarray | None = None) -> Iterator[Job]:
    """Iterate over jobs in planned order.

    Args:
        path: The jobs table.
        rows: Indices of the rows to read, int64, ascending; all if not given.

    Raises:
        UserError: if the file is not a jobs table.
    """
    import numpy as np

    begin = 0
    for table in iter_job_tables(path):
        if rows is not None:
            wanted = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, begin + len(table))]
            begin += len(table)
            table = table.take(np.asarray(wanted, np.int64) - (begin - len(table)))
        for start in range(0, len(table), BATCH):
            values = table.slice(start, BATCH).to_pydict()
            with _damage_as_user_error(path):
                yield from (Job(**dict(zip(FIELDS, row, strict=True))) for row in zip(*values.values(), strict=True))


@dataclass(frozen=True)
class JobRows:
    """A selection of a run's jobs, read from disk during iteration.

    Args:
        path: The jobs table.
        rows: Indices of the selected rows, int64, ascending.
    """

    path: Path
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Job]:
        return iter_jobs(self.path, self.rows)

    def where(self, keep: Any) -> JobRows:
        """Select the jobs for which `keep`, bool of the same length, is true."""
        return JobRows(self.path, self.rows[keep])

    def first(self, num: int) -> JobRows:
        """Select the first `num` jobs."""
        return JobRows(self.path, self.rows[:num])

    def is_one_of(self, column: str, values: Iterable[Any]) -> Any:
        """Return for each job whether a text column has one of the values (None matches null): bool, one per job."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        values = list(values)
        texts = job_columns(self.path, [column])[column].take(self.rows).combine_chunks()
        known = np.asarray(pc.is_in(texts.dictionary, value_set=pa.array(values, pa.string())))
        return np.append(known, None in values)[np.asarray(texts.indices.fill_null(len(known)))]

    def distinct(self, columns: Sequence[str]) -> JobRows:
        """Select the first job of each distinct combination of values."""
        import numpy as np

        table, numbers = job_columns(self.path, columns), np.zeros(len(self), np.int64)
        for name in columns:
            codes = table[name].take(self.rows).combine_chunks()
            codes = codes if hasattr(codes, "dictionary") else codes.dictionary_encode()
            values = np.asarray(codes.indices.fill_null(-1), np.int64) + 1
            numbers = np.unique(numbers * (values.max(initial=0) + 1) + values, return_inverse=True)[1]
        return JobRows(self.path, self.rows[np.sort(np.unique(numbers, return_index=True)[1])])


def generated_jobs(run: RunFolder, stage: str) -> JobRows:
    """Select the jobs whose clips were generated, according to the journal, for a stage that works on clips.

    Raises:
        UserError: if nothing is planned or generated.
    """
    import numpy as np

    ids = job_columns(run.need(run.jobs, "plan"), ["clip_id"])["clip_id"]
    rows = np.flatnonzero(_is_ok(ids, latest_records(run.journal, "generate", ("status",))))
    if not len(rows):
        command = f"dreamgen generate --out {quoted(run.root)}"
        raise UserError(f"{run.root} has no generated clip to {stage}", next_step=command)
    return JobRows(run.jobs, rows)


def with_records(jobs: JobRows, run: RunFolder, stage: str) -> Iterator[tuple[Job, JournalRecord | None]]:
    """Iterate over jobs and their latest records of a stage; only a few thousand are in memory as objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = latest_records(run.journal, stage)
    for batch in itertools.batched(jobs, BATCH):
        ids = pa.array([job.clip_id for job in batch], pa.string())
        records = {r.clip_id: r for r in records_of(table.filter(pc.is_in(table["clip_id"], value_set=ids)))}
        yield from ((job, records.get(job.clip_id)) for job in batch)


def clip_sizes(run: RunFolder) -> tuple[Any, np.ndarray]:
    """List the files of the clips.

    Returns:
        Clip ids (pyarrow.Array), and their sizes in bytes, int64.
    """
    import numpy as np
    import pyarrow as pa

    names: list[str] = []
    sizes: list[int] = []
    for _, found in run.clip_store.sizes_in(CLIP_FOLDERS):
        clips = [(name[:-4], size) for name, size in found.items() if name.endswith(".mp4") and name[0] != "."]
        names += [name for name, _ in clips]
        sizes += [size for _, size in clips]
    return pa.array(names, pa.string()), np.array(sizes, np.int64)


def accepted_clips(run: RunFolder) -> list[AcceptedClip]:
    """Collect the clips that were generated, labeled and accepted, in planned order.

    Raises:
        UserError: if jobs or verdicts are missing.
    """
    return list(iter_accepted_clips(run))


def iter_accepted_clips(run: RunFolder) -> Iterator[AcceptedClip]:
    """Yield the clips of `accepted_clips`; the journals are in memory as columns only.

    Raises:
        UserError: if jobs or verdicts are missing.
    """
    import numpy as np
    import pyarrow.compute as pc

    ids = job_columns(run.need(run.jobs, "plan"), ["clip_id"])["clip_id"]
    tables = [latest_records(run.journal, stage) for stage in ("generate", "label", "curate")]
    if not len(tables[2]):
        raise UserError("no clip has a verdict yet", next_step=f"dreamgen curate --out {quoted(run.root)}")
    is_accepted = np.ones(len(ids), bool)
    for table in tables:
        is_accepted &= _is_ok(ids, table)
    by_hand = latest_records(run.journal, REJECTIONS)
    rejected = by_hand.filter(pc.equal(by_hand["status"], "rejected"))["clip_id"].combine_chunks()
    is_accepted &= ~np.asarray(pc.is_in(ids, value_set=rejected))
    rows = np.flatnonzero(is_accepted)
    for begin in range(0, len(rows), BATCH):
        some = ids.take(rows[begin : begin + BATCH]).combine_chunks()
        generated, labeled, verdicts = (
            {r.clip_id: r for r in records_of(table.filter(pc.is_in(table["clip_id"], value_set=some)))}
            for table in tables
        )
        for job in iter_jobs(run.jobs, rows[begin : begin + BATCH]):
            made = generated[job.clip_id].metrics
            yield AcceptedClip(
                job=job,
                video=run.clip_file(job.clip_id),
                num_frames=int(made["num_frames"]),
                label=run.label_file(job.clip_id),
                scores={**labeled[job.clip_id].metrics, **verdicts[job.clip_id].metrics},
                safety_checker=made.get("safety_checker"),
            )


def _is_ok(ids: Any, records: Any) -> Any:
    import numpy as np
    import pyarrow.compute as pc

    ok = records.filter(pc.equal(records["status"], "ok"))["clip_id"]
    return np.asarray(pc.is_in(ids, value_set=ok.combine_chunks()))


def job_schema() -> Any:
    """Return the pyarrow schema of a jobs table."""
    import pyarrow as pa

    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "str | None": pa.string()}
    return pa.schema([(stored_name(f.name), kinds[str(f.type)]) for f in fields(Job)])


def _as_row(job: Job) -> dict[str, Any]:
    return {stored_name(name): value for name, value in asdict(job).items()}


def _write_held(writer: Any, held: list[Any]) -> None:
    import pyarrow as pa

    if held:
        writer.write_table(pa.concat_tables(held).cast(job_schema()), row_group_size=ROW_GROUP)


@contextmanager
def _damage_as_user_error(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a jobs table", actual=f"{error}"[:200],
            next_step=f"remove {path} and run dreamgen plan again; clips that are done are found by their ids",
        ) from None  # fmt: skip
