"""Failures of workers: broken GPUs, crashes, and how long a task may take before its worker counts as hung."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dreamgen.cluster.options import Task
from dreamgen.run.records import JournalRecord

FIRST_LIMIT_S = 6 * 3600.0  # before any task has finished; the first one may compile
MIN_LIMIT_S = 1800.0
SLOWEST_FACTOR = 20.0  # a task may take this many times as long as the slowest one so far


class HungWorker(Exception):
    """A worker exceeded the time limit of a task and was killed."""


def is_gpu_fault(record: JournalRecord) -> bool:
    """Return whether a failure leaves the process without a usable GPU; running out of memory does not."""
    error = record.error or ""
    if record.status != "failed" or error.startswith(("OutOfMemoryError", "UserError", "OSError")):
        return False
    return error.startswith("AcceleratorError") or "CUDA error" in error


def crash_record(stage: str, task_id: str, num_attempts: int, error: BaseException) -> JournalRecord:
    """Return the record of a task whose worker crashed in the last attempt.

    Args:
        stage: Name of the stage.
        task_id: The task.
        num_attempts: How many workers tried it.
        error: What ended the last worker.
    """
    workers = "a worker" if num_attempts == 1 else f"{num_attempts} workers"
    return JournalRecord(
        task_id, stage, "failed", attempt=num_attempts, traceback=str(error),
        error=f"KilledWorkers: {workers} failed at this clip, and the last one died: "
        f"{type(error).__name__}: {first_line(error)}",
    )  # fmt: skip


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message; its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class TimeLimit:
    """The time limit of a task, from the times of the tasks so far.

    Args:
        limit_s: A fixed limit; None derives it from the slowest task so far, relative to its cost.
        cost_of: Returns a task's expected cost in any unit.
    """

    def __init__(self, limit_s: float | None, cost_of: Callable[[Any], float] = lambda task: 1.0) -> None:
        self._limit_s, self._cost_of = limit_s, cost_of
        self._slowest_s = 0.0  # per unit of cost

    def add(self, task: Task, elapsed_s: float) -> None:
        """Take a finished task into account."""
        self._slowest_s = max(self._slowest_s, elapsed_s / self._cost_of(task))

    def of(self, task: Task) -> float:
        """Return the seconds after which a worker that runs `task` counts as hung."""
        if self._limit_s is not None:
            return self._limit_s
        if not self._slowest_s:
            return FIRST_LIMIT_S
        return max(MIN_LIMIT_S, SLOWEST_FACTOR * self._slowest_s * self._cost_of(task))
