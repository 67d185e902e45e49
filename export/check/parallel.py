"""One function over many items in several processes: results come in the items' order, and few items are in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from dreamgen.errors import UserError
from dreamgen.progress import Progress

IN_FLIGHT_PER_WORKER = 4
WORTH_PROCESSES_S = 2.0  # starting a process costs about as much; what is done sooner never starts one
SHORT = 64  # a bar for so few would only be noise

_context: Any = None


class Workers:
    """Runs functions over items, in this process or in several.

    Args:
        num_workers: Processes; one runs everything here, and so does what is soon done.
        context: What every call gets as its first argument; sent to each process once.
    """

    def __init__(self, num_workers: int, context: Any) -> None:
        self.num_workers, self._context, self._pool = num_workers, context, None

    def map(self, function: Callable, items: Sequence, stage: str, unit: str, size: Callable[[Any], int] = len,
            ) -> Iterator[Any]:  # fmt: skip
        """Yield function(context, item) in the order of the items.

        Args:
            function: At the top level of a module, so that it can be sent.
            items: What it is called with.
            stage: What is done, for the progress line.
            unit: What is counted.
            size: How many units an item holds.

        Raises:
            UserError: if a process was killed, as by a machine that is out of memory.
        """
        total = sum(map(size, items))
        with Progress(stage, total, unit) if total > SHORT else _Silent() as progress:
            for item, result in zip(items, self._results(function, items), strict=True):
                yield result
                progress.add(size(item))

    def _results(self, function: Callable, items: Sequence) -> Iterator[Any]:
        start_s, done = time.monotonic(), 0
        while done < len(items) and (self.num_workers == 1 or self._pool is None):
            if self.num_workers > 1 and time.monotonic() - start_s > WORTH_PROCESSES_S and done + 1 < len(items):
                break
            yield function(self._context, items[done])
            done += 1
        yield from self._in_processes(function, items[done:])

    def _in_processes(self, function: Callable, items: Sequence) -> Iterator[Any]:
        if items and self._pool is None:
            # Spawned, not forked: this process may hold threads of other libraries, which a fork leaves in mid-air.
            self._pool = ProcessPoolExecutor(
                self.num_workers, multiprocessing.get_context("spawn"), _keep, (self._context,)
            )
        waiting: deque = deque()
        try:
            for item in items:
                if len(waiting) >= self.num_workers * IN_FLIGHT_PER_WORKER:
                    yield waiting.popleft().result()
                waiting.append(self._pool.submit(_call, function, item))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a checking process was killed", actual="the machine may be out of memory",
                next_step="check again with --num_workers=1",
            ) from None  # fmt: skip

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextmanager
def workers(num_workers: int | None, context: Any) -> Iterator[Workers]:
    """Yield workers that end with the block; None is one process a core."""
    running = Workers(num_workers or len(os.sched_getaffinity(0)), context)
    try:
        yield running
    finally:
        running.close()


def _keep(context: Any) -> None:
    global _context
    _context = context
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed tells nobody, and its processes would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, item: Any) -> Any:
    return function(_context, item)


class _Silent:
    def add(self, num_done: int) -> None:
        """Say nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass
