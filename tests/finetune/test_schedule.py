"""The learning rate by optimizer step."""

import pytest

from dreamgen.config.settings import FinetuneSettings
from finetune.schedule import learning_rate


def rates(**values):
    tune = FinetuneSettings(learning_rate=2.0, **values)
    return [learning_rate(step, tune) for step in range(tune.num_steps)]


def test_it_rises_to_decay_from_and_falls_to_decay_to():
    values = rates(num_steps=30, warmup_steps=10, decay_from=0.5, decay_to=0.2)
    assert values[0] == pytest.approx(2 * 0.5 / 10)
    assert max(values) == values[9] == pytest.approx(2 * 0.5)
    assert values[19] == pytest.approx(2 * 0.35)
    assert values[-1] == pytest.approx(2 * 0.2)


def test_the_warm_up_is_at_most_half_of_a_short_training():
    values = rates(num_steps=8, warmup_steps=1000)
    assert values.index(max(values)) == 3
    assert values[-1] == pytest.approx(2 * 0.2)


def test_one_step_has_a_rate():
    assert rates(num_steps=1) == [pytest.approx(2 * 0.2)]


def test_the_time_moves_the_decay_forward_and_never_back():
    tune = FinetuneSettings(learning_rate=2.0, num_steps=100, warmup_steps=10, decay_from=1.0, decay_to=0.0)
    assert learning_rate(20, tune, time_share=0.5) == pytest.approx(1.0)
    assert learning_rate(90, tune, time_share=0.5) == learning_rate(90, tune) < 1.0
    assert learning_rate(20, tune, time_share=1.2) == pytest.approx(0.0)
