"""What went wrong with a worker: whose fault it was, and when one that is silent counts as hung."""

from __future__ import annotations

from typing import Any

from dreamgen.run.records import Job, JournalRecord

FIRST_LIMIT_S = 6 * 3600.0  # nothing is known yet, and a first clip compiles
LEAST_LIMIT_S = 1800.0
TIMES_THE_SLOWEST = 20.0


def is_gpu_fault(record: JournalRecord) -> bool:
    """Say whether a clip failed in a way that leaves its process without a usable GPU; too little memory does not."""
    if record.status != "failed" or record.error.startswith(("OutOfMemoryError", "UserError", "OSError")):
        return False
    return record.error.startswith("AcceleratorError") or "CUDA error" in record.error


def crash_record(clip_id: str, num_attempts: int, death: BaseException) -> JournalRecord:
    """Return the record of a clip that is set aside, as its worker died at the last of its attempts."""
    workers = "a worker" if num_attempts == 1 else f"{num_attempts} workers"
    return JournalRecord(
        clip_id, "generate", "failed", attempt=num_attempts, traceback=str(death),
        error=f"KilledWorkers: {workers} failed at this clip, and the last one died: "
        f"{type(death).__name__}: {first_line(death)}",
    )  # fmt: skip


def first_line(error: BaseException | str) -> str:
    """Return the first line of what an error says; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class HungWorker(Exception):
    """A worker that took too long for a clip and was ended."""


class ClipTimes:
    """Times of clips so far, to tell a worker that hangs from one that is slow.

    Args:
        limit_s: Of a clip; None for a limit drawn from the slowest clip so far, per frame and step.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s, self._slowest_s = limit_s, 0.0

    def add(self, task: Any, elapsed_s: float) -> None:
        """Count a clip that was made."""
        self._slowest_s = max(self._slowest_s, elapsed_s / _work(task))

    def limit_s(self, task: Any) -> float:
        """Return the seconds after which a worker that is at `task` counts as hung."""
        if self._limit_s is not None:
            return self._limit_s
        if not self._slowest_s:
            return FIRST_LIMIT_S
        return max(LEAST_LIMIT_S, TIMES_THE_SLOWEST * self._slowest_s * _work(task))


def _work(task: Any) -> float:
    return float(task.num_frames * task.num_inference_steps) if isinstance(task, Job) else 1.0
