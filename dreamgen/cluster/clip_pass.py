"""One pass over generated clips for several stages: each clip is decoded once, in a worker, for all of them.

Few clips on a machine without a cluster are processed here, without Ray. Workers return records; only the driver
writes journals.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import cv2
import numpy as np
import torch

from dreamgen.cluster.actors import PoolWorker
from dreamgen.cluster.faults import is_gpu_fault
from dreamgen.cluster.options import PoolOptions
from dreamgen.cluster.pool import WorkerPool
from dreamgen.cluster.ray_cluster import ray_pool_size
from dreamgen.config.settings import LabelSettings, Settings
from dreamgen.cores import usable_cores
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.video import set_decoder_threads
from dreamgen.progress import Progress
from dreamgen.run.jobs import JobRows
from dreamgen.run.journal import Journal
from dreamgen.run.records import Job, JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

CLIPS_PER_WORKER = 32  # for fewer, a worker takes longer to start than it saves

type ProcessClip = Callable[[ClipContext], JournalRecord | None]


class ClipProcessor(Protocol):
    """What a stage does to one clip; sent to the workers, so it can be pickled."""

    def load(self, device: torch.device) -> ProcessClip:
        """Load what every clip needs and return the function that processes one.

        An error of one clip belongs into its record. None instead of a record leaves the clip out.
        """
        ...


class ClipStage(ABC):
    """The driver's part of a stage that works on one clip after another; as a context, it keeps its journal open.

    Args:
        run: The run folder.
        jobs: Jobs whose clips it wants.
        processor: The workers' part.
    """

    name: ClassVar[str]
    keeps_windows = False  # whether it reads `ClipContext.windows`, which are kept while another stage decodes the clip

    def __init__(self, run: RunFolder, jobs: JobRows, processor: ClipProcessor) -> None:
        self.run, self.jobs, self.processor, self._open = run, jobs, processor, ExitStack()

    def __enter__(self) -> Self:
        self._journal = self._open.enter_context(Journal(self.run.journal, self.name))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def start(self, job: Job) -> JournalRecord | None:
        """Take note of a clip that is about to be processed; called in the order of the jobs.

        Returns:
            What is known of the clip, for `ClipContext.previous`.
        """
        return None

    @abstractmethod
    def finish(self, job: Job, record: JournalRecord | None) -> None:
        """Write the outcome of a clip; called in the order in which clips are finished."""

    @abstractmethod
    def result(self) -> StageResult:
        """Return what was done; called after the last clip, outside the context."""


@dataclass(frozen=True)
class ClipTask:
    """One clip.

    Args:
        job: Its job.
        wanted: For each stage of the pass, whether it wants the clip.
        previous: What is known of the clip.
    """

    job: Job
    wanted: tuple[bool, ...]
    previous: JournalRecord | None = None

    @property
    def task_id(self) -> str:
        """Return the task id in the worker pool."""
        return self.job.clip_id


@dataclass(frozen=True)
class ClipOutcome(JournalRecord):
    """The outcome of a task; failed only if the worker's GPU is in an error state.

    Args:
        records: A record of each stage that wanted the clip, in the order of the stages.
    """

    records: tuple[JournalRecord | None, ...] = ()


@dataclass(frozen=True)
class ClipPass:
    """What a worker loads.

    Args:
        run: With an absolute root.
        processors: One for each stage.
        keeps_windows: As `ClipContext` takes it.
    """

    run: RunFolder
    processors: tuple[ClipProcessor, ...]
    keeps_windows: bool = False

    def load(self, device: torch.device) -> Callable[[ClipTask], ClipOutcome]:
        """Load the processors and return the function that does a task."""
        functions = [processor.load(device) for processor in self.processors]

        def do(task: ClipTask) -> ClipOutcome:
            clip = ClipContext(self.run, task.job, task.previous, self.keeps_windows)
            records = tuple(f(clip) for f, wanted in zip(functions, task.wanted, strict=True) if wanted)
            fault = next((record for record in records if record is not None and is_gpu_fault(record)), None)
            status, error = ("ok", None) if fault is None else ("failed", fault.error)
            return ClipOutcome(task.task_id, "clips", status, error=error, records=records)

        return do


class ClipWorker(PoolWorker):
    """Processes one clip at a time; Ray calls `load` first."""

    def __init__(self) -> None:
        super().__init__()
        self._busy = threading.Lock()

    def load(self, spec: ClipPass, num_threads: int, without_gpu: bool) -> None:
        """Load the processors, on the worker's GPU if Ray gave it one."""
        _limit_threads(num_threads)
        self._do = spec.load(torch.device("cpu" if without_gpu else "cuda"))

    def make(self, task: ClipTask) -> ClipOutcome | None:
        """Process a clip; None if the task was withdrawn before it began."""
        with self._busy:
            return None if self.is_withdrawn.is_set() else self._do(task)


def process_clips(settings: Settings, *stages: ClipStage) -> list[StageResult]:
    """Give each clip to the stages that want it, in their order.

    Args:
        settings: `label` says how many workers there are and what each one needs.
        stages: Stages of one run.

    Returns:
        Their results, in the same order.

    Raises:
        UserError: if there is no room for a worker, or one cannot load.
    """
    rows = np.unique(np.concatenate([np.asarray(stage.jobs.rows, np.int64) for stage in stages]))
    jobs = JobRows(stages[0].jobs.path, rows)
    keeps_windows = any(stage.keeps_windows for stage in stages)
    spec = ClipPass(stages[0].run.absolute(), tuple(stage.processor for stage in stages), keeps_windows)
    with ExitStack() as contexts:
        for stage in stages:
            contexts.enter_context(stage)
        name = " + ".join(stage.name for stage in stages)
        progress = contexts.enter_context(Progress(name, len(rows)))
        started: dict[str, ClipTask] = {}
        for outcome in _outcomes(settings, name, spec, len(rows), _tasks(jobs, stages, started)):
            task = started.pop(outcome.clip_id)
            records = _finish(stages, task, outcome)
            progress.add(
                rejected=int(any(record is not None and record.status == "rejected" for record in records)),
                failed=int(any(record is None or record.status == "failed" for record in records)),
            )
    return [stage.result() for stage in stages]


def _tasks(jobs: JobRows, stages: Sequence[ClipStage], started: dict[str, ClipTask]) -> Iterator[ClipTask]:
    wants = [np.isin(jobs.rows, stage.jobs.rows) for stage in stages]
    for number, job in enumerate(jobs):
        wanted = tuple(bool(rows[number]) for rows in wants)
        known = [stage.start(job) for stage, wants_it in zip(stages, wanted, strict=True) if wants_it]
        previous = next((record for record in known if record is not None), None)
        task = started[job.clip_id] = ClipTask(job, wanted, previous)
        yield task


def _finish(stages: Sequence[ClipStage], task: ClipTask, outcome: JournalRecord) -> list[JournalRecord | None]:
    wanting = [stage for stage, wanted in zip(stages, task.wanted, strict=True) if wanted]
    records: list[JournalRecord | None]
    if isinstance(outcome, ClipOutcome):
        records = list(outcome.records)
    else:  # its workers crashed
        records = [replace(outcome, stage=stage.name) for stage in wanting]
    for stage, record in zip(wanting, records, strict=True):
        stage.finish(task.job, record)
    return records


def _outcomes(
    settings: Settings, name: str, spec: ClipPass, num_clips: int, tasks: Iterator[ClipTask]
) -> Iterator[JournalRecord]:
    options = pool_options(settings.label, name, num_clips)
    device = settings.model.device if options.gpus_per_worker else "cpu"
    if options.num_workers == 1 and (settings.label.num_workers is None or not _is_on_cluster()):
        with _limited_threads(options.threads_per_worker):
            has_gpu = device != "cpu" and torch.cuda.is_available()
            yield from map(spec.load(torch.device("cuda" if has_gpu else "cpu")), tasks)
        return
    with (
        ray_pool_size(options, device) as size,
        WorkerPool(size, options, ClipWorker, spec, cost_of=lambda task: float(task.job.num_frames)) as pool,
    ):
        yield from pool.run(tasks, lambda: False)


def pool_options(settings: LabelSettings, name: str, num_clips: int) -> PoolOptions:
    """Return what the settings ask of the worker pool, and how many workers are worth their start.

    Args:
        settings: Settings of the workers.
        name: Name of the pass in log lines.
        num_clips: Clips to process.
    """
    num_workers = settings.num_workers
    if num_workers is None and (num_clips <= CLIPS_PER_WORKER or not _is_on_cluster()):
        num_workers = max(1, min(usable_cores(), num_clips // CLIPS_PER_WORKER))
    return PoolOptions(
        name,
        section="label",
        num_workers=num_workers,
        gpus_per_worker=settings.gpus_per_worker,
        cpus_per_worker=settings.cpus_per_worker,
        resources_per_worker=dict(settings.resources_per_worker),
        threads_per_worker=settings.threads_per_worker,
        fills_cpus=True,
        max_loading_per_node=None,  # each loads on its own core
    )


def _is_on_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def _limit_threads(num: int) -> None:
    torch.set_num_threads(num)
    cv2.setNumThreads(num)
    set_decoder_threads(num)


@contextmanager
def _limited_threads(num: int) -> Iterator[None]:
    """Use as many threads as a worker, as the number changes the rounding of what a model computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
