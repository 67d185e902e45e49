"""A fixed pool of Ray actors that each hold one model: hands out jobs, tries again what failed, replaces what died."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray
import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from dreamgen.core.environment import DEFAULTS
from dreamgen.core.errors import UserError
from dreamgen.core.progress import log
from dreamgen.core.records import Job, JournalRecord
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import GenerateSettings, ModelSettings
from dreamgen.generate import STAGE
from dreamgen.generate_clip import encode_prompt, make_clip
from dreamgen.generate_cluster import PoolSize
from dreamgen.generate_maker import ClipMaker
from dreamgen.generate_texts import PromptTask
from dreamgen.models.world import WorldModelSource, drop_text_encoder, load_text_encoder, load_world_model

# What Ray raises when a process or a node is gone; an error of our own code is a RayTaskError.
DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
WAIT_S = 0.5


@dataclass(frozen=True)
class Load:
    """What every worker loads.

    Args:
        source: The world model; a folder's path is absolute.
        model: Precision, device and guardrail.
        run: With an absolute root.
        several_adapters: Whether the jobs ask for more than one.
        compiled: Compile the transformer's blocks where there is a GPU.
    """

    source: WorldModelSource
    model: ModelSettings
    run: RunFolder
    several_adapters: bool
    compiled: bool


class Dreamer:
    """The actor: loads once, then encodes a prompt or makes a clip at a time."""

    def load(self, what: Load, num_threads: int, without_gpu: bool) -> None:
        """Load the model; a worker that Ray gave no GPU stays off the GPUs that it can see.

        Raises:
            UserError: as `load_world_model` does, or if the GPU has no room for the model.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; the clip in hand is finished
        torch.set_num_threads(num_threads)
        device = torch.device("cpu") if without_gpu else None
        self.what = what
        with _room_for_the_model():
            pipe = load_world_model(what.source, what.model, device=device, text_encoder=False)
        compiled = what.compiled and pipe.device.type == "cuda"
        self.maker = ClipMaker(pipe, what.run, what.several_adapters, compiled)

    def make(self, task: Job | PromptTask) -> JournalRecord:
        """Encode a prompt or make a clip, and say how it went. All prompts come before the first clip."""
        pipe = self.maker.pipe
        if isinstance(task, Job):
            if pipe.text_encoder is not None:
                drop_text_encoder(pipe)
            return make_clip(self.maker, task)
        if pipe.text_encoder is None:
            with _room_for_the_model():
                load_text_encoder(pipe, self.what.source, self.what.model)
        return encode_prompt(self.maker, task)


@contextmanager
def _room_for_the_model() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU has no room for a worker's copy of the model",
            actual=str(error).split(". ")[0],
            next_step="fewer workers a GPU (--generate.gpus_per_worker=1), or a GPU that nothing else uses",
        ) from None


@dataclass(frozen=True)
class Worker:
    """A started actor.

    Args:
        number: Unlike that of any actor before it.
        actor: Its Ray handle.
    """

    number: int
    actor: ray.actor.ActorHandle


@dataclass(frozen=True)
class Attempt:
    """One try of a job.

    Args:
        job: What to make.
        number: 1 for the first try.
        avoid: Worker that it failed on.
    """

    job: Job
    number: int = 1
    avoid: int | None = None


class ClipPool:
    """Workers and what each has in hand. Use as a context; leaving it ends the workers.

    Args:
        size: How many workers, and their share of the cluster.
        what: What each loads.
        settings: Threads of a worker and tries of a clip.
    """

    def __init__(self, size: PoolSize, what: Load, settings: GenerateSettings) -> None:
        self._size, self._what, self._settings = size, what, settings
        self._numbers = itertools.count(1)
        self._num_lost_loads = 0
        self._pending: deque[Attempt] = deque()
        self._loading: dict[ray.ObjectRef, Worker] = {}
        self._idle: list[Worker] = []
        self._in_hand: dict[ray.ObjectRef, tuple[Worker, Attempt]] = {}

    def make_clips(self, jobs: Sequence[Job], stopped: Callable[[], bool]) -> Iterator[JournalRecord]:
        """Make clips, each tried until it is a result or out of attempts.

        Args:
            jobs: In the order in which they are begun.
            stopped: Once it returns True nothing more is begun; what is in hand is finished.

        Yields:
            One record a clip, as it is finished.

        Raises:
            UserError: if a worker cannot load the model because of something that the user can mend.
        """
        self._pending = deque(Attempt(job) for job in jobs)
        while True:
            if not stopped():
                self._start_workers()
                self._hand_out()
            if not self._in_hand and (stopped() or not self._pending):
                return
            ready, _ = ray.wait([*self._loading, *self._in_hand], num_returns=1, timeout=WAIT_S)
            for ref in ready:
                if ref in self._loading:
                    self._take_loaded(ref)
                elif (record := self._take_finished(ref)) is not None:
                    yield record

    def __enter__(self) -> ClipPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers():
            ray.kill(worker.actor)

    def _workers(self) -> list[Worker]:
        return [*self._loading.values(), *self._idle, *(worker for worker, _ in self._in_hand.values())]

    def _start_workers(self) -> None:
        num_wanted = min(self._size.num_workers, len(self._pending) + len(self._in_hand))
        threads = str(self._settings.threads_per_worker)
        options = {
            "num_gpus": self._size.gpus_per_worker,
            "num_cpus": self._size.cpus_per_worker,
            "max_restarts": 0,  # a new actor has to load; the pool starts it
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **DEFAULTS}},
        }
        for _ in range(num_wanted - len(self._workers())):
            worker = Worker(next(self._numbers), ray.remote(Dreamer).options(**options).remote())
            loading = worker.actor.load.remote(
                self._what, self._settings.threads_per_worker, self._size.gpus_per_worker == 0
            )
            self._loading[loading] = worker

    def _hand_out(self) -> None:
        is_alone = len(self._idle) + len(self._in_hand) == 1
        for worker in list(self._idle):
            attempt = next((a for a in self._pending if is_alone or a.avoid != worker.number), None)
            if attempt is not None:
                self._pending.remove(attempt)
                self._idle.remove(worker)
                self._in_hand[worker.actor.make.remote(attempt.job)] = (worker, attempt)

    def _take_loaded(self, ref: ray.ObjectRef) -> None:
        worker = self._loading.pop(ref)
        try:
            ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except DEATHS as error:
            self._num_lost_loads += 1
            if self._num_lost_loads >= self._settings.max_attempts:
                raise UserError(
                    "workers die while they load the model",
                    actual=f"{self._num_lost_loads} in a row; {_first_line(error)}",
                    allowed="enough memory for every worker's copy of the model",
                    next_step="fewer --generate.num_workers, or look at `ray logs`",
                ) from None
            log(f"generate: a worker died while it loaded the model; another one starts ({_first_line(error)})")
        else:
            self._num_lost_loads = 0
            self._idle.append(worker)

    def _take_finished(self, ref: ray.ObjectRef) -> JournalRecord | None:
        worker, attempt = self._in_hand.pop(ref)
        try:
            record = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):  # a full disk, for one: no other clip would escape it
                raise error.cause from None
            raise
        except DEATHS as error:
            record = JournalRecord(
                attempt.job.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {_first_line(error)}",
                traceback=str(error),
            )  # fmt: skip
            is_usable = False
        else:
            is_usable = not is_gpu_fault(record)
        if is_usable:
            self._idle.append(worker)
        else:
            log(f"generate: a worker is replaced: {_first_line(record.error)}")
            ray.kill(worker.actor)
        if record.status == "failed" and attempt.number < self._settings.max_attempts:
            self._pending.appendleft(Attempt(attempt.job, attempt.number + 1, avoid=worker.number))
            return None
        return replace(record, attempt=attempt.number)


def is_gpu_fault(record: JournalRecord) -> bool:
    """Say whether a clip failed in a way that leaves its process without a usable GPU; too little memory does not."""
    if record.status != "failed" or record.error.startswith(("OutOfMemoryError", "UserError", "OSError")):
        return False
    return record.error.startswith("AcceleratorError") or "CUDA error" in record.error


def _first_line(error: Exception | str) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
