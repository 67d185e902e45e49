"""Which worker gets which task next: retries, crashes, groups and look-ahead, without Ray."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from dreamgen.cluster.schedule import Schedule


@dataclass(frozen=True)
class Task:
    task_id: str
    group: str = "a"


def tasks(num: int, groups: str = "a") -> list[Task]:
    return [Task(f"{index:03d}", groups[index % len(groups)]) for index in range(num)]


def make(jobs, num_workers=1, max_attempts=3, **options) -> Schedule:
    schedule = Schedule(jobs, max_attempts, lambda task: task.group, **options)
    for number in range(1, num_workers + 1):
        schedule.add_worker(number)
    return schedule


def assigned(schedule: Schedule) -> list[tuple[int, str]]:
    return [(number, attempt.task.task_id) for number, attempt in schedule.assign()]


def test_each_worker_runs_one_task_and_has_one_queued():
    schedule = make(tasks(10), num_workers=2)
    assert assigned(schedule) == [(1, "000"), (2, "001"), (1, "002"), (2, "003")]
    assert assigned(schedule) == []
    schedule.finish(2, "001")
    assert assigned(schedule) == [(2, "004")]
    assert schedule.num_left() == 9 and not schedule.is_empty()


def test_near_the_end_no_worker_queues_a_task_that_another_could_start():
    schedule = make(tasks(4), num_workers=3)
    assert assigned(schedule) == [(1, "000"), (2, "001"), (3, "002")]
    schedule.finish(2, "001")
    assert assigned(schedule) == [(2, "003")]
    assert schedule.is_empty() and schedule.num_assigned == 3


def test_a_million_tasks_are_read_as_they_are_needed():
    num_read = 0

    def stream():
        nonlocal num_read
        for index in range(1_000_000):
            num_read += 1
            yield Task(f"{index:07d}")

    schedule = make(stream(), num_workers=2, look_ahead=16)
    assert len(assigned(schedule)) == 4 and num_read <= 20
    for step in range(100):
        number = 1 + step % 2
        schedule.finish(number, schedule.assigned(number)[0].task.task_id)
        assert len(assigned(schedule)) == 1
    assert num_read <= 120


def test_a_failed_task_goes_to_another_worker_until_no_attempt_is_left():
    schedule = make(tasks(1), num_workers=2, max_attempts=3)
    [(first, task_id)] = assigned(schedule)
    assert schedule.fail(first, task_id) is None
    [(second, _)] = assigned(schedule)
    assert second != first
    assert schedule.fail(second, task_id) is None
    [(third, _)] = assigned(schedule)  # it failed on every worker, so any will do
    last_attempt = schedule.fail(third, task_id)
    assert last_attempt.number == 3 and schedule.is_empty() and schedule.num_assigned == 0


def test_a_crash_counts_as_an_attempt_of_the_running_task_only():
    schedule = make(tasks(2), num_workers=1, max_attempts=2)
    assert assigned(schedule) == [(1, "000"), (1, "001")]
    assert schedule.remove_worker(1, counts_attempt=True) is None
    schedule.add_worker(2)
    # Both are retried exclusively, so that a second crash is attributed to the right task.
    assert assigned(schedule) == [(2, "000")]
    assert schedule.assigned(2)[0].number == 2
    assert schedule.remove_worker(2, counts_attempt=True).task.task_id == "000"
    schedule.add_worker(3)
    assert assigned(schedule) == [(3, "001")] and schedule.assigned(3)[0].number == 1
    schedule.finish(3, "001")
    assert schedule.is_empty()


def test_a_lost_node_counts_as_no_attempt():
    schedule = make(tasks(2), num_workers=1, max_attempts=1)
    assert len(assigned(schedule)) == 2
    assert schedule.remove_worker(1, counts_attempt=False) is None
    schedule.add_worker(2)
    assert assigned(schedule) == [(2, "000"), (2, "001")]
    assert [attempt.number for attempt in schedule.assigned(2)] == [1, 1]


def test_an_exclusive_task_waits_until_its_worker_is_free():
    schedule = make(tasks(9), num_workers=2)
    assert assigned(schedule) == [(1, "000"), (2, "001"), (1, "002"), (2, "003")]
    schedule.remove_worker(1, counts_attempt=True)
    schedule.finish(2, "001")
    assert assigned(schedule) == []  # 000 waits until this worker has finished 003
    schedule.finish(2, "003")
    assert assigned(schedule) == [(2, "000")]
    assert assigned(schedule) == []  # nothing runs beside it
    schedule.finish(2, "000")
    assert assigned(schedule) == [(2, "002")]


def test_a_retry_runs_on_a_worker_that_it_avoided_once_no_other_is_left():
    schedule = make(tasks(1), num_workers=2)
    [(first, task_id)] = assigned(schedule)
    other = 3 - first
    schedule.drain(other)
    schedule.fail(first, task_id)
    assert assigned(schedule) == []  # the other worker should have it
    schedule.remove_worker(other, counts_attempt=True)
    assert assigned(schedule) == [(first, task_id)]


def test_a_withdrawn_task_counts_no_attempt():
    schedule = make(tasks(2), max_attempts=1)
    assert len(assigned(schedule)) == 2
    schedule.requeue(1, "001")
    assert assigned(schedule) == [(1, "001")] and schedule.assigned(1)[1].number == 1


def test_workers_stay_with_their_group():
    schedule = make(tasks(64, "ab"), num_workers=4)
    made: dict[int, list[str]] = {}
    while not schedule.is_empty() or schedule.num_assigned:
        for number, attempt in schedule.assign():
            made.setdefault(number, []).append(attempt.task.group)
        for number in made:
            if schedule.assigned(number):
                schedule.finish(number, schedule.assigned(number)[0].task.task_id)
    assert schedule.num_group_changes == 0
    assert sorted("".join(sorted(set(groups))) for groups in made.values()) == ["a", "a", "b", "b"]


def test_one_worker_changes_once_between_two_groups():
    schedule = make(tasks(20, "ab"))
    order = []
    while not schedule.is_empty() or schedule.num_assigned:
        order += [attempt.task.group for _, attempt in schedule.assign()]
        schedule.finish(1, schedule.assigned(1)[0].task.task_id)
    assert "".join(order) == "a" * 10 + "b" * 10 and schedule.num_group_changes == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_task_is_lost_or_assigned_twice_whatever_happens(seed):
    rng = random.Random(seed)
    jobs = tasks(200, "abc")
    schedule, next_number = make(iter(jobs), num_workers=5, look_ahead=20), 6
    workers, ended = set(range(1, 6)), Counter()
    for _ in range(20_000):
        if schedule.is_empty() and not schedule.num_assigned:
            break
        for number, attempt in schedule.assign():
            assert attempt.task.task_id not in ended
            current = schedule.assigned(number)
            assert len(current) <= 2 and (len(current) == 1 or not any(a.exclusive for a in current))
        number = rng.choice(sorted(workers))
        if (event := rng.random()) < 0.06:
            workers.remove(number)
            last_attempt = schedule.remove_worker(number, counts_attempt=rng.random() < 0.7)
            ended.update([last_attempt.task.task_id] if last_attempt else [])
            workers.add(next_number)
            schedule.add_worker(next_number)
            next_number += 1
        elif schedule.assigned(number):
            task_id = rng.choice(schedule.assigned(number)).task.task_id
            if event < 0.15:
                last_attempt = schedule.fail(number, task_id, exclusive=rng.random() < 0.3)
                ended.update([task_id] if last_attempt else [])
            elif event < 0.2:
                schedule.requeue(number, task_id)
            else:
                schedule.finish(number, task_id)
                ended.update([task_id])
    assert ended == Counter(task.task_id for task in jobs)
