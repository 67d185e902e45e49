"""Who makes what next: the pool's decisions, without Ray, so that they can be read and tested alone.

Jobs are read as they are needed. A worker has one in hand and one queued, so that it never waits for the driver. Each
worker goes on with the adapter that it has fused for as long as there are jobs for it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

DEPTH = 2
LOOK_AHEAD = 1024  # jobs that are grouped by adapter; few enough for any memory


@dataclass(frozen=True)
class Attempt:
    """One try of a task.

    Args:
        task: What to make; it has a `clip_id`.
        number: 1 for the first try.
        avoid: Workers that it failed on.
        alone: Whether a worker takes it with nothing else in hand, so that a death is put down to the right clip.
    """

    task: Any
    number: int = 1
    avoid: tuple[int, ...] = ()
    alone: bool = False


class WorkerQueue:
    """What a worker has in hand, oldest first, and which group it made last.

    Args:
        groups: Of the last task, as a tuple of one; empty before the first one.
    """

    def __init__(self) -> None:
        self.attempts: OrderedDict[str, Attempt] = OrderedDict()
        self.groups: tuple[Hashable, ...] = ()
        self.reserved: Attempt | None = None
        self.is_retired = False

    def is_full(self) -> bool:
        """Say whether the worker takes nothing more for now."""
        return (
            self.is_retired or len(self.attempts) >= DEPTH or any(attempt.alone for attempt in self.attempts.values())
        )


class Schedule:
    """Tasks that wait, are in hand, or are to be tried again. No step looks through all tasks or all workers.

    Args:
        tasks: Read as they are needed; each has a `clip_id` unlike the others'.
        max_attempts: Tries of a task.
        group_of: Tasks of one group are cheap to make one after another on one worker.
        look_ahead: How many tasks are read before they are needed; at least twice the number of workers.
    """

    def __init__(
        self,
        tasks: Iterable[Any],
        max_attempts: int,
        group_of: Callable[[Any], Hashable] = lambda task: None,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        self._tasks, self._max_attempts = iter(tasks), max_attempts
        self._group_of, self._look_ahead = group_of, look_ahead
        self._waiting: dict[Hashable, deque[Attempt]] = {}
        self._num_waiting = 0
        self._again: deque[Attempt] = deque()
        self._queues: dict[int, WorkerQueue] = {}
        self._num_in_group: Counter[Hashable] = Counter()
        self._asking: dict[int, None] = {}  # workers that may have a place free
        self._idle: dict[int, None] = {}  # workers for which there was nothing
        self._num_reserved = 0
        self.num_in_hand = 0
        self.num_swaps = 0

    def add_worker(self, number: int) -> None:
        """Let a worker take part."""
        self._queues[number] = WorkerQueue()
        self._asking[number] = None

    def num_known(self) -> int:
        """Count the tasks that are not finished, as far as the tasks were read."""
        self._read_ahead()
        return self._num_waiting + len(self._again) + self._num_reserved + self.num_in_hand

    def is_empty(self) -> bool:
        """Say whether nothing is left to hand out."""
        return self.num_known() == self.num_in_hand

    def in_hand(self, number: int) -> list[Attempt]:
        """Return what a worker has in hand, oldest first."""
        return list(self._queues[number].attempts.values())

    def hand_out(self) -> Iterator[tuple[int, Attempt]]:
        """Yield what each worker with a free place gets next; it counts as in hand from then on."""
        while self._asking:
            number = next(iter(self._asking))
            queue = self._queues[number]
            attempt = None if queue.is_full() else self._next_for(number, queue)
            if attempt is None:
                del self._asking[number]
                if not queue.is_full():
                    self._idle[number] = None
                continue
            self._count_swap(queue, self._group_of(attempt.task))
            queue.attempts[attempt.task.clip_id] = attempt
            self.num_in_hand += 1
            # To the end, so that every worker has one in hand before any has a second.
            del self._asking[number]
            self._asking[number] = None
            yield number, attempt

    def finished(self, number: int, clip_id: str) -> Attempt:
        """Take a finished task out of a worker's hand, for good."""
        return self._take(number, clip_id)

    def failed(self, number: int, clip_id: str, alone: bool = False) -> Attempt | None:
        """Take a failed task out of a worker's hand, to be tried again elsewhere.

        Args:
            number: The worker.
            clip_id: The task.
            alone: Whether it may have broken its worker, and is to be tried with nothing else in hand.

        Returns:
            The attempt, if it was the last one and the task is given up.
        """
        attempt = self._take(number, clip_id)
        return None if self._try_again(attempt, number, alone or attempt.alone) else attempt

    def returned(self, number: int, clip_id: str) -> None:
        """Take back a task that was not begun, or was disturbed by another one; that is no attempt."""
        self._put_back(self._take(number, clip_id))

    def retire(self, number: int) -> None:
        """Hand a worker nothing more; it is about to be gone."""
        self._queues[number].is_retired = True

    def lost(self, number: int, is_to_blame: bool) -> Attempt | None:
        """Remove a worker that is gone; what it had in hand goes back, and only what it was at counts an attempt.

        Args:
            number: The worker.
            is_to_blame: False if it is known that no clip did it: the node was lost, or another clip broke the GPU.

        Returns:
            The attempt that is given up, if there is one.
        """
        queue = self._queues.pop(number)
        self._asking.pop(number, None)
        self._idle.pop(number, None)
        self._num_in_group.subtract(queue.groups)
        self.num_in_hand -= len(queue.attempts)
        attempts = list(queue.attempts.values())
        given_up = None
        for place, attempt in reversed(list(enumerate(attempts))):
            if not is_to_blame:
                self._put_back(attempt)
            elif place > 0:
                self._put_back(replace(attempt, alone=True))
            elif not self._try_again(attempt, number, alone=True):
                given_up = attempt
        if queue.reserved is not None:
            self._num_reserved -= 1
            self._put_back(queue.reserved)
        self._ask_all()  # what avoided another worker may have to be made by one of these now
        return given_up

    def _take(self, number: int, clip_id: str) -> Attempt:
        self.num_in_hand -= 1
        self._idle.pop(number, None)
        self._asking[number] = None
        return self._queues[number].attempts.pop(clip_id)

    def _try_again(self, attempt: Attempt, number: int, alone: bool) -> bool:
        if attempt.number >= self._max_attempts:
            return False
        self._put_back(replace(attempt, number=attempt.number + 1, avoid=(*attempt.avoid, number), alone=alone))
        return True

    def _put_back(self, attempt: Attempt) -> None:
        self._again.appendleft(attempt)
        self._ask_all()

    def _ask_all(self) -> None:
        self._asking |= self._idle
        self._idle.clear()

    def _next_for(self, number: int, queue: WorkerQueue) -> Attempt | None:
        if queue.reserved is not None:
            if queue.attempts:
                return None  # it finishes these first
            attempt, queue.reserved = queue.reserved, None
            self._num_reserved -= 1
            return attempt
        for attempt in self._again:
            if number in attempt.avoid and any(other not in attempt.avoid for other in self._queues):
                continue
            self._again.remove(attempt)
            if attempt.alone and queue.attempts:
                queue.reserved = attempt
                self._num_reserved += 1
                return None
            return attempt
        self._read_ahead()
        # Towards the end nobody queues what another one could begin.
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

    def _count_swap(self, queue: WorkerQueue, group: Hashable) -> None:
        if queue.groups != (group,):
            self.num_swaps += len(queue.groups)
            self._num_in_group.subtract(queue.groups)
            queue.groups = (group,)
            self._num_in_group[group] += 1

    def _read_ahead(self) -> None:
        while self._num_waiting < self._look_ahead:
            task = next(self._tasks, None)
            if task is None:
                self._look_ahead = 0  # an iterator that is at its end is not asked again
                return
            self._waiting.setdefault(self._group_of(task), deque()).append(Attempt(task))
            self._num_waiting += 1
