"""Ray actors and their results: actors are started, tasks are submitted, and every result arrives as an event."""

from __future__ import annotations

import itertools
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import ray
import ray.actor
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from dreamgen.cluster.options import PoolOptions, Task
from dreamgen.cluster.ray_cluster import PoolSize
from dreamgen.cluster.schedule import QUEUE_DEPTH
from dreamgen.run.records import JournalRecord

# What Ray raises when a process or a node is gone. An error in our own code is a RayTaskError.
CRASHES = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)


class WorkerActor(Protocol):
    """The class of a pool's actors. Ray calls `load` first, then `make` from two threads."""

    def node(self) -> str:
        """Return the id of the node that the actor runs on."""
        ...

    def load(self, payload: Any, num_threads: int, without_gpu: bool) -> None:
        """Load what every task needs.

        Args:
            payload: As the pool was given it.
            num_threads: CPU threads that the actor may use.
            without_gpu: Whether Ray gave it no GPU; it must not use one that it can see.
        """
        ...

    def make(self, task: Any) -> JournalRecord | None:
        """Do a task; return its record, or None if `withdraw` was called before it was started."""
        ...

    def withdraw(self) -> None:
        """Start no further task; the running one is finished."""
        ...


class PoolWorker:
    """What the actors of all stages share; a subclass adds `load` and `make`."""

    def __init__(self) -> None:
        # Here, not in `load`: only the main thread may set handlers. The driver handles Ctrl-C; a task in progress is
        # finished.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.is_withdrawn = threading.Event()

    def node(self) -> str:
        """Return the id of the node that the worker runs on."""
        return ray.get_runtime_context().get_node_id()

    def withdraw(self) -> None:
        """Start nothing more; tasks in progress are finished."""
        self.is_withdrawn.set()


@dataclass
class Worker:
    """A started actor.

    Args:
        number: Unlike that of any earlier actor.
        actor: Its Ray handle.
        node_id: The node that it runs on, once known.
        is_loaded: Whether it takes tasks.
        num_pending: Results that have not arrived yet.
        since_s: When its oldest task was started, on the driver's clock.
        error: What ended it.
        counts_attempt: Whether its end counts as an attempt of the task that it ran.
    """

    number: int
    actor: ray.actor.ActorHandle
    node_id: str | None = None
    is_loaded: bool = False
    num_pending: int = 0
    since_s: float = field(default_factory=time.monotonic)
    error: BaseException | None = None
    counts_attempt: bool = True


@dataclass(frozen=True)
class Event:
    """A result of an actor.

    Args:
        number: Of the worker.
        method: The method that returned.
        result: Its value or error.
        task_id: The task, for `make`.
    """

    number: int
    method: Literal["node", "load", "make"]
    result: Future
    task_id: str = ""


class Actors:
    """Starts actors and collects their results. Use it as a context; leaving it ends the actors.

    Args:
        size: Each actor's share of the cluster.
        options: Threads of an actor.
        actor: The actors' class, a `WorkerActor`.
        payload: What each actor loads.
    """

    def __init__(self, size: PoolSize, options: PoolOptions, actor: type, payload: Any) -> None:
        self._load_arguments = (payload, options.threads_per_worker, size.gpus_per_worker == 0)
        self._class: Any = ray.remote(actor).options(
            num_gpus=size.gpus_per_worker,
            num_cpus=size.cpus_per_worker,
            resources=size.resources_per_worker,
            max_restarts=0,  # a new actor has to load first; the pool starts it
            max_concurrency=QUEUE_DEPTH + 1,  # one more for `withdraw`
            # A process that Ray started early takes no actor with an environment of its own.
            runtime_env=None if size.has_environment else {"env_vars": options.environment()},
        )
        self._numbers = itertools.count(1)
        # A queue, because waiting for many references costs more the more there are.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.workers: dict[int, Worker] = {}

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            ray.kill(worker.actor)

    def start(self) -> None:
        """Start one actor and let it load. It waits where there is no room yet."""
        worker = Worker(next(self._numbers), self._class.remote())
        self.workers[worker.number] = worker
        self._expect(worker, worker.actor.node.remote(), "node")
        self._expect(worker, worker.actor.load.remote(*self._load_arguments), "load")

    def submit(self, worker: Worker, task: Task) -> None:
        """Send a task to a worker."""
        if worker.num_pending == 0:
            worker.since_s = time.monotonic()
        self._expect(worker, worker.actor.make.remote(task), "make", task.task_id)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Wait for an event and yield all that have arrived; none after `timeout_s` seconds without one.

        Results of workers that were removed are dropped: their tasks run elsewhere.
        """
        try:
            event = self._events.get(timeout=timeout_s)
            while True:
                if event.number in self.workers:
                    self.workers[event.number].num_pending -= 1
                    yield event
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _expect(self, worker: Worker, ref: Any, method: Literal["node", "load", "make"], task_id: str = "") -> None:
        worker.num_pending += 1
        number, events = worker.number, self._events
        ref.future().add_done_callback(lambda result: events.put(Event(number, method, result, task_id)))
