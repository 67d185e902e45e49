"""Which worker gets which task next: the pool's decisions, without Ray, so that they can be read and tested alone.

Tasks are read as they are needed. Each worker runs one task and has one queued, so that it never waits for the driver.
A worker stays with one group of tasks (jobs that share an adapter) for as long as there are tasks of that group.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dreamgen.cluster.options import Task

QUEUE_DEPTH = 2  # tasks of a worker: one runs, one waits
LOOK_AHEAD = 1024  # tasks that are read early to be grouped; few enough for any memory


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task.

    Args:
        task: The task.
        number: 1 for the first attempt.
        avoid: Workers on which the task has failed.
        exclusive: Run it with nothing else assigned to the worker, so that a crash can only be due to this task.
    """

    task: Any
    number: int = 1
    avoid: tuple[int, ...] = ()
    exclusive: bool = False


class WorkerQueue:
    """The tasks assigned to one worker, oldest first, and the group of its last task."""

    def __init__(self) -> None:
        self.attempts: OrderedDict[str, Attempt] = OrderedDict()
        self.groups: tuple[Hashable, ...] = ()  # the group as a tuple of one; empty before the first task
        self.reserved: Attempt | None = None  # an exclusive attempt that waits until the worker is free
        self.is_draining = False

    def is_full(self) -> bool:
        """Return whether the worker takes no further task now."""
        is_exclusive = any(attempt.exclusive for attempt in self.attempts.values())
        return self.is_draining or len(self.attempts) >= QUEUE_DEPTH or is_exclusive


class Schedule:
    """Tasks that wait, are assigned, or are to be retried. No step searches all tasks or all workers.

    Args:
        tasks: Read as they are needed.
        max_attempts: How often a task is tried, at least 1.
        group_of: Returns a task's group; a worker that stays within a group saves time.
        look_ahead: How many tasks are read before they are needed; at least twice the number of workers.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        max_attempts: int,
        group_of: Callable[[Any], Hashable] = lambda task: None,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        self._tasks, self._max_attempts = iter(tasks), max_attempts
        self._group_of, self._look_ahead = group_of, look_ahead
        self._waiting: dict[Hashable, deque[Attempt]] = {}
        self._num_waiting = 0
        self._retries: deque[Attempt] = deque()
        self._queues: dict[int, WorkerQueue] = {}
        self._num_in_group: Counter[Hashable] = Counter()
        self._available: dict[int, None] = {}  # workers that may have a free place, in the order of their turns
        self._idle: dict[int, None] = {}  # workers for which there was no task
        self._num_reserved = 0
        self.num_assigned = 0
        self.num_group_changes = 0

    def add_worker(self, number: int) -> None:
        """Assign tasks to a worker from now on."""
        self._queues[number] = WorkerQueue()
        self._available[number] = None

    def num_left(self) -> int:
        """Count the tasks that are not finished, as far as they have been read."""
        self._read_ahead()
        return self._num_waiting + len(self._retries) + self._num_reserved + self.num_assigned

    def is_empty(self) -> bool:
        """Return whether every task has been assigned."""
        return self.num_left() == self.num_assigned

    def assigned(self, number: int) -> list[Attempt]:
        """Return the attempts assigned to a worker, oldest first."""
        return list(self._queues[number].attempts.values())

    def assign(self) -> Iterator[tuple[int, Attempt]]:
        """Yield a worker and its next attempt for every free place; the attempt counts as assigned from then on."""
        while self._available:
            number = next(iter(self._available))
            queue = self._queues[number]
            attempt = None if queue.is_full() else self._next_for(number, queue)
            if attempt is None:
                del self._available[number]
                if not queue.is_full():
                    self._idle[number] = None
                continue
            self._set_group(queue, self._group_of(attempt.task))
            queue.attempts[attempt.task.task_id] = attempt
            self.num_assigned += 1
            # To the end, so that every worker has one task before any has a second.
            del self._available[number]
            self._available[number] = None
            yield number, attempt

    def finish(self, number: int, task_id: str) -> Attempt:
        """Remove a finished task."""
        return self._remove(number, task_id)

    def fail(self, number: int, task_id: str, exclusive: bool = False) -> Attempt | None:
        """Queue a failed task again, for another worker where there is one.

        Args:
            number: The worker.
            task_id: The task.
            exclusive: Whether the task may have broken its worker and is to be retried on its own.

        Returns:
            The attempt, if it was the last one.
        """
        attempt = self._remove(number, task_id)
        return None if self._retry(attempt, number, exclusive or attempt.exclusive) else attempt

    def requeue(self, number: int, task_id: str) -> None:
        """Queue a task again that was not started, or was disturbed by another one; this is not an attempt."""
        self._put_back(self._remove(number, task_id))

    def drain(self, number: int) -> None:
        """Assign nothing more to a worker that is about to be removed."""
        self._queues[number].is_draining = True

    def remove_worker(self, number: int, counts_attempt: bool) -> Attempt | None:
        """Remove a worker that is gone and queue its tasks again.

        Args:
            number: The worker.
            counts_attempt: Whether the task that it ran may be the cause, so that this was an attempt. False if the
                node was lost or another task broke the GPU. Queued tasks never count one.

        Returns:
            The attempt that it ran, if that was the last one.
        """
        queue = self._queues.pop(number)
        self._available.pop(number, None)
        self._idle.pop(number, None)
        self._num_in_group.subtract(queue.groups)
        self.num_assigned -= len(queue.attempts)
        attempts = list(queue.attempts.values())
        last_attempt = None
        for place, attempt in reversed(list(enumerate(attempts))):
            if not counts_attempt:
                self._put_back(attempt)
            elif place > 0:
                self._put_back(replace(attempt, exclusive=True))
            elif not self._retry(attempt, number, exclusive=True):
                last_attempt = attempt
        if queue.reserved is not None:
            self._num_reserved -= 1
            self._put_back(queue.reserved)
        self._wake_idle()  # a retry that avoided another worker may now have to run on one of these
        return last_attempt

    def _remove(self, number: int, task_id: str) -> Attempt:
        self.num_assigned -= 1
        self._idle.pop(number, None)
        self._available[number] = None
        return self._queues[number].attempts.pop(task_id)

    def _retry(self, attempt: Attempt, number: int, exclusive: bool) -> bool:
        if attempt.number >= self._max_attempts:
            return False
        avoid = (*attempt.avoid, number)
        self._put_back(replace(attempt, number=attempt.number + 1, avoid=avoid, exclusive=exclusive))
        return True

    def _put_back(self, attempt: Attempt) -> None:
        self._retries.appendleft(attempt)
        self._wake_idle()

    def _wake_idle(self) -> None:
        self._available |= self._idle
        self._idle.clear()

    def _next_for(self, number: int, queue: WorkerQueue) -> Attempt | None:
        if queue.reserved is not None:
            if queue.attempts:
                return None  # it finishes these first
            attempt, queue.reserved = queue.reserved, None
            self._num_reserved -= 1
            return attempt
        for attempt in self._retries:
            if number in attempt.avoid and any(other not in attempt.avoid for other in self._queues):
                continue
            self._retries.remove(attempt)
            if attempt.exclusive and queue.attempts:
                queue.reserved = attempt
                self._num_reserved += 1
                return None
            return attempt
        self._read_ahead()
        # Near the end no worker queues a task that another one could start now.
        if not self._num_waiting or (queue.attempts and self._num_waiting < len(self._queues)):
            return None
        return self._next_waiting(queue)

    def _next_waiting(self, queue: WorkerQueue) -> Attempt:
        if queue.groups and queue.groups[0] in self._waiting:
            group = queue.groups[0]
        else:
            group = max(self._waiting, key=lambda g: len(self._waiting[g]) / (1 + self._num_in_group[g]))
        attempts = self._waiting[group]
        attempt = attempts.popleft()
        self._num_waiting -= 1
        if not attempts:
            del self._waiting[group]
        return attempt

    def _set_group(self, queue: WorkerQueue, group: Hashable) -> None:
        if queue.groups != (group,):
            self.num_group_changes += len(queue.groups)
            self._num_in_group.subtract(queue.groups)
            queue.groups = (group,)
            self._num_in_group[group] += 1

    def _read_ahead(self) -> None:
        while self._num_waiting < self._look_ahead:
            task = next(self._tasks, None)
            if task is None:
                self._look_ahead = 0  # do not ask an exhausted iterator again
                return
            self._waiting.setdefault(self._group_of(task), deque()).append(Attempt(task))
            self._num_waiting += 1
