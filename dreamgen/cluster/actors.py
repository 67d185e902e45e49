"""Ray's side of the pool: actors are started and asked, and every answer arrives as an event."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from dreamgen.cluster.ray_cluster import PoolSize
from dreamgen.cluster.schedule import DEPTH
from dreamgen.config.settings import GenerateSettings
from dreamgen.environment import DEFAULTS

# What Ray raises when a process or a node is gone; an error of our own code is a RayTaskError.
DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)


@dataclass
class Worker:
    """A started actor.

    Args:
        number: Unlike that of any actor before it.
        actor: Its Ray handle.
        node_id: Where it runs, once it has said so.
        is_loaded: Whether it takes jobs.
        num_asked: How many answers it owes.
        since_s: When its oldest job was begun, on the driver's clock.
        death: What Ray said when it died.
        is_to_blame: False once it is known that its end is not the fault of what it has in hand.
    """

    number: int
    actor: ray.actor.ActorHandle
    node_id: str | None = None
    is_loaded: bool = False
    num_asked: int = 0
    since_s: float = field(default_factory=time.monotonic)
    death: BaseException | None = None
    is_to_blame: bool = True


@dataclass(frozen=True)
class Event:
    """An actor's answer.

    Args:
        number: Of the worker.
        what: "node", "load" or "make".
        clip_id: Of the task that was made.
        answer: With the value or the error.
    """

    number: int
    what: str
    clip_id: str | None
    answer: Future


class Actors:
    """Starts actors and collects what they answer. Use as a context; leaving it ends them.

    Args:
        size: Their share of the cluster.
        settings: Threads of an actor.
        actor: Their class.
        what: What each loads.
    """

    def __init__(self, size: PoolSize, settings: GenerateSettings, actor: type, what: Any) -> None:
        threads = str(settings.threads_per_worker)
        self._load_arguments = (what, settings.threads_per_worker, size.gpus_per_worker == 0)
        self._class = ray.remote(actor).options(
            num_gpus=size.gpus_per_worker,
            num_cpus=size.cpus_per_worker,
            resources=size.resources_per_worker,
            max_restarts=0,  # a new actor has to load; the pool starts it
            max_concurrency=DEPTH + 1,  # one more, for `withdraw`
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **DEFAULTS}},
        )
        self._numbers = itertools.count(1)
        # A queue, as waiting for many references at once costs the more the more there are.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.workers: dict[int, Worker] = {}

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            ray.kill(worker.actor)

    def start(self) -> None:
        """Start one more; it says where it is and loads. It waits where there is no room yet."""
        worker = Worker(next(self._numbers), self._class.remote())
        self.workers[worker.number] = worker
        self._expect(worker, worker.actor.node.remote(), "node")
        self._expect(worker, worker.actor.load.remote(*self._load_arguments), "load")

    def ask(self, worker: Worker, task: Any) -> None:
        """Have a worker make a task."""
        if worker.num_asked == 0:
            worker.since_s = time.monotonic()
        self._expect(worker, worker.actor.make.remote(task), "make", task.clip_id)

    def arrived(self, wait_s: float) -> Iterator[Event]:
        """Yield what arrives within a time, and all that is there by then.

        An answer of a worker that was given up is passed over: what it had in hand is made elsewhere.
        """
        try:
            event = self._events.get(timeout=wait_s)
            while True:
                if event.number in self.workers:
                    self.workers[event.number].num_asked -= 1
                    yield event
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _expect(self, worker: Worker, ref: ray.ObjectRef, what: str, clip_id: str | None = None) -> None:
        worker.num_asked += 1
        number, events = worker.number, self._events
        ref.future().add_done_callback(lambda answer: events.put(Event(number, what, clip_id, answer)))
