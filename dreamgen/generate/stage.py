"""Jobs -> clips on Ray. Only the driver writes the journal, so a record is whole or absent.

A run starts Ray on this machine unless RAY_ADDRESS names a cluster, whose nodes then need this package and must see the
run folder at the same path.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.pool import WorkerPool
from dreamgen.cluster.ray_cluster import ray_pool_size
from dreamgen.config.settings import GenerateSettings, Settings
from dreamgen.errors import UserError, quoted
from dreamgen.generate.clip_seconds import known_seconds
from dreamgen.generate.clip_status import (
    FAILED,
    REJECTED,
    STAGE,
    RunStatus,
    clip_status,
    mean_metric,
    remove_half_written,
)
from dreamgen.generate.texts import TEXT_FIELDS, PromptTask, prompt_tasks
from dreamgen.generate.worker import GenerationWorker, LoadSpec, adapter_of
from dreamgen.models.adapter_choice import AdapterChoice, adapter_of_job
from dreamgen.models.world_model import WorldModelSource, resolve_world_model
from dreamgen.progress import Progress, duration
from dreamgen.run.jobs import JobRows
from dreamgen.run.journal import Journal, latest_records, records_of
from dreamgen.run.lease import hold
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.shard import Shard

NUM_FAILURES_SHOWN = 3
GIVE_UP_AFTER = 10
NUM_PROMPTS_SHOWN = 3
NUM_CLIPS_MEASURED = 1000


def generate(settings: Settings, dry_run: bool = False) -> StageResult:
    """Make the clips that are planned and not done yet.

    Args:
        settings: `generate` and `model` are used; the jobs hold everything that determines a clip.
        dry_run: Write nothing; count, and estimate disk and time from the clips that this run has made.

    Returns:
        Counts over all jobs. `partial` if clips failed or Ctrl-C stopped the run; then `metrics["interrupted"]` is set.

    Raises:
        UserError: if nothing is planned, or the model, its adapter or the workers' resources are not available.
    """
    run, shard = RunFolder.of(settings, may_be_remote=True), Shard.parse(settings.generate.shard)
    run.need(run.jobs, "plan")
    if dry_run:
        return _preview(run, clip_status(run, shard), settings.generate)
    with hold(run.journal, STAGE, shard) as is_lost:
        return _generate(settings, run, shard, is_lost)


def _generate(settings: Settings, run: RunFolder, shard: Shard, is_lost: Callable[[], bool]) -> StageResult:
    left = clip_status(run, shard).left
    if not len(left):
        return _result(run, shard, ["nothing was left to do"])
    source = _source_of(settings, run)
    choices = adapters_of(run, left.distinct(["adapter", "adapter_sha256"]))
    fitting = left.where(_fits(left, source, settings.model.dtype, choices))
    if not len(fitting):
        raise _planned_for_another_model(next(iter(left)), source, run)
    folders = [folder for choice in choices.values() if choice for folder in choice.folders]
    if folders:
        source.load_class().check_adapters(source, folders)

    remove_half_written(run)
    wanted = fitting if settings.generate.limit is None else fitting.first(settings.generate.limit)
    full = frozenset(choice.sha256 for choice in choices.values() if choice and choice.holds_all_weights)
    texts = prompt_tasks(run, wanted.distinct(TEXT_FIELDS), full)
    spec = LoadSpec(
        source, settings.model, run.absolute(),
        several_adapters=len(wanted.distinct(["adapter_sha256"])) > 1, compiled=settings.generate.compile,
    )  # fmt: skip
    options = pool_options(settings.generate)
    with (
        Journal(run.journal, STAGE) as journal,
        first_interrupt_stops() as stopped,
        ray_pool_size(options, settings.model.device) as size,
        WorkerPool(size, options, GenerationWorker, spec, adapter_of, cost_of) as pool,
    ):
        encode_texts(pool, texts, stopped)
        with Progress(STAGE, len(wanted)) as progress:
            for record in pool.run(wanted, lambda: stopped() or is_lost() or all_failed(progress)):
                _count(progress, journal.add(record))
            _count(progress, journal.flush())
        was_interrupted = stopped()

    notes = []
    if len(fitting) < len(left):
        notes.append(
            f"{len(left) - len(fitting)} jobs were planned for another model, adapter or precision and were left out"
        )
    if pool.num_group_changes:
        notes.append(f"workers changed their adapter {pool.num_group_changes} times")
    if all_failed(progress):
        notes.append(f"the first {progress.failed} clips all failed, so no more were started")
    if is_lost():
        notes.append("another driver took over these clips, as this one seemed dead; no more were started here")
    if was_interrupted:
        notes.append(f"stopped by Ctrl-C; continue with:  dreamgen generate --out {quoted(run)}{_shard_option(shard)}")
    return _result(run, shard, notes, was_interrupted, is_lost())


def pool_options(settings: GenerateSettings) -> PoolOptions:
    """Return what the settings ask of the worker pool."""
    return PoolOptions(
        STAGE,
        num_workers=settings.num_workers,
        gpus_per_worker=settings.gpus_per_worker,
        cpus_per_worker=settings.cpus_per_worker,
        resources_per_worker=dict(settings.resources_per_worker),
        threads_per_worker=settings.threads_per_worker,
        max_attempts=settings.max_attempts,
        task_limit_s=settings.clip_limit_s,
    )


def cost_of(task: Job | PromptTask) -> float:
    """Return what a task's time is proportional to: frames times denoising steps; 1 for a prompt."""
    return float(task.num_frames * task.num_inference_steps) if isinstance(task, Job) else 1.0


def all_failed(progress: Progress) -> bool:
    """Return whether so many clips failed, and none succeeded, that the cause must affect all of them."""
    return progress.done >= GIVE_UP_AFTER and progress.failed == progress.done


def _count(progress: Progress, synced: Sequence[JournalRecord]) -> None:
    for record in synced:
        progress.add(rejected=record.status == "rejected", failed=record.status == "failed")


def _shard_option(shard: Shard) -> str:
    return f" --shard {shard}" if shard.count > 1 else ""


@contextmanager
def first_interrupt_stops() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; the second one interrupts as usual, and so does SIGTERM.

    Yields:
        A function that returns whether Ctrl-C was pressed.
    """
    pressed = threading.Event()

    def handle(number: int, *_: object) -> None:
        if pressed.is_set() or number == signal.SIGTERM:
            raise KeyboardInterrupt
        pressed.set()
        # Not print: a signal may arrive inside of one.
        os.write(2, b"\nCtrl-C: clips in progress are finished, then the run stops. Press again to stop at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def encode_texts(pool: WorkerPool, tasks: Sequence[PromptTask], stopped: Callable[[], bool]) -> None:
    """Have the workers encode the missing prompts; a prompt that cannot be encoded stops the run.

    Raises:
        UserError: with the error of the first prompt that failed.
    """
    with Progress("generate: texts", len(tasks)) as progress:
        for record in pool.run(tasks, stopped):
            progress.add(failed=record.status == "failed")
            if record.status == "failed":
                raise UserError("a prompt could not be encoded", actual=record.error, next_step="dreamgen doctor")


def adapters_of(run: RunFolder, jobs: Iterable[Job]) -> dict[str | None, AdapterChoice | None]:
    """Find the adapters that jobs name, without those that are missing or changed since they were planned.

    Returns:
        Hash, as jobs store it -> choice; None for the base model.
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
        source = replace(source, path=str(Path(source.path).resolve()))  # workers run in another folder
    return source


def _fits(jobs: JobRows, source: WorldModelSource, dtype: str, choices: Collection[str | None]) -> Any:
    fits_model = jobs.is_one_of("model_sha256", [source.sha256]) & jobs.is_one_of("dtype", [dtype])
    return fits_model & jobs.is_one_of("adapter_sha256", choices)


def _planned_for_another_model(job: Job, source: WorldModelSource, run: RunFolder) -> UserError:
    with_adapter = f"the adapter {job.adapter} ({job.adapter_sha256[:12]})" if job.adapter_sha256 else "no adapter"
    return UserError(
        "the jobs were planned for another model, adapter or precision",
        actual=f"planned: {job.model} with {with_adapter}, {job.dtype}; now: {source.name}",
        allowed="the model and adapter that the jobs name, as they were",
        next_step=f"dreamgen plan --out {quoted(run)}   (it adds jobs for the model as it is now)",
    )


def _result(
    run: RunFolder, shard: Shard, notes: Sequence[str], was_interrupted: bool = False, was_lost: bool = False
) -> StageResult:
    now = clip_status(run, shard)
    metrics = now.counts() | ({"interrupted": True} if was_interrupted else {})
    notes = [*notes, *_first_reasons(run, now, REJECTED, "rejected"), *_first_reasons(run, now, FAILED, "failed")]
    if metrics["num_failed"]:
        notes.append(
            f"{metrics['num_failed']} clips failed; {run.journal} has their tracebacks; the same command retries them"
        )
    outputs = {"clips": run.shown(run.clips), "journal": run.journal}
    is_partial = was_interrupted or bool(metrics["num_failed"]) or (was_lost and len(now.left) > 0)
    return StageResult(STAGE, outputs, metrics, notes, partial=is_partial)


def _first_reasons(run: RunFolder, now: RunStatus, state: int, word: str) -> list[str]:
    jobs = list(now.jobs.where(now.states_N == state).first(NUM_FAILURES_SHOWN))
    if not jobs:
        return []
    table = latest_records(run.journal, STAGE, ("reason", "error"))
    rows = table.filter(pc.is_in(table["clip_id"], value_set=pa.array([job.clip_id for job in jobs]))).to_pylist()
    reason_of = {row["clip_id"]: row["reason"] or row["error"] for row in rows}
    return [f"{word}: {job.clip_id}: {reason_of[job.clip_id]}" for job in jobs]


def _preview(run: RunFolder, now: RunStatus, settings: GenerateSettings) -> StageResult:
    metrics: dict[str, Any] = {**now.counts()}
    notes: list[str] = []
    left = now.left
    made = _made_last(run)
    clip_s, num_bytes = mean_metric(made, "dream_s", "encode_s"), mean_metric(made, "num_bytes")
    if clip_s is not None and num_bytes is not None:
        metrics["disk_gib"] = round(num_bytes * len(left) / 2**30, 3)
        metrics[f"{made[-1].metrics['device']}_hours"] = round(clip_s * len(left) / 3600, 3)
        notes.append(f"from {len(made)} clips of this run: {duration(clip_s)} a clip on one worker")
    if settings.clips_per_gpu_hour is not None:
        metrics["gpu_hours"] = round(len(left) / settings.clips_per_gpu_hour, 3)
        notes.append(f"gpu_hours at {settings.clips_per_gpu_hour:g} clips an hour, as set")
    elif not made:
        known = known_seconds(left)
        if known is not None:
            metrics["gpu_hours"] = round(known[0] / 3600, 3)
            notes.append(f"gpu_hours from clips measured on one {known[1]}; other GPUs differ")
        unknown = "disk and GPU hours are" if known is None else "disk is"
        notes.append(
            f"{unknown} not known before a clip is made; "
            f"measure one with:  dreamgen generate --out {quoted(run)} --generate.limit 1, or set --clips_per_gpu_hour"
        )
    prompts = [job.prompt for job in left.distinct(["prompt"]).first(NUM_PROMPTS_SHOWN)]
    notes.extend(f"prompt: {prompt[:300]}" for prompt in prompts)
    return StageResult(STAGE, {}, metrics, [*notes, "dry run: nothing was written"])


def _made_last(run: RunFolder) -> list[JournalRecord]:
    table = latest_records(run.journal, STAGE)
    made = table.filter(pc.equal(table["status"], "ok")).sort_by("time_s")
    return records_of(made.slice(max(0, len(made) - NUM_CLIPS_MEASURED)))
