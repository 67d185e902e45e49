"""Tasks on several processes: of this machine, or of the Ray cluster that RAY_ADDRESS names. Results come in order."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import nullcontext
from functools import partial
from typing import Any

from dreamgen.cores import usable_cores
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.signals import follow_parent, kill_workers, same_sigterm_handler

AHEAD = 2  # tasks that wait for each worker: memory stays small however many there are
START_AFTER_S = 2.0  # `map`: starting a process takes about as long, so shorter work stays in this one
MIN_SHOWN = 64  # `map`: fewer units have no progress line

_shared: Any = None  # in a worker process: what `map` passes to every call


class Workers:
    """Processes that call functions; they start when there is more than one task. Use as a context.

    Args:
        num_workers: 1 calls every task in this process; None takes as many as there are cores, here or in the cluster.
        shared: First argument of every call of `map`; sent to each process once.
        option: The option that sets the number of workers, for errors.
    """

    def __init__(self, num_workers: int | None = 1, shared: Any = None, option: str = "--export.num_workers") -> None:
        self._num_workers, self._shared, self._option = num_workers, shared, option
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._ray: Any = None
        self._disconnect = False

    def run[Result](self, tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Call each task.

        Args:
            tasks: Functions without arguments (`functools.partial` of module functions, which other processes are able
                to import); taken a few at a time.

        Yields:
            What they return, in their order.

        Raises:
            Whatever a task raises; later ones are given up then.
        """
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        tasks = itertools.chain(first, tasks)
        if self._num_workers == 1 or len(first) < 2:
            for task in tasks:
                yield task()
        elif os.environ.get("RAY_ADDRESS"):
            yield from self._on_ray(tasks)
        else:
            yield from self._on_processes(tasks)

    def map[Item: Sized, Result](
        self, function: Callable[[Any, Item], Result], items: Iterable[Item], stage: str, unit: str
    ) -> Iterator[Result]:
        """Call a function with `shared` and each item, on this machine; processes start when it takes long.

        Args:
            function: At the top level of a module, so that other processes can import it.
            items: Each is as long as the units that it holds.
            stage: Name of the work, for the progress line.
            unit: What is counted, in the plural.

        Yields:
            What the calls return, in the order of the items.

        Raises:
            UserError: if a process was killed.
        """
        items, is_alone = list(items), (self._num_workers or usable_cores()) == 1
        total, start_s, done = sum(map(len, items)), time.monotonic(), 0
        with Progress(stage, total, unit) if total > MIN_SHOWN else nullcontext() as progress:
            while done < len(items) and (is_alone or self._pool is None):
                if not is_alone and time.monotonic() - start_s > START_AFTER_S and done + 1 < len(items):
                    break
                yield function(self._shared, items[done])
                if progress:
                    progress.add(len(items[done]))
                done += 1
            tasks = [partial(_call_shared, function, item) for item in items[done:]]
            results = self._on_processes(tasks) if tasks else iter(())
            for item, result in zip(items[done:], results, strict=True):
                yield result
                if progress:
                    progress.add(len(item))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            kill_workers()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._disconnect:
            self._ray.shutdown()

    def _on_processes(self, tasks: Iterable[Callable]) -> Iterator:
        num_workers = self._num_workers or usable_cores()
        if self._pool is None:
            # Spawned: a fork of a process in which libraries run threads may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(
                num_workers, context, _begin, (os.getpid(), self._shared)
            )
        try:
            yield from _in_order(tasks, num_workers, self._pool.submit, lambda future: future.result())
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a worker process died", actual="it was killed, or the machine ran out of memory",
                next_step=f"run the same command again with a smaller {self._option}",
            ) from None  # fmt: skip

    def _on_ray(self, tasks: Iterable[Callable]) -> Iterator:
        if self._ray is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray

            self._ray, self._disconnect = ray, not ray.is_initialized()
            if self._disconnect:
                with same_sigterm_handler():
                    ray.init(log_to_driver=False, logging_level=logging.ERROR)
        num_workers = self._num_workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        remote = self._ray.remote(_call).options(num_cpus=1, max_retries=2)
        try:
            yield from _in_order(tasks, num_workers, remote.remote, self._ray.get)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError | OSError) else error) from None


def _in_order(tasks: Iterable, num_workers: int, submit: Callable, result: Callable) -> Iterator:
    waiting: deque = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) >= num_workers * (1 + AHEAD):
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def _call[Result](task: Callable[[], Result]) -> Result:
    return task()


def _call_shared[Item, Result](function: Callable[[Any, Item], Result], item: Item) -> Result:
    return function(_shared, item)


def _begin(parent: int, shared: Any) -> None:
    """Keep what `map` shares, and end with the parent."""
    global _shared
    _shared = shared
    follow_parent(parent)
