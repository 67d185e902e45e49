"""Who makes what next: retries, deaths, adapters and look-ahead, without Ray."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from dreamgen.cluster.schedule import Schedule


@dataclass(frozen=True)
class Task:
    clip_id: str
    group: str = "a"


def tasks(num: int, groups: str = "a") -> list[Task]:
    return [Task(f"{index:03d}", groups[index % len(groups)]) for index in range(num)]


def make(jobs, num_workers=1, max_attempts=3, **options) -> Schedule:
    schedule = Schedule(jobs, max_attempts, lambda task: task.group, **options)
    for number in range(1, num_workers + 1):
        schedule.add_worker(number)
    return schedule


def given(schedule: Schedule) -> list[tuple[int, str]]:
    return [(number, attempt.task.clip_id) for number, attempt in schedule.hand_out()]


def test_each_worker_has_one_in_hand_and_one_queued():
    schedule = make(tasks(10), num_workers=2)
    assert given(schedule) == [(1, "000"), (2, "001"), (1, "002"), (2, "003")]
    assert given(schedule) == []
    schedule.finished(2, "001")
    assert given(schedule) == [(2, "004")]
    assert schedule.num_known() == 9 and not schedule.is_empty()


def test_towards_the_end_nobody_queues_what_another_could_begin():
    schedule = make(tasks(4), num_workers=3)
    assert given(schedule) == [(1, "000"), (2, "001"), (3, "002")]
    schedule.finished(2, "001")
    assert given(schedule) == [(2, "003")]
    assert schedule.is_empty() and schedule.num_in_hand == 3


def test_a_million_jobs_are_read_as_they_are_needed():
    num_read = 0

    def stream():
        nonlocal num_read
        for index in range(1_000_000):
            num_read += 1
            yield Task(f"{index:07d}")

    schedule = make(stream(), num_workers=2, look_ahead=16)
    assert len(given(schedule)) == 4 and num_read <= 20
    for step in range(100):
        number = 1 + step % 2
        schedule.finished(number, schedule.in_hand(number)[0].task.clip_id)
        assert len(given(schedule)) == 1
    assert num_read <= 120


def test_failed_clip_goes_to_another_worker_and_is_given_up_in_the_end():
    schedule = make(tasks(1), num_workers=2, max_attempts=3)
    [(first, clip_id)] = given(schedule)
    assert schedule.failed(first, clip_id) is None
    [(second, _)] = given(schedule)
    assert second != first
    assert schedule.failed(second, clip_id) is None
    [(third, _)] = given(schedule)  # it failed everywhere, so anywhere will do
    given_up = schedule.failed(third, clip_id)
    assert given_up.number == 3 and schedule.is_empty() and schedule.num_in_hand == 0


def test_a_death_counts_for_the_clip_at_work_and_not_for_the_queued_one():
    schedule = make(tasks(2), num_workers=1, max_attempts=2)
    assert given(schedule) == [(1, "000"), (1, "001")]
    assert schedule.lost(1, is_to_blame=True) is None
    schedule.add_worker(2)
    # Both come back alone, so that a second death is put down to the right one.
    assert given(schedule) == [(2, "000")]
    assert schedule.in_hand(2)[0].number == 2
    assert schedule.lost(2, is_to_blame=True).task.clip_id == "000"
    schedule.add_worker(3)
    assert given(schedule) == [(3, "001")] and schedule.in_hand(3)[0].number == 1
    schedule.finished(3, "001")
    assert schedule.is_empty()


def test_a_lost_node_counts_for_no_clip():
    schedule = make(tasks(2), num_workers=1, max_attempts=1)
    assert len(given(schedule)) == 2
    assert schedule.lost(1, is_to_blame=False) is None
    schedule.add_worker(2)
    assert given(schedule) == [(2, "000"), (2, "001")]
    assert [attempt.number for attempt in schedule.in_hand(2)] == [1, 1]


def test_a_suspect_waits_until_its_worker_has_nothing_else():
    schedule = make(tasks(9), num_workers=2)
    assert given(schedule) == [(1, "000"), (2, "001"), (1, "002"), (2, "003")]
    schedule.lost(1, is_to_blame=True)
    schedule.finished(2, "001")
    assert given(schedule) == []  # 000 waits for this worker to be done with 003
    schedule.finished(2, "003")
    assert given(schedule) == [(2, "000")]
    assert given(schedule) == []  # nothing beside it
    schedule.finished(2, "000")
    assert given(schedule) == [(2, "002")]


def test_retry_that_avoids_the_living_is_made_when_the_others_are_gone():
    schedule = make(tasks(1), num_workers=2)
    [(first, clip_id)] = given(schedule)
    other = 3 - first
    schedule.retire(other)
    schedule.failed(first, clip_id)
    assert given(schedule) == []  # the other worker should have it
    schedule.lost(other, is_to_blame=True)
    assert given(schedule) == [(first, clip_id)]


def test_withdrawn_clip_counts_no_attempt():
    schedule = make(tasks(2), max_attempts=1)
    assert len(given(schedule)) == 2
    schedule.returned(1, "001")
    assert given(schedule) == [(1, "001")] and schedule.in_hand(1)[1].number == 1


def test_workers_keep_their_adapter():
    schedule = make(tasks(64, "ab"), num_workers=4)
    made: dict[int, list[str]] = {}
    while not schedule.is_empty() or schedule.num_in_hand:
        for number, attempt in schedule.hand_out():
            made.setdefault(number, []).append(attempt.task.group)
        for number in made:
            if schedule.in_hand(number):
                schedule.finished(number, schedule.in_hand(number)[0].task.clip_id)
    assert schedule.num_swaps == 0
    assert sorted("".join(sorted(set(groups))) for groups in made.values()) == ["a", "a", "b", "b"]


def test_one_worker_swaps_once_for_two_adapters():
    schedule = make(tasks(20, "ab"))
    order = []
    while not schedule.is_empty() or schedule.num_in_hand:
        order += [attempt.task.group for _, attempt in schedule.hand_out()]
        schedule.finished(1, schedule.in_hand(1)[0].task.clip_id)
    assert "".join(order) == "a" * 10 + "b" * 10 and schedule.num_swaps == 1


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_or_given_twice_whatever_happens(seed):
    chance = random.Random(seed)
    jobs = tasks(200, "abc")
    schedule, next_number = make(iter(jobs), num_workers=5, look_ahead=20), 6
    workers, ended = set(range(1, 6)), Counter()
    for _ in range(20_000):
        if schedule.is_empty() and not schedule.num_in_hand:
            break
        for number, attempt in schedule.hand_out():
            assert attempt.task.clip_id not in ended
            held = schedule.in_hand(number)
            assert len(held) <= 2 and (len(held) == 1 or not any(a.alone for a in held))
        number = chance.choice(sorted(workers))
        if (event := chance.random()) < 0.06:
            workers.remove(number)
            given_up = schedule.lost(number, is_to_blame=chance.random() < 0.7)
            ended.update([given_up.task.clip_id] if given_up else [])
            workers.add(next_number)
            schedule.add_worker(next_number)
            next_number += 1
        elif schedule.in_hand(number):
            clip_id = chance.choice(schedule.in_hand(number)).task.clip_id
            if event < 0.15:
                given_up = schedule.failed(number, clip_id, alone=chance.random() < 0.3)
                ended.update([clip_id] if given_up else [])
            elif event < 0.2:
                schedule.returned(number, clip_id)
            else:
                schedule.finished(number, clip_id)
                ended.update([clip_id])
    assert ended == Counter(task.clip_id for task in jobs)
