"""Inverse dynamics learns what can be seen, says how well, and never lies about it."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dreamgen.errors import UserError
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.vector_stats import VectorStats
from finetune.idm_episodes import IdmEpisode, split_episodes
from finetune.idm_errors import baseline_vectors, clip_pieces, curves_svg, vector_errors
from finetune.idm_linear import best_share
from finetune.inverse_dynamics import describe_errors, finetune_idm
from tests.finetune.square_world import ACTION_NAMES, square_episode, square_settings, write_square_training_set


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("idm") / "run"
    write_square_training_set(run)
    return run, finetune_idm(square_settings(run))


def test_learns_the_square_and_beats_every_guess(trained):
    run, result = trained
    held_out = json.loads((run / "idm" / "config.json").read_text())["held_out"]
    action = held_out["action"]
    assert action["r2"] > 0.8
    assert set(action["baselines"]) == {"mean", "nearest_frame", "state_held"}
    for baseline in action["baselines"].values():
        assert action["mae"] < 0.8 * baseline["mae"] and action["r2"] > baseline["r2"]
    assert action["binary_accuracy"] > 0.85
    assert 0.7 < action["spread"] < 1.2  # the actions are not shrunk towards the mean
    assert held_out["state"]["r2"] > 0.8
    assert action["mae_per_dim"][ACTION_NAMES.index("unused")] == 0
    assert action["r2_per_dim"][ACTION_NAMES.index("unused")] is None
    assert result.metrics["held_out_mae"] == action["mae"]
    assert len(held_out["episodes"]) == 3  # a fifth of fifteen
    assert len(result.notes) == 1
    assert (run / "idm" / "held_out.svg").read_text().count("<polyline") == 6


def test_labels_a_new_clip(trained):
    run, _ = trained
    model = InverseDynamics.load(run / "idm")
    video_THWC, action_TA, state_TS = square_episode(1000, 17)
    found = model.predict(video_THWC)
    guess_TA, guess_TS = found.action_TA, found.state_TS
    assert guess_TA.shape == action_TA.shape and guess_TS.shape == state_TS.shape
    assert guess_TA.dtype == guess_TS.dtype == np.float32
    assert np.abs(guess_TS - state_TS).mean() < 3  # pixels, of a walk over forty
    assert set(np.unique(guess_TA[:, 3])) <= {-3.0, 3.0}
    assert (guess_TA[:, 2] == 1.5).all()
    # The tail is predicted like the rest and is not a copy of the row before it.
    assert np.abs(guess_TA[-1, :2] - guess_TA[-2, :2]).max() > 1e-3
    assert np.abs(guess_TS[-1] - state_TS[-1]).max() < 8
    np.testing.assert_array_equal(guess_TA, model.predict(video_THWC).action_TA)


def test_same_seed_gives_same_weights(tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_square_training_set(tmp_path / name, num_episodes=2, num_frames=17)
        settings = square_settings(tmp_path / name, num_steps=3)
        finetune_idm(settings if seed == 0 else type(settings)(**{**vars(settings), "seed": seed}))
        weights.append(load_file(tmp_path / name / "idm" / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=0)
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_without_training_it_says_that_it_is_no_better_than_the_mean(tmp_path):
    write_square_training_set(tmp_path, num_episodes=2, num_frames=17)
    result = finetune_idm(square_settings(tmp_path, num_steps=1, learning_rate=10.0))
    assert "NO BETTER" in result.notes[-1]


def test_no_states_where_not_asked_for(tmp_path):
    write_square_training_set(tmp_path, num_episodes=2, num_frames=17)
    finetune_idm(square_settings(tmp_path, num_steps=1, predict_state=False))
    model = InverseDynamics.load(tmp_path / "idm")
    assert model.config.states is None
    assert model.predict(np.zeros((5, 64, 64, 3), np.uint8)).state_TS is None


def test_refuses_demos_without_actions(tmp_path):
    write_square_training_set(tmp_path, num_episodes=2, num_frames=17, actions=False)
    with pytest.raises(UserError, match="no actions"):
        finetune_idm(square_settings(tmp_path))
    assert not (tmp_path / "idm").exists()


def test_refuses_a_trajectory_that_does_not_fit_its_clip(tmp_path):
    write_square_training_set(tmp_path, num_episodes=3, num_frames=17)
    folder = tmp_path / "train" / "trajectories"
    pq.write_table(pq.read_table(folder / "square_0.parquet").slice(0, 9), folder / "square_0.parquet")
    bad = pa.table({"action": pa.array([[float("nan")] * 4] * 17, pa.list_(pa.float32()))})
    pq.write_table(bad, folder / "square_2.parquet")
    with pytest.raises(UserError) as caught:
        finetune_idm(square_settings(tmp_path))
    assert "square_0" in str(caught.value) and "9 rows" in str(caught.value)
    assert "square_2" in str(caught.value) and "finite" in str(caught.value)
    assert not (tmp_path / "idm").exists()


def test_does_not_replace_a_model(trained):
    run, _ = trained
    with pytest.raises(UserError, match="already exists"):
        finetune_idm(square_settings(run))


def test_a_picture_size_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="image_px"):
        finetune_idm(square_settings(tmp_path, image_px=40))


def test_the_linear_reading_gets_the_share_with_the_least_error():
    random = np.random.default_rng(0)
    target_TP = random.normal(size=(500, 3))
    network_TP, linear_TP = (target_TP + s * random.normal(size=(500, 3)) for s in (0.2, 0.4))
    share = best_share(network_TP, linear_TP, target_TP)
    assert share == pytest.approx(0.4**2 / (0.4**2 + 0.2**2), abs=0.05)
    errors = [
        ((s * network_TP + (1 - s) * linear_TP - target_TP) ** 2).sum() for s in (share, share - 0.05, share + 0.05)
    ]
    assert errors[0] == min(errors)
    assert best_share(target_TP, linear_TP, target_TP) == 1 and best_share(network_TP, target_TP, target_TP) == 0


def test_networks_that_learned_nothing_leave_it_to_the_linear_reading(tmp_path):
    write_square_training_set(tmp_path)
    finetune_idm(square_settings(tmp_path, num_steps=1))
    model = InverseDynamics.load(tmp_path / "idm")
    assert model.config.network_share < 0.2
    assert model.config.held_out["state"]["r2"] > 0.5
    assert model.config.followed == ()  # named otherwise


def episode(name: str, num_frames: int) -> IdmEpisode:
    rows = np.arange(num_frames, dtype=np.float32)[:, None]
    return IdmEpisode(name, np.zeros((num_frames, 3, 16, 16), np.uint8), rows, None)


def test_split_holds_out_whole_episodes():
    episodes = [episode(str(number), 5) for number in range(10)]
    train, held_out, _ = split_episodes(episodes, 0.2, seed=3)
    assert len(train) == 8 and len(held_out) == 2
    assert {e.name for e in train} | {e.name for e in held_out} == {e.name for e in episodes}
    assert [e.name for e in split_episodes(episodes, 0.2, seed=3)[1]] == [e.name for e in held_out]
    assert len({split_episodes(episodes, 0.1, seed)[1][0].name for seed in range(20)}) > 1
    assert len(split_episodes(episodes[:2], 0.0, seed=0)[1]) == 1
    assert len(split_episodes(episodes[:2], 1.0, seed=0)[0]) == 1


def test_split_of_a_single_episode_holds_out_its_end():
    train, held_out, how = split_episodes([episode("only", 20)], 0.2, seed=0)
    assert train[0].action_TA[:, 0].tolist() == list(range(16))
    assert held_out[0].action_TA[:, 0].tolist() == [16, 17, 18, 19]
    assert "last 4 frames" in how
    with pytest.raises(UserError, match="too short"):
        split_episodes([episode("only", 3)], 0.2, seed=0)


def test_errors_by_hand():
    stats = VectorStats.measure(np.array([[0, 1, 5], [2, 1, -5], [4, 1, 5]], np.float32), ("a", "b", "c"))
    assert stats.kinds == ("varied", "constant", "binary")
    truth_TD = np.array([[0, 1, 5], [4, 1, -5]], np.float32)
    guess_TD = np.array([[1, 1, 5], [4, 1, 5]], np.float32)
    stats = replace(stats, groups={"arm": (0, 2), "leg": (1, 2), "hand": (2, 3)})
    errors = vector_errors([truth_TD], [guess_TD], stats, {"mean": [np.tile(stats.mean, (2, 1))]})
    assert errors["mae_per_dim"] == [0.5, 0.0, 5.0]
    assert errors["mae"] == pytest.approx((0.5 + 5.0) / 2)
    assert errors["binary_accuracy"] == 0.5
    assert errors["spread"] == pytest.approx(1.5 / 2)
    # The demos: mean 2 and variance 8/3 of a; mean 5/3 and variance 200/9 of c.
    assert errors["r2_per_group"] == {"arm": pytest.approx(1 - 1 / 8), "hand": pytest.approx(1 - 100 / (500 / 9))}
    assert errors["r2_per_dim"] == [errors["r2_per_group"]["arm"], None, errors["r2_per_group"]["hand"]]
    assert errors["r2"] == pytest.approx(1 - (1 / (8 / 3) + 100 / (200 / 9)) / (8 / (8 / 3) + (500 / 9) / (200 / 9)))
    mean = errors["baselines"]["mean"]
    assert mean["r2"] == pytest.approx(0) and mean["mae"] == pytest.approx((2 + (10 / 3 + 20 / 3) / 2) / 2)


def test_baselines_by_hand():
    dark, bright = np.full((3, 3, 16, 16), 10, np.uint8), np.full((3, 3, 16, 16), 200, np.uint8)
    train = [IdmEpisode("a", dark, np.full((3, 1), 1.0), np.full((3, 1), 5.0)),
             IdmEpisode("b", bright, np.full((3, 1), 3.0), np.full((3, 1), 6.0))]  # fmt: skip
    frames = np.concatenate([dark, bright[:2]]) + np.uint8(9)
    held_out = IdmEpisode("c", frames, np.arange(5.0)[:, None], np.arange(10.0, 15)[:, None])
    stats = VectorStats.measure(np.array([[1.0], [3.0]]), ("joint",))
    for state_names, held in ((("joint",), [10, 10, 10, 12, 12]), (("other",), [0, 0, 0, 2, 2])):
        found = baseline_vectors(train, [held_out], lambda e: e.action_TA, stats, state_names, num_frames=3)
        assert found["mean"][0][:, 0].tolist() == [2] * 5
        assert found["nearest_frame"][0][:, 0].tolist() == [1, 1, 1, 3, 3]
        assert found["state_held"][0][:, 0].tolist() == held  # the second clip overlaps the first


@pytest.mark.parametrize(
    "num_frames, pieces", [(4, [(0, 4, 0)]), (10, [(0, 5, 0), (5, 10, 5)]), (7, [(0, 5, 0), (2, 7, 5)])]
)
def test_clips_of_an_episode_have_one_length(num_frames, pieces):
    assert list(clip_pieces(num_frames, 5)) == pieces


def test_words_and_curves():
    for mae, r2, no_better in ((0.5, 0.1, True), (0.4, -0.1, True), (0.4, 0.1, False), (0.4, None, False)):
        baselines = {"mean": {"mae": 0.5, "r2": 0.0}}
        notes = describe_errors({"mae": mae, "r2": r2, "baselines": baselines}, "1 of 2 episodes")
        assert ("NO BETTER" in notes[-1]) == no_better
    stats = VectorStats.measure(np.array([[0.0], [1.0], [2.0]], np.float32), ("<script>",))
    svg = curves_svg(np.zeros((3, 1)), np.ones((3, 1)), stats, "a & b")
    assert "<script>" not in svg and "a &amp; b" in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")
