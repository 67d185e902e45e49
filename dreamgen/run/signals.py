"""Signals: SIGTERM ends a command as Ctrl-C does, and processes that work for a command leave both to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WATCH_EVERY_S = 1.0


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM, which job schedulers send, so that leases and temporary files are removed.

    Without it the process would end at once. A handler that is set already stays, and so does one that a stage sets.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # only the main thread may handle signals
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def same_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: `ray.init` replaces it by one that ends the process with a stack dump."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def follow_parent(parent: int) -> None:
    """Leave Ctrl-C and SIGTERM to the parent process, and exit with it, as a killed parent cannot stop workers.

    Args:
        parent: Its process id.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a scheduler send them to the whole group
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def workers_end_on_interrupt() -> Iterator[None]:
    """Kill this process's workers when the body is interrupted, rather than wait until they have done their share."""
    try:
        yield
    except KeyboardInterrupt:
        kill_workers()
        raise


def kill_workers() -> None:
    """Kill the processes that `multiprocessing` started for this one."""
    for process in multiprocessing.active_children():
        process.kill()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
