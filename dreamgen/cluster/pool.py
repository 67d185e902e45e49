"""A pool of Ray actors that each hold one model: hands out jobs, tries again what failed, replaces what died."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dreamgen.cluster.actors import DEATHS, Actors, Event, Worker
from dreamgen.cluster.faults import ClipTimes, HungWorker, crash_record, first_line, is_gpu_fault
from dreamgen.cluster.ray_cluster import PoolSize, alive_nodes, is_node_alive, num_workers_wanted
from dreamgen.cluster.schedule import DEPTH, LOOK_AHEAD, Schedule
from dreamgen.config.settings import GenerateSettings
from dreamgen.errors import UserError
from dreamgen.progress import log
from dreamgen.run.records import JournalRecord

WAIT_S = 0.5
LOADING_A_NODE = 8  # more at once only get in one another's way; a node rarely has more GPUs
LOOK_EVERY_S = 5.0  # for workers that hang, and for nodes that joined or left


class ClipPool:
    """Workers and what each has in hand. Use as a context; leaving it ends the workers.

    Args:
        size: How many workers, and their share of the cluster.
        settings: Threads of a worker, tries and time limit of a clip.
        actor: Class of the workers, with `load`, `make` and `withdraw` as `Dreamer` has them.
        what: What each loads.
        group_of: Tasks of one group are made one after another where that can be.
    """

    def __init__(
        self,
        size: PoolSize,
        settings: GenerateSettings,
        actor: type,
        what: Any,
        group_of: Callable[[Any], Hashable] = lambda task: None,
    ) -> None:
        self._size, self._settings, self._group_of = size, settings, group_of
        self._actors = Actors(size, settings, actor, what)
        self._workers = self._actors.workers
        self._num_lost_loads = 0
        self._looked_s = float("-inf")
        self._num_wanted = self._num_nodes = 0
        self._stop: UserError | None = None
        self.num_swaps = self.num_replaced = 0

    @property
    def num_loaded(self) -> int:
        """How many workers take jobs now."""
        return sum(worker.is_loaded for worker in self._workers.values())

    def make_clips(self, tasks: Iterable[Any], stopped: Callable[[], bool]) -> Iterator[JournalRecord]:
        """Make clips, each tried until it is a result or out of attempts.

        Args:
            tasks: In about the order in which they are begun; read as they are needed.
            stopped: Once it returns True nothing more is begun; what is at work is finished.

        Yields:
            One record a clip, as it is finished.

        Raises:
            UserError: if a worker cannot load the model, or no clip can be written, because of something that the user
                can mend; what was at work is finished and yielded before.
        """
        look_ahead = max(LOOK_AHEAD, 2 * DEPTH * self._size.num_workers)
        schedule = Schedule(tasks, self._settings.max_attempts, self._group_of, look_ahead)
        times = ClipTimes(self._settings.clip_limit_s)
        for worker in self._workers.values():
            if worker.is_loaded:
                schedule.add_worker(worker.number)
        is_stopping = False
        while True:
            if self._is_time_to_look():
                yield from self._look(schedule, times)
            if not is_stopping and (stopped() or self._stop is not None):
                is_stopping = True
                self._withdraw(schedule)
            if not is_stopping:
                self._start_workers(schedule)
                for number, attempt in schedule.hand_out():
                    self._actors.ask(self._workers[number], attempt.task)
            if not schedule.num_in_hand and (is_stopping or schedule.is_empty()):
                break
            for event in self._actors.arrived(WAIT_S):
                record = self._take(event, schedule, times)
                if record is not None:
                    yield record
        self.num_swaps += schedule.num_swaps
        if self._stop is not None:
            raise self._stop

    def __enter__(self) -> ClipPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._actors.__exit__(*error)

    def _start_workers(self, schedule: Schedule) -> None:
        num_missing = min(self._num_wanted, schedule.num_known()) - len(self._workers)
        if num_missing > 0:
            num_loading = len(self._workers) - self.num_loaded
            for _ in range(min(num_missing, LOADING_A_NODE * self._num_nodes - num_loading)):
                self._actors.start()

    def _take(self, event: Event, schedule: Schedule, times: ClipTimes) -> JournalRecord | None:
        worker = self._workers[event.number]
        error, record = event.answer.exception(), None
        if isinstance(error, DEATHS):
            self._end(worker, schedule, error)
        elif event.what == "load":
            self._take_loaded(worker, error, schedule)
        elif error is not None:
            self._stop_or_raise(error)
            schedule.returned(worker.number, event.clip_id)
        elif event.what == "node":
            worker.node_id = event.answer.result()
        else:
            record = self._take_finished(worker, event, schedule, times)
        if worker.death is not None and worker.num_asked == 0:  # all that it finished has arrived
            given_up_record = self._remove_worker(worker, schedule)
            record = record or given_up_record
        return record

    def _take_loaded(self, worker: Worker, error: BaseException | None, schedule: Schedule) -> None:
        if error is not None:
            self._stop_or_raise(error)
            return
        self._num_lost_loads = 0
        worker.is_loaded = True
        schedule.add_worker(worker.number)

    def _stop_or_raise(self, error: BaseException) -> None:
        if not (isinstance(error, RayTaskError) and isinstance(error.cause, UserError)):
            raise error
        self._stop = self._stop or error.cause

    def _take_finished(
        self, worker: Worker, event: Event, schedule: Schedule, times: ClipTimes
    ) -> JournalRecord | None:
        record: JournalRecord | None = event.answer.result()
        now_s = time.monotonic()
        elapsed_s, worker.since_s = now_s - worker.since_s, now_s
        if record is None:  # withdrawn
            schedule.returned(worker.number, event.clip_id)
            return None
        if record.status != "failed":
            attempt = schedule.finished(worker.number, event.clip_id)
            times.add(attempt.task, elapsed_s)
            return replace(record, attempt=attempt.number)
        is_fault = is_gpu_fault(record)
        if is_fault and not worker.is_to_blame:  # the GPU was broken by the clip beside it
            schedule.returned(worker.number, event.clip_id)
            return None
        given_up = schedule.failed(worker.number, event.clip_id, alone=is_fault)
        if is_fault:
            worker.is_to_blame = False
            self._end(worker, schedule, RuntimeError(record.error))
        return None if given_up is None else replace(record, attempt=given_up.number)

    def _end(self, worker: Worker, schedule: Schedule, death: BaseException) -> None:
        if worker.death is None:
            worker.death = death
            ray.kill(worker.actor)  # it may be out of reach rather than dead
            if worker.is_loaded:
                schedule.retire(worker.number)

    def _remove_worker(self, worker: Worker, schedule: Schedule) -> JournalRecord | None:
        del self._workers[worker.number]
        is_node_lost = worker.node_id is not None and not is_node_alive(worker.node_id)
        if not worker.is_loaded:
            self._count_lost_load(worker.death, is_node_lost)
            return None
        self.num_replaced += 1
        why = "its node is gone" if is_node_lost else first_line(worker.death)
        log(f"generate: a worker is replaced: {why}")
        given_up = schedule.lost(worker.number, worker.is_to_blame and not is_node_lost)
        if given_up is None:
            return None
        return crash_record(given_up.task.clip_id, given_up.number, worker.death)

    def _count_lost_load(self, death: BaseException, is_node_lost: bool) -> None:
        self._num_lost_loads += not is_node_lost
        lines = str(death).strip().splitlines() or [type(death).__name__]
        if self._num_lost_loads >= self._settings.max_attempts:
            self._stop = self._stop or UserError(
                "workers die while they load the model",
                actual=f"{self._num_lost_loads} in a row; {lines[0]} {lines[-1] if len(lines) > 1 else ''}".strip(),
                allowed="enough memory for every worker's copy of the model, and this package on every node",
                next_step="fewer --generate.num_workers, or look at `ray logs`",
            )
        else:
            log(f"generate: a worker died while it loaded the model; another one starts ({lines[0]})")

    def _is_time_to_look(self) -> bool:
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = time.monotonic()
        return True

    def _look(self, schedule: Schedule, times: ClipTimes) -> Iterator[JournalRecord]:
        """Count the room for workers anew, and end those that hang."""
        nodes = alive_nodes()
        self._num_wanted, self._num_nodes = num_workers_wanted(self._size, nodes), len(nodes)
        now_s = time.monotonic()
        for worker in list(self._workers.values()):
            in_hand = schedule.in_hand(worker.number) if worker.is_loaded else []
            if not in_hand:
                continue
            limit_s = times.limit_s(in_hand[0].task)
            if now_s - worker.since_s > limit_s:
                self._end(worker, schedule, HungWorker(f"a clip took longer than {limit_s:,.0f} s"))
                record = self._remove_worker(worker, schedule)
                if record is not None:
                    yield record

    def _withdraw(self, schedule: Schedule) -> None:
        for worker in self._workers.values():
            if worker.is_loaded and len(schedule.in_hand(worker.number)) > 1:
                worker.actor.withdraw.remote()
