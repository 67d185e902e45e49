"""The figures of benchmarks/idm.py, by hand, and its comparisons on a robot that can be seen whole."""

import argparse

import numpy as np
import pytest
import torch
from idm import Bench, Fold, pooled
from processes import processes

from dreamgen.models.idm.vector_stats import VectorStats
from tests.finetune.square_world import NUM_FRAMES, square_settings, write_square_training_set


def test_r2_is_in_units_of_the_reference_and_pooled_over_folds():
    demo_TD = np.array([[0.0, 1.0], [2.0, 1.0]])
    reference = VectorStats.measure(demo_TD, ("arm", "leg"))  # mean 1 and deviation 1 of the arm; the leg rests
    truths = [np.array([[0.0, 1.0], [4.0, 1.0]]), np.array([[1.0, 1.0], [3.0, 1.0]])]
    guesses = [truth_TD + np.array([2.0, 0.0]) for truth_TD in truths]
    folds = [Fold(reference, [truth], {"shifted": [guess]}) for truth, guess in zip(truths, guesses, strict=True)]
    rows = pooled(folds)
    # Squared errors 4 x 4; squared differences from the reference's mean 1 + 9 + 0 + 4.
    assert rows["r2"]["shifted"] == {"all moving": round(1 - 16 / 14, 3), "all": round(1 - 16 / 14, 3)}
    assert rows["within"]["shifted"]["all moving"] == 1  # only the offset was wrong


@pytest.mark.slow
def test_linear_reading_curve_and_tries(tmp_path):
    write_square_training_set(tmp_path, num_episodes=6)
    settings = square_settings(tmp_path, num_steps=20, num_models=1)
    arguments = argparse.Namespace(folds=3, max_folds=None, max_choices=2, round_trip=False)
    bench = Bench(settings, arguments)
    many, one = bench.linear(), bench.linear(1)
    assert many["num_folds"] == 3 and one["num_folds"] == 6 and bench.num_frames == NUM_FRAMES
    r2 = many["r2"]
    assert r2["model"]["all moving"] > max(one["r2"]["model"]["all moving"], r2["mean"]["all moving"], 0.2)
    assert many["training episodes"]["all moving"] > r2["model"]["all moving"]
    ways = bench.tries()["r2"]
    assert {name.split(":")[0] for name in ways} == {"input", "target", "head"}
    assert ways["head: ridge regression"]["all moving"] > 0.2
    blocks = {way: r2["all moving"] for way, r2 in bench.blocks()["r2"].items()}
    assert blocks["blocks of 1 frames"] > blocks["blocks of 10 frames"]
    assert bench.true_states()["r2"]["actions from true states"]["all moving"] > 0.3
    found = bench.networks({"batch_size": 2})
    assert len(found["shares"]) == 3 and "networks, first state known" in found["r2"]
    assert found["r2"]["mean"] == r2["mean"]  # the same folds and units


@pytest.mark.slow
def test_folds_side_by_side_give_the_same_figures(tmp_path):
    write_square_training_set(tmp_path, num_episodes=4, num_frames=25)
    settings = square_settings(tmp_path, num_steps=8, num_models=1)
    arguments = argparse.Namespace(folds=2, max_folds=None, max_choices=2, round_trip=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of several processes: the number changes rounding
    try:
        one = Bench(settings, arguments).networks({})
    finally:
        torch.set_num_threads(threads)
    with processes(2) as each:
        two = Bench(settings, arguments, each).networks({})
    assert one == two
    assert "with the linear reading, after the VAE, first state known" in two["r2"]
