"""The linear reading, and what a known first state says about actions."""

from dataclasses import replace

import numpy as np
import pytest

from dreamgen.errors import UserError
from dreamgen.models.idm.first_state import followed_names
from dreamgen.models.idm.linear import PENALTIES, LinearReader, clip_features, fit_linear, num_features, side_px
from dreamgen.models.idm.model import InverseDynamics, clip_background
from dreamgen.models.idm.vector_stats import VectorStats
from tests.models.test_inverse_dynamics import noise, small_model


def zero_reader(model: InverseDynamics, bias: float = 0.0) -> LinearReader:
    num_outputs, num = len(model.config.binary_outputs()), num_features(len(model.config.views))
    return LinearReader(np.zeros((num, num_outputs), np.float32), np.full(num_outputs, bias, np.float32))


def test_features_are_the_foreground_of_a_frame_and_its_neighbors():
    small_TCHW = np.zeros((5, 6, 48, 48), np.uint8)
    small_TCHW[2, 4, :24] = 255  # the upper half, in the second camera
    features_TX = clip_features(small_TCHW, clip_background(small_TCHW))
    side = side_px(2)
    assert features_TX.shape == (5, num_features(2)) and num_features(2) <= 2000
    before, same, after = features_TX.reshape(5, 3, 2, side, side).transpose(1, 0, 2, 3, 4)
    assert same[2, 1, : side // 2].min() > 0.99 and same[2, 1, side // 2 :].max() < 0.01 and same[2, 0].max() < 0.01
    np.testing.assert_array_equal(before[3], same[2])
    np.testing.assert_array_equal(after[1], same[2])
    np.testing.assert_array_equal(before[0], same[0])  # the first frame is its own neighbor


@pytest.mark.parametrize("num_rows", [30, 400])  # fewer rows than features, and more
def test_the_fit_is_that_of_ridge_regression(num_rows):
    random = np.random.default_rng(0)
    features = [random.normal(size=(num_rows // 3, 50)).astype(np.float32) + 3 for _ in range(3)]
    weight_XP = random.normal(size=(50, 2))
    targets = [x @ weight_XP + 5 + 0.01 * random.normal(size=(len(x), 2)) for x in features]
    reader = fit_linear(features, targets)
    feature_NX, target_NP = np.concatenate(features).astype(np.float64), np.concatenate(targets)
    centered_NX = feature_NX - feature_NX.mean(axis=0)
    scale = (centered_NX**2).sum() / len(centered_NX)
    expected = [
        np.linalg.solve(centered_NX.T @ centered_NX / scale + penalty * np.eye(50), centered_NX.T @ target_NP / scale)
        for penalty in PENALTIES
    ]
    assert min(np.abs(reader.weight_XP - weights).max() for weights in expected) < 1e-5
    np.testing.assert_allclose((feature_NX @ reader.weight_XP + reader.bias_P).mean(0), target_NP.mean(0), rtol=1e-3)


def test_the_penalty_grows_where_episodes_do_not_resemble_each_other():
    random = np.random.default_rng(1)
    features = [random.normal(size=(40, 50)).astype(np.float32) for _ in range(4)]
    weight_XP = random.normal(size=(50, 1))
    learnable = fit_linear(features, [x @ weight_XP for x in features])
    noise_only = fit_linear(features, [random.normal(size=(40, 1)) for _ in features])
    assert np.abs(noise_only.weight_XP).mean() < 0.02 < np.abs(learnable.weight_XP).mean()


def test_a_clip_in_which_nothing_moves_gets_the_mean():
    still = [np.zeros((9, 12), np.float32)] * 2
    reader = fit_linear(still, [np.full((9, 2), 3.0), np.full((9, 2), 5.0)])
    np.testing.assert_allclose(still[0] @ reader.weight_XP + reader.bias_P, np.full((9, 2), 4.0))


def test_a_single_episode_is_enough():
    random = np.random.default_rng(2)
    feature_NX = random.normal(size=(60, 10)).astype(np.float32)
    reader = fit_linear([feature_NX], [feature_NX[:, :2]])
    np.testing.assert_allclose(feature_NX @ reader.weight_XP + reader.bias_P, feature_NX[:, :2], atol=0.2)


def test_networks_and_linear_reading_are_mixed_by_their_share():
    model = small_model()
    half = InverseDynamics(replace(model.config, network_share=0.25), [*model.networks], zero_reader(model, 0.4))
    network_TP, network_std_TP = model.outputs(noise(9).transpose(0, 3, 1, 2)[:, :, :32, :32].copy())
    mixed_TP, std_TP = half.outputs(noise(9).transpose(0, 3, 1, 2)[:, :, :32, :32].copy())
    np.testing.assert_allclose(mixed_TP, 0.25 * network_TP + 0.75 * 0.4, rtol=1e-6)
    expected = 0.25 * network_std_TP**2 + 0.25 * 0.75 * (network_TP - 0.4) ** 2
    np.testing.assert_allclose(std_TP**2, expected, rtol=1e-5)  # they disagree: less certain


def test_the_linear_reading_is_saved_and_loaded(tmp_path):
    model = small_model()
    reader = zero_reader(model, 0.4)
    mixed = InverseDynamics(replace(model.config, network_share=0.5), [*model.networks], reader)
    mixed.save(tmp_path)
    loaded = InverseDynamics.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(noise(7)).action_TA, mixed.predict(noise(7)).action_TA)
    for wrong in (LinearReader(reader.weight_XP[:-1], reader.bias_P), None):
        InverseDynamics(mixed.config, [*model.networks], wrong).save(tmp_path)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be loaded"):
            InverseDynamics.load(tmp_path)


def test_actions_that_are_changes_do_not_follow_a_state_of_their_name():
    random = np.random.default_rng(3)
    state_NS = np.cumsum(random.normal(size=(200, 3)), axis=0)
    action_NA = np.stack([state_NS[:, 0] + 0.1 + 0.01 * random.normal(size=200), np.gradient(state_NS[:, 1])], axis=1)
    actions = VectorStats.measure(action_NA, ("target", "change"))
    states = VectorStats.measure(state_NS, ("target", "change", "other"))
    assert followed_names(actions, states, action_NA, state_NS) == ("target",)
