"""What the Meta-World recorder records: tasks, instructions, withheld positions and seeds. Needs no simulator."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "metaworld"
SPACES = {
    "one coordinate": ([-0.1, 0.9, 0.0], [0.1, 0.9, 0.0]),
    "object": ([-0.1, 0.8, -0.001], [0.1, 0.9, 0.001]),
    "object and goal": ([-0.1, 0.6, 0.02, -0.1, 0.8, 0.05], [0.1, 0.7, 0.02, 0.1, 0.9, 0.3]),
}


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import record
    import tasks

    yield tasks, record
    for name in ("record", "tasks", "paraphrases", "instruction_grammar"):
        sys.modules.pop(name, None)


def test_tasks_are_split_once_and_held_out_ones_share_skills_with_seen_ones(modules):
    tasks, _ = modules
    assert len(tasks.TASKS) == 50
    parts = [*tasks.SEEN, *tasks.HELD_OUT, *tasks.UNFINISHED]
    assert sorted(parts) == list(tasks.TASKS)
    assert 34 <= len(tasks.SEEN) <= 40 and 10 <= len(tasks.HELD_OUT) <= 14
    for task, related in tasks.HELD_OUT.items():
        assert related and set(related) <= set(tasks.SEEN), task
    for variation in tasks.VARIATIONS.values():
        assert len(variation.tasks) >= 2 and set(variation.tasks) <= set(tasks.SEEN), variation.name


def test_each_sentence_names_one_task_and_some_are_kept_for_tests(modules):
    tasks, _ = modules
    sentences = [sentence for task in tasks.TASKS for sentence in tasks.INSTRUCTIONS[task]]
    assert len({sentence.lower() for sentence in sentences}) == len(sentences)
    for task in tasks.TASKS:
        train, test = tasks.instructions_of(task, "train"), tasks.instructions_of(task, "test")
        assert len(train) >= 2 and len(test) >= 1 and not set(train) & set(test), task
        assert {*train, *test} == set(tasks.instructions_of(task, "any"))


def test_paraphrases_name_one_task_and_keep_out_what_is_kept_for_tests(modules):
    tasks, record = modules
    import paraphrases

    assert set(paraphrases.MEANINGS) == set(tasks.SEEN) and record.SETS["base"].is_paraphrased
    words_of = paraphrases.words_of
    assert words_of("Swing a door open!") == words_of("swing open, the door") == {"swing", "door", "open"}
    sentences = {task: {words_of(text) for text in paraphrases.paraphrases(task)} for task in tasks.SEEN}
    assert {len(texts) for texts in sentences.values()} == {paraphrases.NUM_PARAPHRASES}
    assert len(set().union(*sentences.values())) == len(tasks.SEEN) * paraphrases.NUM_PARAPHRASES
    for task, texts in sentences.items():
        kept = [paraphrases.stems(words_of(text)) for text in tasks.instructions_of(task, "test")]
        assert not any(one <= paraphrases.stems(text) for one in kept for text in texts), task
        for other in set(tasks.TASKS) - {task}:
            assert not texts & {words_of(text) for text in tasks.instructions_of(other, "any")}, (task, other)
    drawn = [paraphrases.instruction("push", "train", tasks.rng_of(seed, "x"), True) for seed in range(400)]
    written = tasks.instructions_of("push", "train")
    assert 0.4 < np.mean([text in written for text in drawn]) < 0.6
    assert set(drawn) == {*written, *paraphrases.paraphrases("push")}
    for region, paraphrased in (("test", True), ("train", False)):
        drawn = {paraphrases.instruction("push", region, tasks.rng_of(seed, "x"), paraphrased) for seed in range(40)}
        assert drawn == set(tasks.instructions_of("push", region))


@pytest.mark.parametrize("space", SPACES)
def test_positions_of_training_and_of_tests_lie_apart(modules, space):
    tasks, _ = modules
    low, high = map(np.array, SPACES[space])
    drawn = {
        region: [tasks.uniform_positions(low, high, tasks.rng_of(seed, "x"), region) for seed in range(300)]
        for region in tasks.REGIONS
    }
    assert not any(tasks.is_withheld(positions, low, high) for positions in drawn["train"])
    assert all(tasks.is_withheld(positions, low, high) for positions in drawn["test"])
    share = np.mean([tasks.is_withheld(positions, low, high) for positions in drawn["any"]])
    assert 0.05 < share < 0.4
    for positions in drawn["train"]:
        assert np.all(low <= positions) and np.all(positions <= high)
    assert np.array_equal(drawn["test"][7], tasks.uniform_positions(low, high, tasks.rng_of(7, "x"), "test"))


def test_a_task_whose_positions_do_not_vary_has_a_single_region(modules):
    tasks, _ = modules
    low = np.array([0.0, 0.6, 0.0])
    for region in tasks.REGIONS:
        assert np.array_equal(tasks.uniform_positions(low, low, tasks.rng_of(0), region), low)


def test_sets_and_seeds_share_no_episode_and_leave_the_seeds_of_evaluation_alone(modules):
    tasks, record = modules
    used = {}
    for name in record.SETS:
        for seed in (0, 1):
            arguments = Namespace(set=name, tasks=None, seed=seed, region="train", episodes_per_task=1000, workers=8,
                                  frame_skip=5, num_frames=25, size_px=128)  # fmt: skip
            blocks = record._blocks(arguments, Path("x"))
            numbers = {b.first_seed + n * record.MAX_ATTEMPTS + a
                       for b in blocks for n in b.numbers for a in range(record.MAX_ATTEMPTS)}  # fmt: skip
            assert min(numbers) >= tasks.FIRST_RECORDING_SEED
            assert all(not numbers & others for others in used.values())
            used[name, seed] = numbers


def test_blocks_hold_every_episode_of_a_set_once(modules):
    tasks, record = modules
    for name, recording in record.SETS.items():
        arguments = Namespace(set=name, tasks=None, seed=0, region="test", episodes_per_task=7, workers=3,
                              frame_skip=5, num_frames=25, size_px=128)  # fmt: skip
        found = [(b.task, b.variation, n) for b in record._blocks(arguments, Path("x")) for n in b.numbers]
        num_variations = sum(len(v.tasks) for v in tasks.VARIATIONS.values()) if recording.has_variations else 0
        assert len(found) == len(set(found)) == 7 * (len(recording.tasks) + num_variations)
