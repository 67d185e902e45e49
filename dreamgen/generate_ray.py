"""Jobs -> clips on Ray: the stage. The driver alone writes the journal, so a record is whole or absent.

A run starts Ray on this machine, unless RAY_ADDRESS names a cluster; every node then needs this package and sees the
run folder at the same path.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dreamgen.core.errors import UserError
from dreamgen.core.jobs import read_jobs
from dreamgen.core.journal import Journal, read_journal
from dreamgen.core.progress import Progress, duration
from dreamgen.core.records import Job, JournalRecord, StageResult
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.generate import STAGE, mean_figure, remove_stale_temporaries, todo
from dreamgen.generate_cluster import ray_pool_size
from dreamgen.generate_pool import ClipPool
from dreamgen.generate_texts import PromptTask, prompt_tasks
from dreamgen.generate_worker import Dreamer, Load, adapter_of
from dreamgen.models.adapter import is_full
from dreamgen.models.adapter_choice import AdapterChoice, adapter_of_job, check_choice_fits
from dreamgen.models.world import WorldModelSource, empty_transformer, resolve_world_model

NUM_FAILURES_SHOWN = 3
GIVE_UP_AFTER = 10
NUM_PROMPTS_SHOWN = 3


def generate(settings: Settings, dry_run: bool = False) -> StageResult:
    """Make the clips that are planned and not done.

    Args:
        settings: `generate` and `model` are used; what a clip is like stands in its job.
        dry_run: Write nothing; count, and estimate disk and time from the clips that this run has made.

    Returns:
        Counts over all jobs. `partial` if clips failed or Ctrl-C stopped the run, `figures["interrupted"]` then.

    Raises:
        UserError: if nothing is planned, or the model, its adapter or a worker's share of the machine cannot be had.
    """
    run = RunFolder.of(settings)
    jobs = read_jobs(run.need(run.jobs, "plan"))
    left = todo(run, jobs)
    if dry_run:
        return _preview(run, jobs, left)
    if not left:
        return _result(run, jobs, ["nothing was left to do"])
    source = _source_of(settings, run)
    choices = adapters_of(run, left)
    fitting = [job for job in left if _fits(job, source, settings.model.dtype) and job.adapter_sha256 in choices]
    if not fitting:
        raise _planned_for_another_model(left, source, run)
    for choice in filter(None, choices.values()):
        check_choice_fits(empty_transformer(source), choice)

    remove_stale_temporaries(run)
    wanted = fitting if settings.generate.limit is None else fitting[: max(0, settings.generate.limit)]
    full = frozenset(sha256 for sha256, choice in choices.items() if choice and is_full(choice.parts[0][0]))
    texts = prompt_tasks(run, wanted, full)
    what = Load(
        source, settings.model, RunFolder(run.root.resolve()),
        several_adapters=len({job.adapter_sha256 for job in wanted}) > 1, compiled=settings.generate.compile,
    )  # fmt: skip
    with (
        Journal(run.journal, STAGE) as journal,
        first_interrupt_stops() as stopped,
        ray_pool_size(settings.generate, settings.model.device) as size,
        ClipPool(size, settings.generate, Dreamer, what, adapter_of) as pool,
    ):
        encode_texts(pool, texts, stopped)
        statuses: list[str] = []
        with Progress(STAGE, len(wanted)) as progress:
            for record in pool.make_clips(wanted, lambda: stopped() or all_failed(statuses)):
                journal.append(record)
                statuses.append(record.status)
                progress.add(rejected=record.status == "rejected", failed=record.status == "failed")
        was_interrupted = stopped()

    notes = []
    if len(fitting) < len(left):
        notes.append(
            f"{len(left) - len(fitting)} jobs were planned for another model, adapter or precision and were left out"
        )
    if pool.num_swaps:
        notes.append(f"workers changed their adapter {pool.num_swaps} times")
    if all_failed(statuses):
        notes.append(f"the first {len(statuses)} clips all failed, so no more were begun")
    if was_interrupted:
        notes.append(f"stopped by Ctrl-C; go on with:  dreamgen generate --out {run.root}")
    return _result(run, jobs, notes, was_interrupted)


def all_failed(statuses: Sequence[str]) -> bool:
    """Say whether so many clips failed, and none came out, that what is wrong is wrong with all of them."""
    return len(statuses) >= GIVE_UP_AFTER and set(statuses) == {"failed"}


@contextmanager
def first_interrupt_stops() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; the second one interrupts as usual.

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed = threading.Event()

    def handle(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        # Not print: a signal may arrive inside of one.
        os.write(2, b"\nCtrl-C: the clips in hand are finished, then the run stops. Once more to stop at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def encode_texts(pool: ClipPool, tasks: Sequence[PromptTask], stopped: Callable[[], bool]) -> None:
    """Have the workers encode the prompts that are not there yet; a prompt that cannot be encoded stops the run.

    Raises:
        UserError: with what the first failed one says.
    """
    with Progress("generate: texts", len(tasks)) as progress:
        for record in pool.make_clips(tasks, stopped):
            progress.add(failed=record.status == "failed")
            if record.status == "failed":
                raise UserError("a prompt could not be encoded", actual=record.error, next_step="dreamgen doctor")


def adapters_of(run: RunFolder, jobs: Sequence[Job]) -> dict[str | None, AdapterChoice | None]:
    """Find the adapters that jobs name; one that is gone, or is no longer the one that was planned for, is left out.

    Returns:
        Hash, as jobs carry it -> choice; None for the base model.
    """
    choices: dict[str | None, AdapterChoice | None] = {}
    for sha256, job in {job.adapter_sha256: job for job in jobs}.items():
        try:
            choice = adapter_of_job(job, run)
        except UserError:
            continue
        if (choice and choice.sha256) == sha256:
            choices[sha256] = choice
    return choices


def _source_of(settings: Settings, run: RunFolder) -> WorldModelSource:
    source = resolve_world_model(settings.model, run)
    if Path(source.path).is_dir():
        source = replace(source, path=str(Path(source.path).resolve()))  # workers have a folder of their own
    return source


def _fits(job: Job, source: WorldModelSource, dtype: str) -> bool:
    return (job.model_sha256, job.dtype) == (source.sha256, dtype)


def _planned_for_another_model(left: Sequence[Job], source: WorldModelSource, run: RunFolder) -> UserError:
    job = left[0]
    with_adapter = f"the adapter {job.adapter} ({job.adapter_sha256[:12]})" if job.adapter_sha256 else "no adapter"
    return UserError(
        "the jobs were planned for another model, adapter or precision",
        actual=f"planned: {job.model} with {with_adapter}, {job.dtype}; now: {source.name}",
        allowed="the model and adapter that the jobs name, as they were",
        next_step=f"dreamgen plan --out {run.root}   (it adds jobs for the model as it is now)",
    )


def _counts(run: RunFolder, jobs: Sequence[Job], left: Sequence[Job]) -> dict[str, int]:
    records, left_ids = read_journal(run.journal, STAGE), {job.clip_id for job in left}
    statuses = [records[job.clip_id].status for job in jobs if job.clip_id not in left_ids]
    num_failed = sum(records[clip_id].status == "failed" for clip_id in left_ids & set(records))
    return {
        "num_jobs": len(jobs),
        "num_done": statuses.count("ok"),
        "num_rejected": statuses.count("rejected"),
        "num_failed": num_failed,
        "num_left": len(left) - num_failed,
    }


def _result(run: RunFolder, jobs: Sequence[Job], notes: Sequence[str], was_interrupted: bool = False) -> StageResult:
    records = read_journal(run.journal, STAGE)
    figures = _counts(run, jobs, todo(run, jobs)) | ({"interrupted": True} if was_interrupted else {})
    failed = [records[job.clip_id] for job in jobs if _status(records, job) == "failed"]
    rejected = [records[job.clip_id] for job in jobs if _status(records, job) == "rejected"]
    notes = [
        *notes,
        *(f"rejected: {record.clip_id}: {record.reason}" for record in rejected[:NUM_FAILURES_SHOWN]),
        *(f"failed: {record.clip_id}: {record.error}" for record in failed[:NUM_FAILURES_SHOWN]),
    ]
    if failed:
        notes.append(
            f"{len(failed)} clips failed; {run.journal} has their tracebacks; the same command tries them again"
        )
    outputs = {"clips": run.clips, "journal": run.journal}
    return StageResult(STAGE, outputs, figures, notes, partial=was_interrupted or bool(failed))


def _status(records: dict[str, JournalRecord], job: Job) -> str | None:
    return records[job.clip_id].status if job.clip_id in records else None


def _preview(run: RunFolder, jobs: Sequence[Job], left: Sequence[Job]) -> StageResult:
    figures, notes = _counts(run, jobs, left), []
    made = [record for record in read_journal(run.journal, STAGE).values() if record.status == "ok"]
    if made:
        clip_s = mean_figure(made, "dream_s", "encode_s")
        figures["disk_gib"] = round(mean_figure(made, "num_bytes") * len(left) / 2**30, 3)
        figures[f"{made[-1].figures['device']}_hours"] = round(clip_s * len(left) / 3600, 3)
        notes.append(f"from {len(made)} clips of this run: {duration(clip_s)} a clip on one worker")
    else:
        notes.append(
            "disk and GPU hours are not known before a clip is made; "
            f"measure one with:  dreamgen generate --out {run.root} --generate.limit 1"
        )
    prompts = dict.fromkeys(job.prompt for job in left)
    notes.extend(f"prompt: {prompt[:300]}" for prompt in list(prompts)[:NUM_PROMPTS_SHOWN])
    return StageResult(STAGE, {}, figures, [*notes, "dry run: nothing was written"])
