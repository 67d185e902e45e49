"""The holder around the networks: windows, votes, constants, uncertainty, and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgen.data.video import decode_frames, write_video
from dreamgen.errors import UserError
from dreamgen.models.idm.model import KNOWN_STATE_S, InverseDynamics, small_decoded, small_frames, windows
from dreamgen.models.idm.network import IdmConfig, window_loss
from dreamgen.models.idm.next_state import fit_next_state, integrate
from dreamgen.models.idm.vector_stats import VectorStats

DEMO_TA = np.array([[0.1, 0, -1.5, 7], [0.2, 0, 1.5, 7], [0.4, 0, 1.5, 7.5], [0.1, 0, -1.5, 8]], np.float32)
MEASURED = {"action": {"mae": 0.1, "r2": 0.5}}


def small_model(horizon: int = 4, states: bool = True) -> InverseDynamics:
    torch.manual_seed(0)
    actions = VectorStats.measure(DEMO_TA, ("arm", "leg", "grip", "wrist"))
    state = VectorStats.measure(DEMO_TA[:, :2], ("arm", "leg")) if states else None
    return InverseDynamics(IdmConfig(horizon, 32, 16, 2, 16, actions, state, held_out=MEASURED))


def noise(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_stats_tell_the_kinds_apart_and_come_back():
    stats = VectorStats.measure(DEMO_TA, ())
    assert stats.kinds == ("varied", "constant", "binary", "varied")
    assert stats.names == ("dim_0", "dim_1", "dim_2", "dim_3")
    back_TD = stats.from_network(stats.to_network(DEMO_TA))
    np.testing.assert_allclose(back_TD, DEMO_TA, atol=1e-6)
    np.testing.assert_array_equal(back_TD[:, 1:3], DEMO_TA[:, 1:3])


def test_a_split_vote_is_never_fractional():
    stats = VectorStats.measure(DEMO_TA, ())
    outputs_TP = np.zeros((3, 3), np.float32)
    outputs_TP[:, 1] = (0.4, 0.5, 0.6)
    assert stats.from_network(outputs_TP)[:, 2].tolist() == [-1.5, 1.5, 1.5]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 6, 23])
def test_clips_of_any_length_get_a_row_a_frame(num_frames):
    found = small_model().predict(noise(num_frames))
    assert found.action_TA.shape == found.action_std_TA.shape == (num_frames, 4)
    assert found.state_TS.shape == found.state_std_TS.shape == (num_frames, 2)
    for values in (found.action_TA, found.state_TS, found.action_std_TA, found.state_std_TS):
        assert np.isfinite(values).all()
    assert (found.action_TA[:, 1] == 0).all() and set(np.unique(found.action_TA[:, 2])) <= {-1.5, 1.5}
    assert (found.action_std_TA[:, 1] == 0).all()  # a constant is certain
    assert (found.action_std_TA[:, [0, 2, 3]] > 0).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 17, 93])
def test_windows_cover_every_frame_and_stay_within_the_clip(num_frames):
    starts, weight_K1 = windows(num_frames, 16)
    assert starts[0] == 0 and starts[-1] + len(weight_K1) == num_frames and (weight_K1 > 0).all()
    covered = {start + row for start in starts for row in range(len(weight_K1))}
    assert covered == set(range(num_frames))


class OwnNumber(torch.nn.Module):
    """An encoder that reads a frame's number from its color."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        return (picture_NCHW[:, :1, 0, 0] * 127.5 + 127.5).expand(-1, self.width)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 100, 130])
@pytest.mark.parametrize("horizon", [4, 7])
def test_every_frame_gets_the_actions_of_its_own_number(num_frames, horizon):
    """Frames that show their number: whatever the windows, a row is that of its frame."""
    model = small_model(horizon, states=False)
    for network in model.networks:
        network.encoder = OwnNumber(16)
        network.positions.data.zero_()
        network.transformer = torch.nn.Identity()
        network.output.weight.data.fill_(1 / 16)
        network.output.bias.data.zero_()
    video_THWC = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 32, 32, 3))
    found = model.predict(video_THWC)
    arm = model.config.actions
    np.testing.assert_allclose(found.action_TA[:, 0], np.arange(num_frames) * arm.std[0] + arm.mean[0], rtol=1e-4)
    assert found.action_std_TA[:, 0].max() < 1e-3  # all windows agree


def test_the_same_clip_gets_the_same_labels_with_any_other_before_it():
    model, video_THWC = small_model(), noise(130)
    first = model.predict(video_THWC)
    model.predict(noise(31))
    again = model.predict(video_THWC)
    np.testing.assert_array_equal(first.action_TA, again.action_TA)
    np.testing.assert_array_equal(first.action_std_TA, again.action_std_TA)


def test_uncertainty_grows_with_the_networks_disagreement():
    model = small_model(states=False)
    before = model.predict(noise(9)).action_std_TA[:, 0]
    model.networks[1].output.bias.data += 3
    assert (model.predict(noise(9)).action_std_TA[:, 0] > before + 0.1).all()
    doubled = model.measured(uncertainty_scale=2.0).predict(noise(9)).action_std_TA
    np.testing.assert_allclose(doubled, 2 * model.predict(noise(9)).action_std_TA, rtol=1e-5)


def test_a_known_first_state_is_where_a_clip_begins():
    model, video_THWC = small_model().measured(followed=("arm",)), noise(100)
    plain, known = model.predict(video_THWC), model.predict(video_THWC, np.array([0.35, 0], np.float32))
    assert known.state_TS[0, 0] == pytest.approx(0.35) and known.state_std_TS[0, 0] == 0
    gap = plain.action_TA[0, 0] - plain.state_TS[0, 0]
    assert known.action_TA[0, 0] == pytest.approx(0.35 + gap)  # the state follows this action, a little behind
    assert known.action_TA[0, 2] == plain.action_TA[0, 2]  # but not this one
    offset = (0.35 - plain.state_TS[0, 0]) * np.exp(-99 / (KNOWN_STATE_S * 16))
    assert known.state_TS[-1, 0] == pytest.approx(plain.state_TS[-1, 0] + offset, abs=1e-5)
    np.testing.assert_array_equal(known.action_TA[:, 3], plain.action_TA[:, 3])
    unlike = small_model().predict(video_THWC, np.array([0.35, 0], np.float32))
    np.testing.assert_array_equal(unlike.action_TA, plain.action_TA)  # none follows


def test_integrated_states_follow_the_actions():
    random = np.random.default_rng(0)
    actions = [random.normal(size=(40, 2)).astype(np.float32) for _ in range(3)]
    moved = [np.cumsum(0.5 * a @ np.eye(2, 3), axis=0) for a in actions]
    states = [np.array([1.0, 2, 0]) + np.concatenate([np.zeros((1, 3)), m[:-1]]) for m in moved]
    change_XS = fit_next_state(states[:2], actions[:2])
    np.testing.assert_allclose(integrate(change_XS, states[2][0], actions[2]), states[2], atol=0.05)
    targets = [np.stack([np.sin(np.arange(60) / 9 + phase), np.full(60, 7.0)], axis=1) for phase in (0, 1, 2)]
    states = []
    for target_TA in targets:  # a robot that goes half of the way to its target at each step
        rows = [target_TA[0]]
        for row in target_TA[:-1]:
            rows.append(rows[-1] + 0.5 * (row - rows[-1]))
        states.append(np.stack(rows))
    change_XS = fit_next_state(states[:2], targets[:2])
    np.testing.assert_allclose(integrate(change_XS, states[2][0], targets[2]), states[2], atol=0.02)


def test_loss_is_cross_entropy_where_outputs_are_binary():
    binary_P = torch.tensor([False, True])
    outputs_BKP, target_BKP = torch.zeros(1, 5, 2), torch.zeros(1, 5, 2)
    assert window_loss(outputs_BKP, target_BKP, binary_P) == pytest.approx(np.log(2) / 2)
    target_BKP[..., 0] = 3
    assert window_loss(outputs_BKP, target_BKP, binary_P) == pytest.approx((np.log(2) + 2.5) / 2)


def test_small_frames_are_square_and_rgb_for_each_camera():
    video_THWC = np.zeros((2, 48, 80, 3), np.uint8)
    video_THWC[:, :, :40, 0] = 200
    video_THWC[:, :, 40:, 2] = 100
    whole = small_frames(video_THWC, 32, [(0, 0, 1, 1)])
    assert whole.shape == (2, 3, 32, 32) and whole.dtype == np.uint8
    two = small_frames(video_THWC, 32, [(0, 0, 1, 0.5), (0, 0.5, 1, 0.5)])
    assert two.shape == (2, 6, 32, 32)
    assert two[0].mean(axis=(1, 2)).tolist() == [200, 0, 0, 0, 0, 100]


def test_a_frame_of_a_file_becomes_small_as_one_in_memory_does(tmp_path):
    row, column = np.mgrid[:96, :128]
    frames = [np.stack([row * 2, column, row + column // 2 + 20 * t], -1).astype(np.uint8) for t in range(3)]
    write_video(tmp_path / "clip.mp4", frames, 10)
    for views in ([(0, 0, 1, 1)], [(0, 0, 1, 0.5), (0, 0.5, 1, 0.5)]):
        for frame in decode_frames(tmp_path / "clip.mp4"):
            small_CHW = small_decoded(frame, 32, views)
            expected_CHW = small_frames(frame.rgb()[None], 32, views)[0]
            assert small_CHW.shape == expected_CHW.shape == (3 * len(views), 32, 32)
            assert np.abs(small_CHW.astype(int) - expected_CHW).mean() < 1.5
            if len(views) > 1:
                assert (small_CHW == expected_CHW).all()


def test_two_cameras_have_features_of_their_own():
    model = small_model(states=False)
    views = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5))
    model = InverseDynamics(replace(model.config, views=views))
    video_THWC = noise(6, 48, 96)
    plain = model.predict(video_THWC).action_TA
    for half in (slice(0, 48), slice(48, 96)):
        changed_THWC = video_THWC.copy()
        changed_THWC[3, :, half] = 0
        assert np.abs(model.predict(changed_THWC).action_TA - plain).max() > 1e-6


@pytest.mark.parametrize("states", [True, False])
def test_save_and_load(tmp_path, states):
    model = small_model(states=states)
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = InverseDynamics.load(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.predict(noise(7)).action_TA, model.predict(noise(7)).action_TA)


def test_damaged_files_are_named(tmp_path):
    model = small_model()
    model.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        InverseDynamics.load(tmp_path)
    InverseDynamics(replace(model.config, width=32)).save(tmp_path / ".")
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        InverseDynamics.load(tmp_path)
    (tmp_path / "config.json").write_text('{"horizon": 4}')
    with pytest.raises(UserError, match=r"config\.json"):
        InverseDynamics.load(tmp_path)


def test_a_model_of_another_version_is_refused_with_what_to_do(tmp_path):
    old = {"horizon": 16, "image_px": 64, "width": 128, "fps": 16, "held_out": MEASURED}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="format is 1, of another version") as caught:
        InverseDynamics.load(tmp_path)
    assert "label trains it again" in str(caught.value)
