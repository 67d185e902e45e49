"""A pool of Ray actors: distributes tasks, retries failed ones, and replaces workers that crash or hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dreamgen.cluster.actors import CRASHES, Actors, Event, Worker
from dreamgen.cluster.faults import HungWorker, TimeLimit, crash_record, first_line, is_gpu_fault
from dreamgen.cluster.options import PoolOptions, Task
from dreamgen.cluster.ray_cluster import (
    PoolSize,
    alive_nodes,
    is_any_node_alive,
    is_node_alive,
    num_workers_wanted,
)
from dreamgen.cluster.schedule import LOOK_AHEAD, QUEUE_DEPTH, Schedule
from dreamgen.errors import ClusterLost, UserError
from dreamgen.progress import log
from dreamgen.run.records import JournalRecord

EVENT_TIMEOUT_S = 0.5
CHECK_EVERY_S = 5.0  # for hung workers, and for nodes that joined or left
NO_NODE_LIMIT_S = 30.0  # without any node, another one may join for so long


class WorkerPool:
    """Workers and the tasks assigned to them. Use it as a context; leaving it ends the workers.

    Args:
        size: How many workers, and each one's share of the cluster.
        options: Threads, attempts and time limit.
        actor: The workers' class, an `actors.WorkerActor`.
        payload: What each worker loads.
        group_of: Returns a task's group; tasks of one group run one after another on a worker where possible.
        cost_of: Returns a task's expected cost in any unit, for the time limit.
    """

    def __init__(
        self,
        size: PoolSize,
        options: PoolOptions,
        actor: type,
        payload: Any,
        group_of: Callable[[Any], Hashable] = lambda task: None,
        cost_of: Callable[[Any], float] = lambda task: 1.0,
    ) -> None:
        self._size, self._options, self._group_of, self._cost_of = size, options, group_of, cost_of
        self._actors = Actors(size, options, actor, payload)
        self._workers = self._actors.workers
        self._num_failed_loads = 0
        self._checked_s = float("-inf")
        self._had_node_s = time.monotonic()
        self._num_wanted = self._num_nodes = 0
        self._error: UserError | None = None
        self.num_group_changes = self.num_replaced = 0

    @property
    def num_loaded(self) -> int:
        """Count the workers that take tasks now."""
        return sum(worker.is_loaded for worker in self._workers.values())

    def run(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[JournalRecord]:
        """Run tasks, each until it has a result or no attempt is left.

        Args:
            tasks: In about the order in which they are started; read as they are needed.
            should_stop: Once it returns True no further task is started; running ones are finished.

        Yields:
            One record for each task, when it is finished.

        Raises:
            UserError: if workers cannot load or results cannot be written, for a reason that the user can fix. Running
                tasks are finished and yielded before.
            ClusterLost: if no node of Ray is left.
        """
        look_ahead = max(LOOK_AHEAD, 2 * QUEUE_DEPTH * self._size.num_workers)
        schedule = Schedule(tasks, self._options.max_attempts, self._group_of, look_ahead)
        limit = TimeLimit(self._options.task_limit_s, self._cost_of)
        for worker in self._workers.values():
            if worker.is_loaded:
                schedule.add_worker(worker.number)
        is_stopping = False
        while True:
            if self._is_check_due():
                yield from self._check_workers(schedule, limit)
            if not is_stopping and (should_stop() or self._error is not None):
                is_stopping = True
                self._withdraw(schedule)
            if not is_stopping:
                self._start_workers(schedule)
                for number, attempt in schedule.assign():
                    self._actors.submit(self._workers[number], attempt.task)
            if not schedule.num_assigned and (is_stopping or schedule.is_empty()):
                break
            for event in self._actors.events(EVENT_TIMEOUT_S):
                record = self._handle(event, schedule, limit)
                if record is not None:
                    yield record
        self.num_group_changes += schedule.num_group_changes
        if self._error is not None:
            raise self._error

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._actors.__exit__(*error)

    def _start_workers(self, schedule: Schedule) -> None:
        num_missing = min(self._num_wanted, schedule.num_left()) - len(self._workers)
        limit = self._options.max_loading_per_node
        if limit is not None:
            num_loading = len(self._workers) - self.num_loaded
            num_missing = min(num_missing, limit * self._num_nodes - num_loading)
        for _ in range(num_missing):
            self._actors.start()

    def _handle(self, event: Event, schedule: Schedule, limit: TimeLimit) -> JournalRecord | None:
        worker = self._workers[event.number]
        error, record = event.result.exception(), None
        if isinstance(error, CRASHES):
            self._end(worker, schedule, error)
        elif event.method == "load":
            self._handle_loaded(worker, error, schedule)
        elif error is not None:
            self._stop_or_raise(error)
            schedule.requeue(worker.number, event.task_id)
        elif event.method == "node":
            worker.node_id = event.result.result()
        else:
            record = self._handle_finished(worker, event, schedule, limit)
        if worker.error is not None and worker.num_pending == 0:  # all that it finished has arrived
            crashed = self._remove_worker(worker, worker.error, schedule)
            record = record or crashed
        return record

    def _handle_loaded(self, worker: Worker, error: BaseException | None, schedule: Schedule) -> None:
        if error is not None:
            self._stop_or_raise(error)
            return
        self._num_failed_loads = 0
        worker.is_loaded = True
        schedule.add_worker(worker.number)

    def _stop_or_raise(self, error: BaseException) -> None:
        if not (isinstance(error, RayTaskError) and isinstance(error.cause, UserError)):
            raise error
        self._error = self._error or error.cause

    def _handle_finished(
        self, worker: Worker, event: Event, schedule: Schedule, limit: TimeLimit
    ) -> JournalRecord | None:
        record: JournalRecord | None = event.result.result()
        now_s = time.monotonic()
        elapsed_s, worker.since_s = now_s - worker.since_s, now_s
        if record is None:  # withdrawn
            schedule.requeue(worker.number, event.task_id)
            return None
        if record.status != "failed":
            attempt = schedule.finish(worker.number, event.task_id)
            limit.add(attempt.task, elapsed_s)
            return replace(record, attempt=attempt.number)
        is_fault = is_gpu_fault(record)
        if is_fault and not worker.counts_attempt:  # the task before broke the GPU
            schedule.requeue(worker.number, event.task_id)
            return None
        last_attempt = schedule.fail(worker.number, event.task_id, exclusive=is_fault)
        if is_fault:
            worker.counts_attempt = False
            self._end(worker, schedule, RuntimeError(record.error))
        return None if last_attempt is None else replace(record, attempt=last_attempt.number)

    def _end(self, worker: Worker, schedule: Schedule, error: BaseException) -> None:
        if worker.error is None:
            worker.error = error
            ray.kill(worker.actor)  # it may be out of reach rather than dead
            if worker.is_loaded:
                schedule.drain(worker.number)

    def _remove_worker(self, worker: Worker, error: BaseException, schedule: Schedule) -> JournalRecord | None:
        del self._workers[worker.number]
        is_node_lost = worker.node_id is not None and not is_node_alive(worker.node_id)
        if not worker.is_loaded:
            self._count_failed_load(error, is_node_lost)
            return None
        self.num_replaced += 1
        reason = "its node is gone" if is_node_lost else first_line(error)
        log(f"{self._options.stage}: replacing a worker: {reason}")
        last_attempt = schedule.remove_worker(worker.number, worker.counts_attempt and not is_node_lost)
        if last_attempt is None:
            return None
        return crash_record(self._options.stage, last_attempt.task.task_id, last_attempt.number, error)

    def _count_failed_load(self, error: BaseException, is_node_lost: bool) -> None:
        self._num_failed_loads += not is_node_lost
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if self._num_failed_loads >= self._options.max_attempts:
            self._error = self._error or UserError(
                "workers die while they load the model",
                actual=f"{self._num_failed_loads} in a row; {lines[0]} {lines[-1] if len(lines) > 1 else ''}".strip(),
                allowed="enough memory for every worker's copy of the model, and this package on every node",
                next_step=f"fewer {self._options.setting('num_workers')}, or look at `ray logs`",
            )
        else:
            log(f"{self._options.stage}: a worker died while it loaded the model; starting another one ({lines[0]})")

    def _is_check_due(self) -> bool:
        if time.monotonic() - self._checked_s < CHECK_EVERY_S:
            return False
        self._checked_s = time.monotonic()
        return True

    def _check_workers(self, schedule: Schedule, limit: TimeLimit) -> Iterator[JournalRecord]:
        """Count again how many workers there is room for, and end those that hang.

        Raises:
            ClusterLost: if there is no node, and has been none for a while.
        """
        self._check_cluster()
        nodes = alive_nodes()
        self._num_wanted, self._num_nodes = num_workers_wanted(self._size, nodes), len(nodes)
        now_s = time.monotonic()
        for worker in list(self._workers.values()):
            assigned = schedule.assigned(worker.number) if worker.is_loaded else []
            if not assigned:
                continue
            limit_s = limit.of(assigned[0].task)
            if now_s - worker.since_s > limit_s:
                error = HungWorker(f"a clip took longer than {limit_s:,.0f} s")
                self._end(worker, schedule, error)
                record = self._remove_worker(worker, error, schedule)
                if record is not None:
                    yield record

    def _check_cluster(self) -> None:
        if is_any_node_alive():
            self._had_node_s = time.monotonic()
        elif time.monotonic() - self._had_node_s > NO_NODE_LIMIT_S:
            raise ClusterLost(
                f"{self._options.stage}: Ray is gone",
                actual=f"no node of the cluster has answered for {NO_NODE_LIMIT_S:.0f} s",
                next_step="the same command continues; if it happens again, check the system's memory (dmesg)",
            )

    def _withdraw(self, schedule: Schedule) -> None:
        for worker in self._workers.values():
            if worker.is_loaded and len(schedule.assigned(worker.number)) > 1:
                worker.actor.withdraw.remote()
